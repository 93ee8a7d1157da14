"""Questions to a study's rows: counts, lists of trials by filter, the neighbours of one; and its rates.

    filters = Filters(model=0, state="broke", text="refund")
    listed(study, filters, after=17).rows
    board_of(study).rate(model=0, technique="planted_secret", measure="breach")

Promises: every filter holds together with every other. A list is paged by the place of its trials, so a page
does not shift while rows come. A finished study shows the numbers of its own estimates, a running one
anytime-valid intervals over behaviours (study/intervals.py). Which trials count, and for what, is the plan's
endpoint in both. A trial without a verdict is in no rate.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from markupsafe import Markup, escape
from msgspec import UNSET

from heredity.core.errors import Damaged, HeredityError, UnknownName, UsageError
from heredity.core.files import open_file
from heredity.core.records import Estimate, Exchange, Response, ToolCall, Verdict
from heredity.core.sanitize import Shown, label, shown
from heredity.redteam import checks
from heredity.redteam.checks import is_judged
from heredity.stats.edges import KINDS as EDGE_KINDS
from heredity.study import outcomes
from heredity.study.comparisons import StoppingRule
from heredity.study.estimates import ALL, SCOPES, Estimates, Measure, ModelPair
from heredity.study.findings.edge_verdicts import EdgeVerdict, edge_verdicts
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, ERROR, HELD, LEAKED, SKIPPED, UNCLEAR, Outcomes, in_scope, is_part
from heredity.study.plan import Trial
from heredity.study.storage import RESPONSES, VERDICTS, Prefixes, is_of_its_trial
from heredity.study.turns import (
    Explanation,
    Piece,
    PromptTurn,
    explain,
    new_parts,
    turns,
    with_evidence,
    with_tokens,
)
from heredity.study.wording import find, names
from heredity.view.index import IN_PLAN, OUTSIDE, UNJUDGED
from heredity.view.places import OpenStudy

# --- search -------------------------------------------------------------------------------------------
# A marked word is one that the index finds by this search. Letter case and accents make no difference.

# As SQLite divides a text into words; these vowel signs became letters after its version of Unicode.
WORDS = re.compile(r"[^\W_\u19b0-\u19c0\u19c8\u19c9\u1cf2\u1cf3]+")
_HIT = Markup('<mark class="hit">{}</mark>')


class Search:
    """The words of a text that a reader wrote; false if it has none."""

    def __init__(self, text: str = "") -> None:
        self.words = tuple(WORDS.findall(text))
        self._known = frozenset(map(_plain, self.words))
        self._start = _plain(self.words[-1]) if self.words else ""

    def __bool__(self) -> bool:
        return bool(self.words)

    @property
    def match(self) -> str:
        """The expression for the index. The last word may go on: a search finds while it is typed."""
        return " ".join(f'"{word}"' for word in self.words) + "*"

    def mark(self, text: str) -> Markup:
        """The text escaped, with the words of the search marked."""
        if not self.words:
            return escape(text)
        made, place = Markup(""), 0
        for match in WORDS.finditer(text):
            word = match[0]
            plain = _plain(word)
            if plain in self._known or plain.startswith(self._start):
                made += escape(text[place : match.start()]) + _HIT.format(match[0])
                place = match.end()
        return made + escape(text[place:])


def _plain(word: str) -> str:
    """In small letters, without accents."""
    parts = unicodedata.normalize("NFD", word)
    return "".join(each for each in parts if not unicodedata.combining(each)).lower()


PAGE = 50  # trials of one page
STATES = ("broke", "held", "refused", "answered", "unclear", "error", "skipped", "unjudged")
KINDS = ("breach", "benign")
DOUBTS = ("unsure", "split")
# The trials that a search finds, once for all parts of a statement; not evaluated where none names them.


class Filters(NamedTuple):
    """Which trials; None and "" mean any. Models, techniques and attacks by their place in the plan.

    probe: a part of its name. text: words that were asked or answered. scope: of SCOPES in estimates.py.
    """

    model: int | None = None
    technique: int | None = None
    attack: int | None = None
    state: str = ""
    kind: str = ""  # "breach": the probes; "benign": their twins
    unasked: str = ""  # a breach that the probe did not ask for: of this kind of check, or "any"
    doubt: str = ""  # "unsure": the judge was; "split": the members of a panel disagree
    text: str = ""
    probe: str = ""
    scope: str = ""
    alone: bool = False  # only trials that one model of the study broke, and no other
    indices: tuple[int, ...] = ()  # of those
    probes: tuple[int, ...] = ()  # those that have `probe` in their names and are of `scope`, by place

    def where(self) -> tuple[str, dict[str, object]]:
        """The condition in SQL, without the search, and its values."""
        columns = {
            "m": self.model,
            "t": self.technique,
            "a": self.attack,
            "state": self.state or None,
            "twin": self.kind == "benign" if self.kind else None,
        }
        values: dict[str, object] = {name: value for name, value in columns.items() if value is not None}
        parts = [IN_PLAN, *(f"{name} = :{name}" for name in values)]
        if self.doubt:
            parts.append("unsure" if self.doubt == "unsure" else "split")
        if self.unasked:
            parts += ["unasked != ''", "v_digest IS r_digest"]
        if self.unasked not in ("", "any"):
            parts.append("instr(unasked, :unasked)")
            values["unasked"] = f" {self.unasked} "
        if self.alone:
            parts.append(f"idx IN ({','.join(map(str, self.indices))})")
        if self.probe or self.scope:
            parts.append(f"p IN ({','.join(map(str, self.probes))})")
        return " AND ".join(parts), values

    def query(self, study: OpenStudy) -> dict[str, str]:
        """The same as the query of an address."""
        fields = {
            "model": "" if self.model is None else study.names[self.model],
            "technique": "" if self.technique is None else study.techniques[self.technique],
            "attack": "" if self.attack is None else study.plan.attacks[self.attack],
            "outcome": self.state, "kind": self.kind, "unasked": self.unasked, "doubt": self.doubt,
            "probe": self.probe, "q": self.text, "scope": self.scope, "alone": "1" if self.alone else "",
        }  # fmt: skip
        return {key: value for key, value in fields.items() if value}


def read_filters(study: OpenStudy, query: dict[str, str]) -> Filters:
    """The filters of an address. Raises UnknownName for a model, technique or outcome that it lacks."""
    probe = query.get("probe", "")[:200].strip()
    scope = _one("scope", query.get("scope", ""), SCOPES["breach"])
    model = _place("model", query.get("model", ""), study.names)
    outcome = query.get("outcome", "")
    check = query.get("unasked", "any" if outcome == LEAKED else "")
    known = sorted({each.check for each in unasked(study)}) if check else []  # its plug-in may have gone
    return Filters(
        model=model,
        technique=_place("technique", query.get("technique", ""), study.techniques),
        attack=_place("attack", query.get("attack", ""), study.plan.attacks),
        state="" if outcome == LEAKED else _one("outcome", outcome, STATES),
        kind=_one("kind", query.get("kind", ""), KINDS),
        unasked=_one("kind of check", check, ("any", *checks.kinds(), *known)),
        doubt=_one("doubt", query.get("doubt", ""), DOUBTS),
        text=query.get("q", "")[:200].strip(),
        probe=probe,
        scope=scope,
        alone=bool(query.get("alone")),
        indices=tuple(chain(*board_of(study).alone(scope))) if query.get("alone") else (),
        probes=tuple(
            p
            for p, each in enumerate(study.plan.probes)
            if probe in each.id and (not scope or is_part(each, scope))
        )
        if probe or scope
        else (),
    )


def place_of(kind: str, name: str, known: tuple[str, ...]) -> int:
    """The place of a name. Raises UnknownName with the nearest."""
    if name not in known:
        raise UnknownName(f"{kind} of this study", label(name), known)
    return known.index(name)


def _place(kind: str, name: str, known: tuple[str, ...]) -> int | None:
    return place_of(kind, name, known) if name else None


def _one(kind: str, name: str, known: tuple[str, ...]) -> str:
    if name:
        place_of(kind, name, known)
    return name


# --- counts ---------------------------------------------------------------------------------------


class CellCounts(NamedTuple):
    """The trials of a model under a technique, probes or twins: how many of each state."""

    model: int
    technique: int
    is_twin: bool
    n_planned: int
    states: dict[str, int]

    @property
    def n_queued(self) -> int:
        """Trials without an answer."""
        return max(0, self.n_planned - sum(self.states.values()))

    def n(self, *states: str) -> int:
        """Trials in any of these states."""
        return sum(self.states.get(state, 0) for state in states)


def cells(study: OpenStudy) -> dict[tuple[int, int, bool], CellCounts]:
    """By model, technique and whether twins: every cell that the plan asks."""
    plan = study.plan
    by_cell: dict[tuple[int, int, bool], CellCounts] = {}
    places = {name: t for t, name in enumerate(study.techniques)}
    planned = Counter[tuple[int, bool]]()
    for probe, n_attacks in zip(plan.probes, study.n_attacks, strict=True):
        planned[places[probe.technique], probe.kind == "benign"] += n_attacks * plan.samples
    for m in range(len(plan.models)):
        by_cell |= {(m, *key): CellCounts(m, *key, n, {}) for key, n in planned.items()}
    with study.index.reading() as rows:
        counts = f"SELECT m, t, twin, state, count(*) FROM trials WHERE {IN_PLAN} GROUP BY 1, 2, 3, 4"
        for m, t, twin, state, n in rows.execute(counts):
            by_cell[m, t, bool(twin)].states[state] = n
    return by_cell


class UnaskedCount(NamedTuple):
    """The trials of a model, probes or twins, in which it broke a check that the probe did not ask about."""

    model: int
    check: str
    is_twin: bool
    n: int


def unasked(study: OpenStudy) -> list[UnaskedCount]:
    """The breaches that no probe asked for, by model, check and whether of twins; in no breach rate."""
    counts = Counter[tuple[int, str, bool]]()
    where, _ = Filters(unasked="any").where()
    with study.index.reading() as rows:
        for m, names, twin, n in rows.execute(
            "SELECT m, unasked, twin, count(*) FROM trials INDEXED BY by_unasked "
            f"WHERE {where} GROUP BY 1, 2, 3"
        ):
            for name in names.split():
                counts[m, name, bool(twin)] += n
    return [UnaskedCount(*key, n) for key, n in sorted(counts.items())]


# --- lists ----------------------------------------------------------------------------------------


_COLUMNS = "idx, state, said, why, asked, quote, CASE WHEN v_digest IS r_digest THEN unasked END"
_Listed = tuple[int, str | None, str | None, str | None, str | None, str | None, str | None]


class ListedRow(NamedTuple):
    """One trial of a list, with the first words of its question and of its answer.

    why: its verdict in a sentence. quote: the call or the words that show a breach, or "". tag: its state,
    and whether it leaked: did harm that its probe did not ask for.
    """

    trial: Trial
    model: str
    state: str
    answer: str
    why: str
    asked: str
    quote: str
    tag: str


class ListedTrials(NamedTuple):
    """A page of trials. `before` and `after`: from where the pages next to it start; None at an end."""

    rows: list[ListedRow]
    n: int
    before: int | None
    after: int | None


_FINDS = " AND idx IN hits"  # the trials that a search finds: see _searching


@contextmanager
def _searching(study: OpenStudy, filters: Filters) -> Iterator[sqlite3.Connection]:
    """A connection to the rows of one moment. With a search it has a table, `hits`, of what that finds."""
    with study.index.reading() as rows:
        if search := Search(filters.text):
            rows.execute("PRAGMA temp_store = MEMORY")
            rows.execute("CREATE TEMP TABLE hits (idx INTEGER PRIMARY KEY)")
        rows.execute("BEGIN")
        if search:
            rows.execute("INSERT INTO hits SELECT rowid FROM words WHERE words MATCH ?", (search.match,))
        yield rows


def _edge(study: OpenStudy, filters: Filters) -> str:
    """The place of the row :at in a list, in SQL: breaches first, then by index."""
    without_answer = f":at + {study.index.last} * (:at >= 0)"
    if filters.state not in ("", "broke"):
        return without_answer
    return f"coalesce((SELECT place FROM trials WHERE idx = :at), {without_answer})"


def listed(
    study: OpenStudy, filters: Filters, after: int = -1, before: int | None = None, page: int = PAGE
) -> ListedTrials:
    """The trials after one in their list, or the last ones before one. Breaches are first (breach_order).

    Raises UsageError for a search without words.
    """
    if filters.text and not Search(filters.text):
        raise UsageError("Search for a word: letters or digits.")
    where, values = filters.where()
    bound, order = (">", "ASC") if before is None else ("<", "DESC")
    source, matching, scan = "trials", "", ""
    with _searching(study, filters) as rows:
        if filters.text:
            source, matching = "hits CROSS JOIN trials USING (idx)", _FINDS
        (n,) = rows.execute(f"SELECT count(*) FROM {source} WHERE {where}", values).fetchone()
        if matching and n * n > page * len(study.grid):  # in order, until a page is full: else all, to sort
            scan = f"INDEXED BY {'by_state' if filters.state else 'by_place'}"
        trials: list[_Listed] = rows.execute(
            f"SELECT {_COLUMNS} FROM (SELECT idx, state, unasked, v_digest, r_digest, place FROM trials "
            f"{scan} WHERE {where}{matching} AND place {bound} {_edge(study, filters)} "
            f"ORDER BY place {order} LIMIT :most) LEFT JOIN texts USING (idx) ORDER BY place {order}",
            values | {"at": after if before is None else before, "most": page + 1},
        ).fetchall()
    has_more, trials = len(trials) > page, trials[:page]
    if before is not None:
        trials.reverse()
        has_before, has_after = has_more, True
    else:
        has_before, has_after = after >= 0, has_more
    made = list(_rows(study, trials))
    first, last = (made[0].trial.index, made[-1].trial.index) if made else (None, None)
    return ListedTrials(made, n, first if has_before else None, last if has_after else None)


def _rows(study: OpenStudy, trials: list[_Listed]) -> Iterator[ListedRow]:
    for index, state, answer, why, asked, quote, leaked in trials:
        trial = study.grid.trial(index)
        first = asked or label(next(iter(trial.probe.turns), ""), 240)  # without an answer, the probe's
        name = study.names[study.places[trial.model.id]]
        tag = tag_of(state or "queued", bool(leaked))
        yield ListedRow(trial, name, state or "queued", answer or "", why or "", first, quote or "", tag)


def tag_of(state: str, is_leaked: bool) -> str:
    """The classes of a state's tag: a trial that did not break, and did harm unasked, is "held leaked"."""
    return f"{state} leaked" if is_leaked and state != "broke" else state


def rows_of(study: OpenStudy, indices: list[int]) -> dict[int, ListedRow]:
    """These trials, by index; those without an answer have the state "queued"."""
    marks = ",".join("?" * len(indices))
    with study.index.reading() as rows:
        wanted = f"SELECT {_COLUMNS} FROM trials LEFT JOIN texts USING (idx) WHERE idx IN ({marks})"
        by_index: dict[int, _Listed] = {row[0]: row for row in rows.execute(wanted, indices)}
    every = [by_index.get(index, (index, None, None, None, None, None, None)) for index in indices]
    return {row.trial.index: row for row in _rows(study, every)}


class Neighbours(NamedTuple):
    """The trials next to one in its list; None at an end."""

    before: int | None
    after: int | None


def neighbours(study: OpenStudy, filters: Filters, index: int) -> Neighbours:
    """The trials next to this one, under the same filters."""
    where, values = filters.where()
    matching, edge = _FINDS if Search(filters.text) else "", _edge(study, filters)
    of = f"SELECT idx FROM trials WHERE {where}{matching} AND place"
    with _searching(study, filters) as rows:
        neighbours = rows.execute(
            f"SELECT ({of} < {edge} ORDER BY place DESC LIMIT 1), ({of} > {edge} ORDER BY place LIMIT 1)",
            values | {"at": index},
        ).fetchone()
    return Neighbours(*neighbours)


class Stored(NamedTuple):
    """Where a trial's rows are in their files: first byte and length; a verdict of length 0: none."""

    state: str
    response: tuple[int, int]
    verdict: tuple[int, int]


def stored(study: OpenStudy, index: int) -> Stored | None:
    """The place of a trial's rows; None without an answer."""
    with study.index.reading() as rows:
        wanted = "SELECT state, r_off, r_len, v_off, v_len FROM trials WHERE idx = ? AND r_off IS NOT NULL"
        row = rows.execute(wanted, (index,)).fetchone()
    if row is None:
        return None
    state, r_off, r_len, v_off, v_len = row
    return Stored(state, (r_off, r_len), (v_off or 0, v_len or 0))


# --- a conversation as a page shows it ----------------------------------------------------------------
# The rows are read from the study's files at the place that the index names, and are those of the trial. A
# mark is a place in the text, and what is cut is counted.

LIMIT = 20_000  # characters of one text on a page
_EVIDENCE = 400  # characters of evidence that are looked for; judges write at most 200


class TextPart(NamedTuple):
    """A text with its marks, and how many characters were left out at its end."""

    pieces: tuple[Piece, ...]
    n_cut: int


class ShownCall(NamedTuple):
    """A call of a tool. `is_marked`: the evidence names it."""

    name: str
    arguments: str
    is_marked: bool


class Step(NamedTuple):
    """One request and its reply. `asked` is what is new in the request, and `turns` the same by turn."""

    asked: TextPart
    turns: tuple[PromptTurn, ...]
    prefill: TextPart
    answer: TextPart
    calls: tuple[ShownCall, ...]
    passages: tuple[tuple[str, TextPart], ...]  # retrieved: citation and text
    guarded: tuple[str, ...]
    stop: str


class Transcript(NamedTuple):
    """A trial with its whole conversation. `verdict`: None before it is judged, or if on another answer."""

    trial: Trial
    state: str
    response: Response
    verdict: Verdict | None
    steps: tuple[Step, ...]

    @property
    def explanation(self) -> Explanation:
        """The verdict in a sentence, and what shows it."""
        if self.verdict is None:
            return Explanation("")
        return explain(self.verdict, self.trial.probe.check, self.trial.probe.kind == "benign")

    @property
    def tag(self) -> str:
        """Its state, and whether it leaked."""
        return tag_of(self.state, self.verdict is not None and bool(self.verdict.unprompted))

    @property
    def is_marked(self) -> bool:
        """Whether evidence is marked in an answer or at a call."""
        return any(
            any(piece.kind == "found" for piece in step.answer.pieces) or any(c.is_marked for c in step.calls)
            for step in self.steps
        )


def read(study: OpenStudy, index: int) -> Transcript | None:
    """The conversation of a trial; None before it has an answer.

    Raises UsageError for an index outside the plan, and Damaged if the row is not there any more.
    """
    if not 0 <= index < len(study.grid):
        raise UsageError(f"The plan has the trials 0 to {len(study.grid) - 1}.")
    row = stored(study, index)
    if row is None:
        return None
    response, verdict = _stored_rows(study, row)
    trial = study.grid.trial(index)
    is_own = verdict is not None and row.state != "unjudged"
    steps = tuple(_steps(response.exchanges, _evidence(verdict) if verdict is not None and is_own else []))
    return Transcript(trial, row.state, response, verdict if is_own else None, steps)


def _stored_rows(study: OpenStudy, stored: Stored) -> tuple[Response, Verdict | None]:
    path = study.folder / RESPONSES
    try:
        response = msgspec.json.decode(_bytes(path, *stored.response), type=Response)
        verdict = None
        if stored.verdict[1]:
            line = _bytes(study.folder / VERDICTS, *stored.verdict)
            verdict = msgspec.json.decode(line, type=Verdict)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError):
        raise _moved(path) from None
    if not is_of_its_trial(response, study.grid) or (verdict and verdict.index != response.index):
        raise _moved(path)
    return response, verdict


def _bytes(path: Path, offset: int, n: int) -> bytes:
    with open_file(path) as file:
        file.seek(offset)
        return file.read(n)


def _moved(path: Path) -> Damaged:
    return Damaged(f"{path}: the row is not where it was. Load the page again.")


def prompts(study: OpenStudy, response: Response) -> list[Shown]:
    """The whole text that the model saw, of each request, and how many characters were cut from its end."""
    prefixes = Prefixes(study.folder)
    return [shown(prefixes.prompt(exchange), 10 * LIMIT) for exchange in response.exchanges]


def _evidence(verdict: Verdict) -> list[str]:
    """The evidence that is marked in an answer, the gravest first: a text has one mark."""
    unasked = () if verdict.unprompted is UNSET else verdict.unprompted
    evidence = [verdict.evidence, *(each.evidence for each in unasked)]
    return [
        each[:_EVIDENCE]
        for each in (evidence if verdict.outcome == "broke" else [*evidence[1:], evidence[0]])
    ]


def _marked(text: str, evidence: Sequence[str], calls: Sequence[str]) -> list[Piece]:
    every = (with_evidence(text, each, calls) for each in evidence)
    return next((pieces for pieces in every if any(piece.kind for piece in pieces)), [Piece(text)])


def _steps(exchanges: Sequence[Exchange], evidence: Sequence[str]) -> Iterator[Step]:
    for exchange, asked in zip(exchanges, new_parts(exchanges), strict=True):
        passages = () if exchange.retrieved is UNSET else exchange.retrieved
        marked = partial(_marked, evidence=evidence, calls=[call.name for call in exchange.tool_calls])
        yield Step(
            _part(asked, with_tokens), tuple(turns(shown(asked, LIMIT).text)),
            _part(exchange.prefill, with_tokens), _part(exchange.text, marked),
            tuple(_call(call, evidence) for call in exchange.tool_calls[:50]),
            tuple((passage.citation, _part(passage.text, with_tokens)) for passage in passages),
            () if exchange.guarded is UNSET else exchange.guarded, exchange.stop,
        )  # fmt: skip


def _call(call: ToolCall, evidence: Sequence[str]) -> ShownCall:
    arguments = shown(msgspec.json.encode(call.arguments).decode(errors="replace"), 2000).text
    return ShownCall(call.name, arguments, bool(call.name) and any(call.name in each for each in evidence))


def _part(text: str, cut: Callable[[str], list[Piece]]) -> TextPart:
    kept = shown(text, LIMIT)
    return TextPart(tuple(cut(kept.text)), kept.n_cut)


CODES = {
    "held": HELD, "answered": HELD, "broke": BROKE, "refused": BROKE, "unclear": UNCLEAR, "error": ERROR,
    "skipped": SKIPPED, OUTSIDE: SKIPPED, UNJUDGED: 0,
}  # fmt: skip


class ShownRate(NamedTuple):
    """A rate with its interval. n_counted: the trials it is the share of. is_final: of a finished study."""

    estimate: Estimate
    n_counted: int
    is_final: bool


class StoppingState(NamedTuple):
    """The pairs of models that are decided, and the interim analyses so far.

    n_to_next: trials without a verdict that the next analysis needs; 0 if there is no more analysis.
    """

    n_decided: int
    n_pairs: int
    n_interim: int
    n_interim_planned: int
    n_to_next: int


class Board:
    """The outcomes of a study at one moment.

    estimates: those of the study, if they are about these very rows; else None.
    """

    def __init__(self, study: OpenStudy, codes: outcomes.Codes) -> None:
        self._study, self.outcomes = study, Outcomes(study.plan, codes)
        self.estimates, self.why_not = _current(study, int(np.count_nonzero(codes)))
        self._rates: dict[tuple[int, str, Measure], ShownRate | None] = {}
        self._probes = lru_cache(self.outcomes.probes)  # asked again for every model

    def rate(self, model: int, technique: str, measure: Measure) -> ShownRate | None:
        """The rate of a cell or scope; None without a trial that counts."""
        key = model, technique, measure
        if key not in self._rates:
            if self.estimates is None:
                self._rates[key] = self._running(*key)
            else:
                rate = find(self.estimates, self._study.plan.models[model].id, technique, ALL, measure)
                has_value = rate is not None and rate.estimate.value is not None
                self._rates[key] = (
                    ShownRate(rate.estimate, rate.n_counted, True) if rate and has_value else None
                )
        return self._rates[key]

    def _running(self, model: int, technique: str, measure: Measure) -> ShownRate | None:
        probes = self._probes(technique, measure)
        if not probes:
            return None
        codes = self.outcomes.scored_of(model, ALL, probes)
        counts = self.outcomes.in_rate(codes)
        if not counts.any():
            return None
        broke = codes[counts] == BROKE
        clusters = self.outcomes.clusters_of(ALL, probes)[counts]
        rate = Intervals.while_asking(self._study.plan).rate(broke, clusters)
        return ShownRate(rate, int(np.count_nonzero(broke)), False)

    @property
    def main_scope(self) -> str:
        """The scope of the verdicts; before there are estimates, the first that is asked; "" for none."""
        if self.estimates is not None:
            return self.estimates.main_scope()
        return next(iter(self.outcomes.breach_scopes), "")

    def alone(self, scope: str) -> list[tuple[int, ...]]:
        """By model the trials of a scope, or of all breach probes for "", that no other model broke."""
        outcomes, plan = self.outcomes, self._study.plan
        wanted = [p for p, each in enumerate(plan.probes) if each.kind == "breach"]
        probes = outcomes.probes(scope, "breach") if scope else wanted
        codes = [outcomes.scored_of(m, ALL, probes) for m in range(len(plan.models))]
        counts = np.logical_and.reduce([outcomes.in_rate(each) for each in codes])
        broke = np.array([each == BROKE for each in codes])
        is_alone = counts & (broke.sum(axis=0) == 1)
        places = [outcomes.indices_of(m, ALL, probes)[is_alone & broke[m]] for m in range(len(codes))]
        return [tuple(each.tolist()) for each in places]

    def is_judge_free(self, technique: str) -> bool:
        """Whether a deterministic check decides its breaches."""
        probes = [p for p in self._study.plan.probes if p.technique == technique and p.kind == "breach"]
        return bool(probes) and not any(is_judged(probe.check) for probe in probes)

    @cached_property
    def stopping(self) -> StoppingState | None:
        """Of a plan that stops early, its state by the rows so far; None for others."""
        if not self._study.plan.stops_early:
            return None
        rule = StoppingRule(self.outcomes).replay()
        record, n_to_next = rule.record(), 0
        if not rule.is_over:
            low, high = rule.block()
            is_open = (self.outcomes.array == 0) & in_scope(self._study.plan)[:, :, None]
            n_to_next = int(np.count_nonzero(is_open[rule.open_models, :, low:high]))
        n_decided = sum(each.interim is not None for each in record.decisions)
        return StoppingState(
            n_decided, len(record.decisions), record.n_interim, record.n_interim_planned, n_to_next
        )


def board_of(study: OpenStudy) -> Board:
    """The outcomes as the index has them now; made once for the same rows."""
    version = (*study.index.version(), *study.stamp())
    if study.board is None or study.board[0] != version:
        codes = np.zeros(len(study.grid), np.int8)
        with study.index.reading() as rows:
            # One text of numbers a state: a row for each trial takes several times as long.
            by_state = "SELECT state, group_concat(idx) FROM trials WHERE state IS NOT NULL GROUP BY state"
            for state, places in rows.execute(by_state):
                codes[np.fromstring(places, np.intp, sep=",")] = CODES.get(state, 0)
        study.board = version, Board(study, codes)
    board = study.board[1]
    assert isinstance(board, Board)
    return board


def _current(study: OpenStudy, n_judged: int) -> tuple[Estimates | None, str]:
    """The estimates, if they are about all the rows that there are; else why they are not shown."""
    estimates = study.estimates()
    if estimates is None or not study.is_whole:  # the page says that its rows are still being read
        return None, ""
    if isinstance(estimates, HeredityError):
        return None, str(estimates)
    if estimates.study != study.saved.study:
        return None, "estimates.json is of another study, so it is not shown."
    if estimates.n_asked != n_judged:
        return None, "estimates.json is older than the rows, so rates are computed from the rows."
    return estimates, ""


# --- verdicts -----------------------------------------------------------------------------------------
# Every word is that of the report (study/headline.py, study/wording.py); nothing is computed here.

Kind = Literal["worse", "same", "unknown"]
_KINDS: dict[str, Kind] = {"worse": "worse", "not worse": "same", "not enough evidence": "unknown"}
_MAX_CHIPS = 3


class Chip(NamedTuple):
    """A verdict in a few words; `kind` is its class in the style sheet."""

    text: str
    kind: Kind


def chips(estimates: Estimates) -> list[Chip]:
    """The verdicts of a study, the gravest first: on its children, or else on its pairs of models."""
    edges = edge_verdicts(estimates)
    if edges:
        return list(_of_edges(edges, estimates))
    scope = estimates.main_scope()
    pairs = [p for p in estimates.pairs if (p.measure, p.technique) == ("breach", scope)]
    made = [_of_pair(pair, names(estimates.models)) for pair in pairs]
    order: list[Kind] = ["worse", "same", "unknown"]
    made.sort(key=lambda chip: order.index(chip.kind))
    left = len(made) - _MAX_CHIPS
    return made[:_MAX_CHIPS] + ([Chip(f"and {left} more", "unknown")] if left > 0 else [])


def _of_edges(edges: dict[tuple[str, str], EdgeVerdict], estimates: Estimates) -> Iterator[Chip]:
    called = names(estimates.models)
    order = sorted(edges.values(), key=lambda row: list(EDGE_KINDS).index(row.word))
    if len(edges) <= _MAX_CHIPS:
        for row in order:
            yield Chip(f"{called[row.child]}: {row.word}, against {called[row.parent]}", _KINDS[row.kind])
        return
    for word, n in Counter(row.word for row in order).items():
        yield Chip(f"{n} of {len(edges)} children: {word}", _KINDS[EDGE_KINDS[word]])


def _of_pair(pair: ModelPair, called: dict[str, str]) -> Chip:
    a, b = called[pair.a], called[pair.b]
    if pair.verdict_ab == "worse":
        return Chip(f"{b}: worse than {a}", "worse")
    if pair.verdict_ba == "worse":
        return Chip(f"{a}: worse than {b}", "worse")
    if pair.verdict_ab == pair.verdict_ba == "not worse":
        return Chip(f"{a} and {b}: not worse than each other", "same")
    return Chip(f"{a} and {b}: not enough evidence", "unknown")
