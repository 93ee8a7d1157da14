"""A study's trials as rows in the plan's order, whatever their order on disk, in constant memory.

Promises: memory is 16 bytes per trial and one row. Each row is checked to belong to this plan. The same study
gives the same rows in the same order. Files are written atomically.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Generic, NamedTuple, Self, TypeVar

import msgspec
import numpy as np

from heredity.core.errors import Damaged, NotComparable
from heredity.core.files import explain_full_disk, open_file, read_lines, replacing
from heredity.core.records import Exchange, Probe, Response, Verdict
from heredity.core.sanitize import Shown, label, shown
from heredity.redteam.checks import did
from heredity.study import wording
from heredity.study.advice import Advice
from heredity.study.estimates import ALL, ModelCard
from heredity.study.outcomes import Outcomes, breach_order, is_part, read_codes
from heredity.study.plan import Grid, Plan, Trial, model_of_study
from heredity.study.storage import RESPONSES, VERDICTS
from heredity.study.turns import Piece, new_parts, with_evidence

# Kinds in the order in which they are shown, with how many of each a model and technique get.
WANTED = {"broke": 2, "held": 1, "refused": 1, "answered": 0, "unclear": 1, "error": 1, "not asked": 0}
_CODES = {kind: code for code, kind in enumerate(WANTED, 1)}  # 0: no verdict yet
_ALIKE = (("unclear", "unclear"), ("error", "error"), ("not asked", "not asked"))
_KINDS = (
    ("held", "answered"),
    ("broke", "refused"),
    *_ALIKE,
)  # of a probe, of a twin: by code of Outcomes
_BY_CODE = np.array([(0, 0), *((_CODES[of], _CODES[of_twin]) for of, of_twin in _KINDS)], np.uint8)


# --- samples -----------------------------------------------------------------------------------------
# A random sample of conversations for the report, drawn from the verdicts, and grouped for its page.
# Promises: the sample is random, seeded by the study's digest, and drawn before any answer is read, so
# nobody can choose convenient ones. Memory is one byte per row. Rows of
# another application or plan are refused. The quoted breach is of the model and technique that the advice
# names, if one was drawn. Of each technique, the breach that is shown first is one that nobody doubts
# (outcomes.breach_order).
class TranscriptStep(NamedTuple):
    """One request and its reply, cut to a readable length."""

    asked: Shown
    prefill: Shown
    answer: Shown
    calls: tuple[str, ...]
    stop: str


class Sample(NamedTuple):
    """A conversation as shown. `n_same`: the number of trials of this model, technique and kind.

    severity   of a breach of its probe; 0 for none
    unasked    what it did that its probe did not ask for, in words; "" for nothing
    order      its place among breaches: breach_order, then those with the text that the check wants as it is
    """

    row: int  # its field `index`
    trial: str
    model: str
    technique: str
    attack: str
    probe: str
    kind: str
    n_same: int
    judge: str
    manner: str
    evidence: str
    error: str
    severity: int
    unasked: str
    steps: tuple[TranscriptStep, ...]
    order: tuple[bool, int, bool, bool]


class _Chosen(NamedTuple):
    kind: str
    technique: str
    n_same: int


def draw(folder: Path, plan: Plan, study: str, techniques: Sequence[str], with_text: bool) -> list[Sample]:
    """The conversations to show, by technique, model and kind; without text, no prompts or answers."""
    chosen = choose(outcomes(folder, plan), plan, study, techniques)
    with TrialTable(folder, plan, {}, with_text) as table:
        drawn = {index: table.stored(index) for index in chosen}
    return [
        _sample(chosen[index], table.grid.trial(index).probe, verdict, response, with_text)
        for index, (response, verdict) in drawn.items()
        if response is not None and verdict is not None
    ]


def outcomes(folder: Path, plan: Plan) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """One code per trial, in the plan's order; 0 without a verdict."""
    judged = Outcomes(plan, read_codes(plan, folder))
    return _BY_CODE[judged.codes, judged.twin_trials.astype(np.intp)]


def choose(
    codes: np.ndarray[tuple[int], np.dtype[np.uint8]], plan: Plan, study: str, techniques: Sequence[str]
) -> dict[int, _Chosen]:
    """Indices of the trials to show, in the order of the report, with the number of trials of their kind."""
    cells = codes.reshape(plan.shape)
    places = np.arange(codes.size).reshape(plan.shape)
    generator = np.random.default_rng(int(study[:16] or "0", 16))
    by_index: dict[int, _Chosen] = {}
    for technique in techniques:
        of = [i for i, probe in enumerate(plan.probes) if probe.technique == technique]
        for m in range(len(plan.models)):
            own, where = cells[m][:, of], places[m][:, of]
            for kind, n in WANTED.items():
                alike = where[own == _CODES[kind]]
                picked = sorted(generator.choice(alike, min(n, alike.size), replace=False).tolist())
                by_index |= {index: _Chosen(kind, technique, int(alike.size)) for index in picked}
    return by_index


def _sample(chosen: _Chosen, probe: Probe, verdict: Verdict, response: Response, with_text: bool) -> Sample:
    return Sample(
        row=response.index,
        trial=label(response.trial, 40),
        model=response.model,
        technique=chosen.technique,
        attack=label(response.attack),
        probe=label(response.probe),
        kind=chosen.kind,
        n_same=chosen.n_same,
        judge=label(verdict.judge),
        manner=verdict.manner or "",
        evidence=label(verdict.evidence, 200) if with_text else "",
        error=label(response.error or verdict.error or "", 300) if with_text else "",
        severity=probe.severity or 0,
        unasked="; ".join(did(each.check) for each in verdict.unprompted or ()),
        steps=tuple(_steps(response.exchanges)) if with_text else (),
        order=(
            *breach_order(probe),
            not any(
                probe.check.text.casefold() in exchange.text.casefold() for exchange in response.exchanges
            ),
        ),
    )


def _steps(exchanges: Sequence[Exchange]) -> Iterator[TranscriptStep]:
    for exchange, asked in zip(exchanges, new_parts(exchanges), strict=True):
        calls = tuple(
            label(f"{call.name} {msgspec.json.encode(call.arguments).decode(errors='replace')}", 300)
            for call in exchange.tool_calls[:8]
        )
        yield TranscriptStep(
            shown(asked), shown(exchange.prefill, 400), shown(exchange.text), calls, exchange.stop
        )


# --- the conversations on the page --------------------------------------------------------------------

_OPEN = 40  # transcripts of a page that are open from the start; a page of more is slow to read and to draw
_ASKED, _SAID, _PLANTED = 200, 260, 400  # characters of the quoted breach


class Talk(NamedTuple):
    """A conversation, and whether it is open when the page is."""

    sample: Sample
    is_open: bool


class TalkGroup(NamedTuple):
    """The conversations of one model in one technique: breaches first, the worst at the top."""

    model: str
    talks: tuple[Talk, ...]


class Quote(NamedTuple):
    """A breach in a few lines: what the user asked last, and the answer around its evidence.

    planted: the text of the probe that the model read elsewhere, such as in a passage; "" for none
    """

    sample: Sample
    asked: str
    planted: str
    answer: list[Piece]
    is_cut: bool


def by_technique(samples: Sequence[Sample], order: dict[str, int]) -> dict[str, list[TalkGroup]]:
    """The groups of every technique, by model. The first breach of each group is open, up to a limit."""
    kinds = list(WANTED)
    by_attack: dict[str, dict[str, list[Sample]]] = {}
    for sample in sorted(samples, key=lambda s: (kinds.index(s.kind), s.order, s.row)):
        by_attack.setdefault(sample.technique, {}).setdefault(sample.model, []).append(sample)
    firsts = [of[0] for models in by_attack.values() for of in models.values() if of[0].kind == "broke"]
    is_open = {sample.row for sample in firsts[:_OPEN]}
    return {
        technique: [
            TalkGroup(model, tuple(Talk(sample, sample.row in is_open) for sample in of))
            for model, of in sorted(models.items(), key=lambda item: order.get(item[0], 0))
        ]
        for technique, models in by_attack.items()
    }


def pieces(sample: Sample, text: str) -> list[Piece]:
    """A text of the model with the judge's evidence marked."""
    names = [call.partition(" ")[0] for step in sample.steps for call in step.calls]
    return with_evidence(text, sample.evidence, names)


def quote(samples: Iterable[Sample], advice: Advice, plan: Plan) -> Quote | None:
    """The breach for the first screen; None if no transcript of one was drawn."""
    quote = min(
        _broken(samples),
        key=lambda s: (s.model != advice.model, s.technique != advice.technique, s.order, s.row),
        default=None,
    )
    return None if quote is None else _quoted(quote, Grid(plan))


def by_order(samples: Iterable[Sample], plan: Plan) -> dict[str, Quote]:
    """The first breach of each technique by breach_order, in this order."""
    first: dict[str, Sample] = {}
    for sample in sorted(_broken(samples), key=lambda s: (s.order, s.row)):
        first.setdefault(sample.technique, sample)
    grid = Grid(plan)
    return {technique: _quoted(sample, grid) for technique, sample in first.items()}


def _broken(samples: Iterable[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.kind == "broke" and sample.steps]


def _quoted(sample: Sample, grid: Grid) -> Quote:
    probe = grid.trial(sample.row).probe
    planted = probe.passage or (probe.tool_result.text if probe.tool_result else "")
    texts = [step.answer.text for step in sample.steps if step.answer.text.strip()]
    calls = [call for step in sample.steps for call in step.calls]
    marked = [text for text in (*calls, *texts) if any(piece.kind for piece in pieces(sample, text))]
    quoted, is_cut = _around(pieces(sample, (marked or texts or calls or ["(nothing)"])[-1]))
    asked = shown(probe.turns[-1] if probe.turns else "", _ASKED).text
    return Quote(sample, asked, shown(planted, _PLANTED).text, quoted, is_cut)


def _around(pieces: list[Piece]) -> tuple[list[Piece], bool]:
    """The parts cut to a few lines around the mark, and whether anything was cut."""
    before = pieces[0].text if not pieces[0].kind else ""
    n_before = len(before)
    start = max(0, n_before - _SAID // 2) if len(pieces) > 1 else 0
    left, kept = _SAID, []
    for i, piece in enumerate(pieces):
        text = piece.text[start if i == 0 and not piece.kind else 0 :][:left]
        left -= len(text)
        kept += [piece._replace(text=text)] if text else []
    return kept, sum(len(piece.text) for piece in pieces) > sum(len(piece.text) for piece in kept)


_MAX_RANGES = 6  # more than these make no readable filter; the rows are then found by probe name
LEFT_OUT = "an error (its text is left out)"
_PREFIX = b'{"index":'
_Stored = TypeVar("_Stored", Response, Verdict)


class TrialRow(msgspec.Struct, frozen=True, kw_only=True):
    """A trial as a flat row. Names are as in the study's files; unknown values are None.

    model         the model's name in every report; `model_id` is its id
    application   the application's digest
    outcome       None if it is not judged, and for an error
    evidence, error, text   exact and untrusted. Without text: None, LEFT_OUT, None
    n_prompt_tokens, n_tokens, text   of every exchange of the trial together
    stop          of the last exchange
    severity      of a breach of the probe, from 4 (critical) to 1
    guarded       what guards found in all exchanges, separated by "; "
    withheld      the model's own text of each exchange that guards changed
    """

    trial: str
    index: int
    model: str
    model_id: str
    application: str
    technique: str
    probe: str
    kind: str
    twin: str | None
    cluster: str
    attack: str
    sample: int
    seed: int
    outcome: str | None
    manner: str | None
    judge: str | None
    evidence: str | None
    stop: str | None
    n_prompt_tokens: int
    n_tokens: int
    error: str | None
    text: str | None
    severity: int | None = None
    guarded: str | None = None
    withheld: str | None = None


TEXTS = ("evidence", "text", "withheld")  # columns that only a report with text has


def columns(with_text: bool) -> list[str]:
    """The columns of a table of rows, in order."""
    return [name for name in TrialRow.__struct_fields__ if with_text or name not in TEXTS]


def chosen_names(models: Sequence[ModelCard], chosen: Sequence[str] = ()) -> dict[str, str]:
    """The names of the models by id; of the chosen ones only, if any are. Raises UnknownName, UsageError."""
    ids = {model_of_study(models, name).id for name in chosen}
    return {ident: name for ident, name in wording.names(models).items() if not ids or ident in ids}


class TrialTable:
    """Random access to a study's rows on disk by the trial's index. A context manager.

    called: the names of the models, by id; rows of other models are left out.
    """

    def __init__(self, folder: Path, plan: Plan, called: dict[str, str], with_text: bool = True) -> None:
        self.grid, self._folder, self._called, self._with_text = Grid(plan), folder, called, with_text
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:  # the first is closed if the second is damaged
            enter, n = opened.enter_context, len(self.grid)
            self._responses = enter(_Offsets(self._folder / RESPONSES, n, Response))
            self._verdicts = enter(_Offsets(self._folder / VERDICTS, n, Verdict))
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[TrialRow]:
        """Every trial of these models that has a response, in the plan's order."""
        of = (m for m, model in enumerate(self.grid.plan.models) if model.id in self._called)
        return (row for m in of for index in self.grid.of_model(m) if (row := self.row(index)) is not None)

    def row(self, index: int) -> TrialRow | None:
        """One trial; None if it was not asked. Raises NotComparable for a row of another plan."""
        response, verdict = self.stored(index)
        return None if response is None else self._row(self.grid.trial(index), response, verdict)

    def stored(self, index: int) -> tuple[Response | None, Verdict | None]:
        """The rows of one trial as they are stored. Raises NotComparable for those of another plan."""
        response, verdict = self._responses.get(index), self._verdicts.get(index)
        for stored, place in ((response, RESPONSES), (verdict, VERDICTS)):
            if stored is not None and stored.trial != self.grid.trial(index).id:
                raise NotComparable(
                    f"{place}: trial {index} is not of this plan. Use the study's own files.",
                    code="another-study",
                )
        if response is not None and response.application != self.grid.application:
            raise NotComparable(
                f"{RESPONSES}: trial {index} was asked under another application "
                f"({label(response.application, 12)}) than the plan's ({self.grid.application[:12]})."
            )
        return response, verdict

    def exchanges(self, index: int) -> tuple[Exchange, ...]:
        """The exchanges of a trial; none if texts are left out."""
        response = self._responses.get(index) if self._with_text else None
        return response.exchanges if response is not None else ()

    def _row(self, trial: Trial, response: Response, verdict: Verdict | None) -> TrialRow:
        probe, exchanges, with_text = trial.probe, response.exchanges, self._with_text
        error = response.error or (verdict.error if verdict is not None else None)
        return TrialRow(
            trial=trial.id,
            index=trial.index,
            model=self._called[trial.model.id],
            model_id=trial.model.id,
            application=self.grid.application,
            technique=probe.technique,
            probe=probe.id,
            kind=probe.kind,
            twin=probe.twin,
            cluster=probe.cluster,
            attack=trial.attack,
            sample=trial.sample,
            seed=trial.seed,
            outcome=verdict.outcome if verdict is not None else None,
            manner=verdict.manner if verdict is not None else None,
            judge=verdict.judge if verdict is not None else None,
            evidence=verdict.evidence if verdict is not None and with_text else None,
            stop=exchanges[-1].stop if exchanges else None,
            n_prompt_tokens=sum(exchange.n_prompt_tokens for exchange in exchanges),
            n_tokens=sum(exchange.n_tokens for exchange in exchanges),
            error=error if error is None or with_text else LEFT_OUT,
            text="\n".join(exchange.text for exchange in exchanges) if with_text and exchanges else None,
            severity=probe.severity or None,
            guarded="; ".join(dict.fromkeys(note for e in exchanges for note in e.guarded or ())) or None,
            withheld="\n".join(e.withheld for e in exchanges if e.withheld) or None if with_text else None,
        )


class _Offsets(Generic[_Stored]):
    """The byte offset of each row of a JSONL file, by its field `index`: eight bytes per trial."""

    def __init__(self, path: Path, n_trials: int, kind: type[_Stored]) -> None:
        self._path = path
        self._decoder: msgspec.json.Decoder[_Stored] = msgspec.json.Decoder(kind)
        self._starts = array("Q", bytes(8 * n_trials))  # place + 1; 0: no such row
        self._n_trials = n_trials

    def __enter__(self) -> Self:
        self._file: BinaryIO = open_file(self._path) if self._path.exists() else io.BytesIO()
        try:
            self._find()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _find(self) -> None:
        place = 0
        for number, line in enumerate(read_lines(self._path), 1):
            if not line.endswith(b"\n"):
                return  # torn by a crash: its trial is asked again
            self._starts[self._index(line, number)] = place + 1
            place += len(line)

    def get(self, index: int) -> _Stored | None:
        if not self._starts[index]:
            return None
        self._file.seek(self._starts[index] - 1)
        try:
            return self._decoder.decode(self._file.readline())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Damaged(
                f"{self._path}: trial {index}: {label(str(error), 200)}. Run the same study again."
            ) from None

    def _index(self, line: bytes, number: int) -> int:
        try:
            # `index` is the first field of every row that heredity writes; decoding the rest is for later
            is_usual = line.startswith(_PREFIX)
            index = int(line[9 : line.index(b",", 9)]) if is_usual else self._decoder.decode(line).index
            if 0 <= index < self._n_trials:
                return index
        except (ValueError, msgspec.DecodeError):
            pass
        raise Damaged(f"{self._path}:{number}: not a row of this study. Remove that line to continue.")


@contextmanager
def whole(out: Path) -> Iterator[BinaryIO]:
    """Open a file for writing in parts; it gets its name at the end, or does not appear at all."""
    with replacing(out) as temporary, explain_full_disk(out.parent, 0), temporary.open("wb") as file:
        yield file


# --- the rows behind a cell of a report ---------------------------------------------------------------


def ranges(plan: Plan, model: str, technique: str, attack: str = ALL) -> list[tuple[int, int]]:
    """First and last index of each run of rows behind a cell, in the plan's order.

    Breach probes bring their benign twins, which are adjacent rows with verdicts of another kind.
    """
    own = {p.id for p in plan.probes if is_part(p, technique)}
    of = [i for i, p in enumerate(plan.probes) if p.id in own or (p.kind == "benign" and p.twin in own)]
    models = [i for i, card in enumerate(plan.models) if card.id == model]
    attacks = [i for i, name in enumerate(plan.attacks) if attack in (ALL, name)]
    per_attack = len(plan.probes) * plan.samples
    starts = (
        (m * len(plan.attacks) + a) * per_attack + p * plan.samples
        for m in models
        for a in attacks
        for p in of
    )
    runs: list[tuple[int, int]] = []
    for start in starts:
        if runs and runs[-1][1] == start - 1:
            runs[-1] = (runs[-1][0], start + plan.samples - 1)
        else:
            runs.append((start, start + plan.samples - 1))
    return runs


def ranges_words(plan: Plan, model: str, technique: str) -> str:
    """The rows behind a cell, as ranges of `index`."""
    lines = ranges(plan, model, technique)
    if len(lines) > _MAX_RANGES:
        return f"{len(lines)} runs: filter by model and probe"
    return ", ".join(f"{first}–{last}" for first, last in lines)


def jq_condition(plan: Plan, model: str, technique: str) -> str:
    """A jq condition that picks the first rows of a cell out of verdicts.jsonl."""
    lines = ranges(plan, model, technique)[:_MAX_RANGES]
    return " or ".join(f"(.index >= {first} and .index <= {last})" for first, last in lines)
