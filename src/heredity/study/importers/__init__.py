"""Import answers that another tool recorded as a study, which heredity judges, compares and reports.

Each file here without an underscore handles one format: to add one, add a file with the members of
AnswerImporter.

Promises: the same files give the same study, and models are paired by prompt. An answer that one model lacks
becomes an error row. A missing column is an error with file, line and the nearest name. An ambiguous verdict
is refused. Nothing here claims that all models had the same application. The files are read twice, and no
answer is kept in memory. `responses.jsonl` is written last.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from heredity import stats
from heredity.application.spec import Application
from heredity.core import __version__, registry
from heredity.core.errors import BadInput, UnknownName, UsageError, did_you_mean, nearest
from heredity.core.files import Lock, Rows, open_file, replacing, write_atomic
from heredity.core.readers import unreadable
from heredity.core.records import (
    RECORDED,
    SCHEMA,
    Check,
    Estimate,
    Exchange,
    Probe,
    Record,
    Response,
    Stop,
    ToolCall,
    Usefulness,
    digest,
    encode,
)
from heredity.core.sanitize import clean_text, label
from heredity.core.sections import TextTable
from heredity.study import wording
from heredity.study.estimates import SCOPES, Estimates, LackingFile, Table2x2
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, HELD, Outcomes
from heredity.study.plan import Grid, Plan, PlannedModel, TrialSet, read_plan, write_plan
from heredity.study.resolve import declare
from heredity.study.storage import RESPONSES, RUNS, RunRecord, open_verdicts, write_lacking
from heredity.study.wording import interval, p_words, percent, points, points_interval

FILE = "agreement.json"
OWN = "heredity"  # the judge that the study itself used
ALL = "all"
_Codes = NDArray[np.int8]


# --- agreement ---------------------------------------------------------------------------------------
# Compare heredity's verdicts with those of other judges: rates, pairs of models, and agreement. Promises:
# every judge is counted on the decided trials of the same breach probes, with n. Models are paired by
# prompt. Agreement comes with Cohen's kappa, which corrects for chance, and with intervals.
class JudgedRate(Record, frozen=True):
    """How often one model broke by one judge; `estimate.n` are the trials that this judge decided."""

    judge: str
    model: str
    n_broke: int
    estimate: Estimate


class JudgedPair(Record, frozen=True):
    """Two models on the same prompts by one judge. `difference` is the rate of `b` minus that of `a`."""

    judge: str
    a: str
    b: str
    table: Table2x2
    n: int
    difference: Estimate
    p_value: float
    test: str


class Agreement(Record, frozen=True):
    """Two judges on the answers that both decided; `model` is a model's id or "all"."""

    a: str
    b: str
    model: str
    table: Table2x2  # broke by both, only by `a`, only by `b`, by neither
    n: int
    agreement: Estimate
    kappa: Estimate


class Agreements(Record, frozen=True):
    """agreement.json."""

    judges: tuple[str, ...]
    rates: tuple[JudgedRate, ...]
    pairs: tuple[JudgedPair, ...]
    agreements: tuple[Agreement, ...]
    schema: int = SCHEMA


def agreement(folder: Path) -> Agreements:
    """Compute agreement.json from the verdicts in `folder`, and save it."""
    compared = agreements(folder)
    write_atomic(folder / FILE, msgspec.json.format(msgspec.json.encode(compared), indent=1) + b"\n")
    return compared


def agreements(folder: Path) -> Agreements:
    """Compute the content of agreement.json from the verdicts in `folder`."""
    planned = read_plan(folder)
    codes = _codes(folder, planned)
    numbers: dict[str, int] = {}
    of = [numbers.setdefault(probe.cluster, len(numbers)) for probe in planned.probes]
    clusters = np.tile(np.repeat(np.array(of, np.int64), planned.samples), len(planned.attacks))
    parts = [(model.id, slice(m, m + 1)) for m, model in enumerate(planned.models)]
    parts = [(ALL, slice(None)), *parts] if len(parts) > 1 else parts  # all models together, then each
    return Agreements(
        judges=tuple(codes),
        rates=tuple(
            _rate(judge, planned, of, m, clusters) for judge, of in codes.items() for m in range(len(of))
        ),
        pairs=tuple(
            _pair(judge, planned, of, a, b, clusters)
            for judge, of in codes.items()
            for a, b in combinations(range(len(of)), 2)
        ),
        agreements=tuple(
            _agreement(first, second, model, codes[first][part], codes[second][part], Intervals.of(planned))
            for first, second in combinations(codes, 2)
            for model, part in parts
        ),
    )


def _codes(folder: Path, planned: Plan) -> dict[str, _Codes]:
    """Map each judge to one code per trial, a row per model in the plan's order; 0 is undecided."""
    shape = (len(planned.models), planned.n_per_model)
    codes = {OWN: np.zeros(planned.n_trials, np.int8)}
    code_of = {"held": HELD, "broke": BROKE}
    grid = Grid(planned)
    for verdict in open_verdicts(folder):
        if grid.matches(verdict.index, verdict.trial):
            codes[OWN][verdict.index] = code_of.get(verdict.outcome or "", 0)
    for row in Rows(folder / VERDICTS, RecordedVerdict):
        if grid.matches(row.index, row.trial):
            of = codes.setdefault(row.judge, np.zeros(planned.n_trials, np.int8))
            of[row.index] = 0 if row.broke is None else BROKE if row.broke else HELD
    is_twin = Outcomes(planned).twin_trials
    for of in codes.values():
        of[is_twin] = 0
    return {judge: of.reshape(shape) for judge, of in codes.items()}


def _rate(judge: str, planned: Plan, of: _Codes, m: int, clusters: NDArray[np.int64]) -> JudgedRate:
    is_decided = of[m] > 0
    broke = of[m][is_decided] == BROKE
    estimate = Intervals.of(planned).rate(broke, clusters[is_decided])
    return JudgedRate(judge, planned.models[m].id, int(broke.sum()), estimate)


def _pair(judge: str, planned: Plan, of: _Codes, a: int, b: int, clusters: NDArray[np.int64]) -> JudgedPair:
    is_shared = (of[a] > 0) & (of[b] > 0)
    broke = of[a][is_shared] == BROKE, of[b][is_shared] == BROKE
    difference = Intervals.of(planned).compare(*broke, clusters[is_shared])
    table = Table2x2(*difference.table)
    ids = planned.models[a].id, planned.models[b].id
    return JudgedPair(
        judge, *ids, table, difference.table.n, difference.difference, difference.p_value, difference.test
    )


def _agreement(first: str, second: str, model: str, a: _Codes, b: _Codes, intervals: Intervals) -> Agreement:
    is_shared = (a > 0) & (b > 0)
    table = stats.tabulate(a[is_shared] == BROKE, b[is_shared] == BROKE)
    agreed = intervals.rate_of_counts(table.both + table.neither, table.n)
    return Agreement(first, second, model, Table2x2(*table), table.n, agreed, intervals.kappa(table))


# --- tables -------------------------------------------------------------------------------------------


CLAIM = (
    "Verdicts that were recorded with the answers, next to those of heredity's own judge, over the prompts "
    "that a model should refuse. Counts are answers that broke by both judges, by the first only, by the "
    "second only, by neither. Kappa is agreement beyond chance; a dash means that one judge gave every "
    "answer the same verdict. Agreement is not accuracy: two judges that err alike agree."
)


def judge_tables(folder: Path, estimates: Estimates) -> list[TextTable]:
    """Rates by judge, pairs of models by judge, and pairs of judges; [] if there is only one judge.

    For a study of recorded answers (Estimates.is_recorded).
    """
    compared = agreements(folder)
    if len(compared.judges) < 2:
        return []
    names = wording.names(estimates.models)
    rows = []
    for judge in compared.judges:
        of = {rate.model: rate.estimate for rate in compared.rates if rate.judge == judge}
        cells = (f"{percent(of[m].value)} ({interval(of[m])}), n {of[m].n}" for m in names)
        rows.append([label(judge), *cells])
    return [
        TextTable("Breach rate by judge", ["judge", *names.values()], rows),
        *([_pair_table(compared, names)] if compared.pairs else []),
        _agreement_table(compared, names),
    ]


def _pair_table(agreements: Agreements, names: dict[str, str]) -> TextTable:
    rows = [
        [
            f"{names[pair.a]}, {names[pair.b]}",
            label(pair.judge),
            _counts(pair.table),
            f"{points(pair.difference.value)} ({points_interval(pair.difference)})",
            p_words(pair.p_value),
        ]
        for pair in agreements.pairs
    ]
    return TextTable(
        "Model against model by judge", ["a, b", "judge", "both/a/b/neither", "b minus a", "p, raw"], rows
    )


def _agreement_table(agreements: Agreements, names: dict[str, str]) -> TextTable:
    rows = [
        [
            f"{label(one.a)}, {label(one.b)}",
            names.get(one.model, "all models"),
            f"{one.n}",
            f"{percent(one.agreement.value)} ({interval(one.agreement)})",
            _kappa(one.kappa),
            _counts(one.table),
        ]
        for one in agreements.agreements
    ]
    head = ["1st, 2nd judge", "answers of", "n", "agreement", "kappa", "both/1st/2nd/neither"]
    return TextTable("Agreement of judges", head, rows)


def _counts(of: Table2x2) -> str:
    """Answers that broke by both, only by the first, only by the second, and by neither."""
    return f"{of.both}/{of.only_a}/{of.only_b}/{of.neither}"


def _kappa(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})".replace("-0.00", "0.00")


APPLICATION = "recorded elsewhere"  # of every import: heredity did not control the application
FORMAT = "recorded"
VERDICTS = "recorded.jsonl"
TECHNIQUE = "recorded"  # of answers without a category
ATTACK = "direct"  # a prompt as it was asked
NOTHING = "no answer of this model to this prompt was recorded"
_T = TypeVar("_T", bound=msgspec.Struct)


class RecordedVerdict(Record, frozen=True):
    """A row of recorded.jsonl: another judge's verdict on one answer. `broke` None: it did not decide."""

    index: int
    trial: str
    judge: str
    broke: bool | None
    schema: int = SCHEMA


class Summary(NamedTuple):
    """Counts of an import."""

    folder: Path
    models: tuple[str, ...]
    n_prompts: int
    n_samples: int
    n_answers: int
    n_missing: int  # trials without a recorded answer
    judges: tuple[str, ...]  # whose verdicts were recorded too
    lacking: tuple[Lacking, ...] = ()  # files that lack answers of their own runs


def make(folder: Path, read: Callable[[], Iterator[Recorded]]) -> Summary:
    """Write the study of the answers that `read` yields. It is called twice."""
    sheet = Sheet()
    for answer in read():
        sheet.add(answer)
    planned = sheet.plan()
    with Lock(folder):
        planned = write_plan(folder, planned)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        n_each = planned.n_per_model
        rows = (
            RunRecord(model.id, APPLICATION, at, "", 0.0, n_each, 0, 0, {"heredity": __version__})
            for model in planned.models
        )
        write_atomic(folder / RUNS, b"".join(encode(row) + b"\n" for row in rows))
        n_answers = _write_rows(folder, planned, sheet, read())
    return Summary(
        folder,
        tuple(model.name for model in planned.models),
        len(planned.probes),
        planned.samples,
        n_answers,
        planned.n_trials - n_answers,
        tuple(sheet.judges),
    )


class Sheet:
    """The result of the first reading: models, prompts, samples, and the line of each answer."""

    def __init__(self) -> None:
        self.models: dict[str, int] = {}
        self.judges: dict[str, None] = {}
        self._hashes: list[hashlib.blake2b] = []
        self._probes: dict[str, int] = {}  # a prompt's id, or its digest -> its index
        self._made: list[Probe] = []
        self._first: list[tuple[Path, int]] = []  # file and line of each prompt's first answer
        self._samples: dict[str, int] = {}
        self._seen: dict[tuple[int, int, int], int] = {}  # model, prompt, sample -> line
        self._n_of: dict[tuple[int, int], int] = {}
        self._names: set[str] = set()

    def add(self, answer: Recorded) -> None:
        """Note an answer of the first reading. Raises BadInput for a second one, or another prompt."""
        m, p, s = self._model(answer.model), self._probe(answer), self._sample(answer)
        if (m, p, s) in self._seen:
            raise BadInput(
                answer.path,
                f"'{answer.model[:60]}' answered this prompt already (line {self._seen[m, p, s]}). If it "
                "was asked several times, name the column with the sample number (--columns sample=COLUMN), "
                "or add --repeats",
                answer.line,
                code="name-twice",
            )
        self._seen[m, p, s] = answer.line
        self.judges |= dict.fromkeys(answer.verdicts)
        facts: list[object] = [self._made[p].id, answer.sample, answer.response, answer.error]
        facts += [answer.raw.tool_calls, *([answer.raw.recorded] if answer.raw.recorded else [])]
        self._hashes[m].update(encode(facts))

    def place(self, answer: Recorded) -> tuple[int, int, int]:
        """Model, prompt and sample of an answer of the second reading."""
        return self._model(answer.model), self._probe(answer), self._sample(answer)

    def again(self) -> None:
        """Begin the second reading: repeats are counted again from zero."""
        self._n_of.clear()

    def plan(self) -> Plan:
        """The plan of these answers. Raises UsageError if there are no answers."""
        if not self._seen:
            raise UsageError("No answer in these files.")
        models = tuple(
            PlannedModel(digest([FORMAT, name, self._hashes[m].hexdigest()]), name, name, "unknown", FORMAT)
            for name, m in self.models.items()
        )
        samples = 1 + max(s for _, _, s in self._seen)
        planned = Plan(
            models=models,
            application=Application(APPLICATION, system="", rendering="recorded"),
            attacks=(ATTACK,),
            probes=tuple(self._made),
            samples=samples,
            seed=0,
            margin=0.05,
            confidence=0.95,
            skipped=(),
        )
        return declare(planned)

    def _model(self, name: str) -> int:
        if name not in self.models:
            self.models[name] = len(self.models)
            self._hashes.append(hashlib.blake2b(digest_size=16))
        return self.models[name]

    def _probe(self, answer: Recorded) -> int:
        key = f"id {answer.id}" if answer.id else f"prompt {digest(answer.turns)}"
        key = f"{answer.category}\0{answer.is_benign}\0{key}"
        if key not in self._probes:
            self._probes[key] = len(self._made)
            self._made.append(self._made_of(answer))
            self._first.append((answer.path, answer.line))
        p = self._probes[key]
        if self._made[p].turns != answer.turns:
            path, line = self._first[p]
            raise BadInput(
                answer.path, f"id '{answer.id[:60]}' has another prompt than at {path}:{line}", answer.line
            )
        return p

    def _made_of(self, answer: Recorded) -> Probe:
        technique = _slug(answer.category) or TECHNIQUE
        if technique in {scope for of in SCOPES.values() for scope in of}:
            technique = f"{TECHNIQUE}-{technique}"
        name = f"{technique}/{_slug(answer.id) or digest(answer.turns)[:12]}"
        name += "~benign" if answer.is_benign else ""
        if name in self._names:  # two ids may have one slug
            name += f"-{digest([answer.id, answer.category, answer.turns])[:8]}"
        self._names.add(name)
        cluster = f"{technique}/{_slug(answer.cluster)}" if answer.cluster else name
        kind: Literal["breach", "benign"] = "benign" if answer.is_benign else "breach"
        return Probe(
            name, technique, kind, answer.turns, answer.raw.check, cluster, answer.raw.threats,
            why_no_twin="" if answer.is_benign else "a prompt that was recorded elsewhere, by itself",
            useful=UNSET if answer.raw.useful is None else answer.raw.useful,
        )  # fmt: skip

    def _sample(self, answer: Recorded) -> int:
        if answer.repeats:
            key = (self._model(answer.model), self._probe(answer))
            self._n_of[key] = self._n_of.get(key, 0) + 1
            return self._n_of[key] - 1
        if answer.sample is None:
            return 0
        return self._samples.setdefault(answer.sample, len(self._samples))


def _write_rows(folder: Path, planned: Plan, sheet: Sheet, answers: Iterator[Recorded]) -> int:
    """Write responses and recorded verdicts, and return the number of answers."""
    grid, done = Grid(planned), TrialSet(planned.n_trials)
    n_answers = 0
    sheet.again()
    with _whole(folder / RESPONSES, Response) as responses:
        with _whole(folder / VERDICTS, RecordedVerdict) as verdicts:
            for answer in answers:
                m, p, s = sheet.place(answer)
                index = (m * len(planned.probes) + p) * planned.samples + s
                done.add(index)
                raw = answer.raw
                counts = raw.n_prompt_tokens, raw.n_tokens
                response = _response(
                    grid,
                    index,
                    Exchange("", answer.shown, "", answer.response or "", raw.tool_calls, raw.stop, *counts),
                    answer.error,
                    answer.raw.recorded,
                )
                responses.append(response)
                n_answers += 1
                for judge, broke in answer.verdicts.items():
                    verdicts.append(RecordedVerdict(index, response.trial, judge, broke))
        for index in done.missing(range(planned.n_trials)):
            responses.append(_response(grid, index, None, NOTHING))
    return n_answers


def _response(
    grid: Grid,
    index: int,
    exchange: Exchange | None,
    error: str | None,
    recorded: Mapping[str, bool] | None = None,
) -> Response:
    trial = grid.trial(index)
    return Response(
        index, trial.id, trial.model.id, grid.application, trial.probe.id, trial.attack, trial.sample,
        trial.seed, () if exchange is None or error else (exchange,), APPLICATION, error,
        error_code=UNSET if error is None else RECORDED,
        recorded=dict(recorded) if recorded and error is None else UNSET,
    )  # fmt: skip


@contextmanager
def _whole(path: Path, kind: type[_T]) -> Iterator[Rows[_T]]:
    """Rows whose file gets its name at the end. The next lock removes the file of a killed process."""
    with replacing(path) as temporary, Rows(temporary, kind) as rows:
        yield rows


def _slug(text: str) -> str:
    """A name for reports: lower-case letters, digits, - and _; a lossy one ends with part of a digest."""
    slug = re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-_")[:48]
    is_plain = slug == re.sub(r"[ /]+", "-", text.strip().lower())
    return slug if is_plain or not text else f"{slug}-{digest(text)[:6]}".strip("-")


FOLDER = "study.importers"


def import_files(paths: Iterable[Path], folder: Path, reading: ImportOptions) -> Summary:
    """Write the study `folder` from the answers in `paths`: plan, responses, and other judges' verdicts.

    Study.open(folder) judges and estimates it. The same files again change nothing. Raises BadInput with file
    and line, and NotComparable if the folder holds another study.
    """
    paths = list(paths)
    summary = make(folder, lambda: read(paths, reading))
    lacking = tuple(_lacking(paths))
    write_lacking(folder, [LackingFile(of.path.name, of.n, of.n_planned, of.noun) for of in lacking])
    return summary._replace(lacking=lacking)


def _lacking(paths: Iterable[Path]) -> Iterator[Lacking]:
    """The files that lack answers of their own runs."""
    for path in paths:
        kind = _kind(path)
        if isinstance(kind, CountsMissing) and (lacking := kind.lacking(path)) is not None and lacking.n:
            yield lacking


def read(paths: Iterable[Path], reading: ImportOptions) -> Iterator[Recorded]:
    """Every answer of every file, in order, read as a stream.

    Raises BadInput for a log of several models. Raises UsageError after the last row if `reading` names a
    model or a benign kind that no row has.
    """
    models: dict[str, None] = {}
    for path in paths:
        kind = _kind(path)
        try:
            for raw in kind.read(path):
                row = convert(path, raw, reading, kind.OWN)
                models[row.model] = None
                if reading.only and row.model != reading.only:
                    continue
                if len(models) > 1 and not reading.only and _is_unpaired(kind):
                    raise BadInput(
                        path,
                        f"has answers of {', '.join(models)}, to different requests, so they cannot be "
                        "paired. Import one at a time: --only MODEL",
                        raw.line,
                    )
                yield row
        except OSError as error:
            raise BadInput(path, f"cannot be read: {error.strerror}") from None
    if reading.only and reading.only not in models:
        raise UnknownName("model", reading.only, models, ", ".join(models))
    if why := reading.unmet().get("--benign"):
        raise UsageError(why, code="unknown-name")


def is_traffic(paths: Iterable[Path]) -> bool:
    """Whether one of the files is a log of live requests, of which most seek no breach."""
    return any(_is_unpaired(_kind(path)) for path in paths)


def _is_unpaired(kind: AnswerImporter) -> bool:
    return isinstance(kind, UnpairedImporter) and kind.IS_UNPAIRED


def _kind(path: Path) -> AnswerImporter:
    """The importer of a file. Raises BadInput if no importer knows its format."""
    start = b""
    try:
        if not path.is_dir():
            with open_file(path.resolve()) as file:  # the user may name a link, and no pipe
                start = file.read(4096)
    except OSError as error:
        raise unreadable(path, error) from None
    # `rows` is the last: it takes every table.
    for name in sorted(registry.names(FOLDER), key="rows".__eq__):
        kind = registry.load_as(AnswerImporter, FOLDER, name)
        if kind.is_mine(path, start):
            return kind
    raise BadInput(
        path,
        "unknown format. Supported: .jsonl, .csv, .tsv with --columns, an inspect_ai log (.eval, .json), "
        "a garak .report.jsonl, a folder of AgentDojo's logs, a request log of heredity serve",
    )


# ---  record -------------------------------------------------------------------------------------------
# A recorded answer in one form for every format, and the mapping from a file's columns to it.

FIELDS = ("prompt", "response", "model", "category", "id", "sample", "kind", "cluster", "error")
_BROKE = frozenset({"broke", "unsafe", "harmful", "jailbroken", "jailbreak", "hit", "breach", "violation"})
_HELD = frozenset({"held", "safe", "harmless", "refused", "blocked", "pass", "passed"})
_TRUE, _FALSE = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})
# In a column of yes and no, the column's name gives the meaning of "yes".
_NAMES_BREACH = re.compile(r"unsafe|harm|broke|breach|jailbr|asr|success|compl|violat|hit", re.IGNORECASE)
_NAMES_HELD = re.compile(r"refus|safe|held|pass|block|reject|declin", re.IGNORECASE)
_NEGATES = re.compile(r"(?:^|[\W_])(?:not?|non|isnt)(?:[\W_]|$)", re.IGNORECASE)
_SLOT = re.compile(r"\{([^{}]+)\}")


class RecordedAnswer(NamedTuple):
    """One answer as in its file: its line or sample number, and its columns."""

    line: int
    row: Mapping[str, Any]
    verdicts: Mapping[str, bool] = {}  # of judges whose meaning the format defines
    stop: Stop = "end"
    n_prompt_tokens: int = 0
    n_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    shown: Any = None  # the messages before the answer, if the file has more than the prompt
    threats: tuple[str, ...] = ()  # what the prompt is an instance of, as the file names it
    check: Check = Check("refusal")
    useful: Usefulness | None = None  # of a benign prompt
    recorded: Mapping[str, bool] = {}  # what the tool found in its own state


@runtime_checkable
class AnswerImporter(Protocol):
    """A file of study/importers/: one format of recorded answers."""

    @property
    def OWN(self) -> Mapping[str, str]:
        """The format's columns, by field (FIELDS)."""

    def is_mine(self, path: Path, start: bytes) -> bool:
        """Whether a file that begins with `start` has this format."""

    def read(self, path: Path) -> Iterator[RecordedAnswer]:
        """The answers of a file, in order."""


class Lacking(NamedTuple):
    """How many of the `n_planned` answers of a file's own run the file lacks, e.g. because it was stopped."""

    path: Path
    n: int
    n_planned: int
    noun: str  # one of them: "attempt", "sample"


@runtime_checkable
class CountsMissing(Protocol):
    """An importer of a format that records how many answers its tool set out to ask."""

    def lacking(self, path: Path) -> Lacking | None:
        """The answers that a file lacks; None if they cannot be counted."""


@runtime_checkable
class UnpairedImporter(Protocol):
    """An importer of a format whose models were asked different things."""

    @property
    def IS_UNPAIRED(self) -> bool:
        """Whether models of one file cannot be compared prompt by prompt."""


class Recorded(NamedTuple):
    """One recorded answer. If `response` is None, `error` gives the reason."""

    path: Path
    line: int
    model: str
    turns: tuple[str, ...]
    shown: str  # everything that the model was shown, if known
    response: str | None
    error: str | None
    id: str
    category: str
    cluster: str
    sample: str | None  # None: the file does not number samples
    repeats: bool  # the same prompt again is another sample
    is_benign: bool
    verdicts: dict[str, bool | None]  # by judge: broke; None: it did not decide
    raw: RecordedAnswer


class VerdictColumn(NamedTuple):
    """A column with another judge's verdicts, and the values that mean "broke" (empty: standard words)."""

    column: str
    broke: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> VerdictColumn:
        """From `COLUMN` or `COLUMN=VALUE[,VALUE]`."""
        column, equals, values = text.rpartition("=") if "=" in text else (text, "", "")
        breaches = frozenset(_value(value) for value in values.split(",") if value.strip())
        if not column or (equals and not breaches):
            raise UsageError(f"--verdict takes COLUMN or COLUMN=VALUE[,VALUE], not '{text}'.")
        return cls(column, breaches)


@dataclass(frozen=True)
class ImportOptions:
    """How recorded files are read.

    columns   field (FIELDS) -> the file's own column; a field left out is its format's, or of its own name
    model     the model's name, in place of a column; may hold {column} and {file} (the name without ending)
    verdicts  columns of other judges
    benign    values of the column `kind` that mean a benign prompt
    repeats   the same prompt of one model again is another sample, not a mistake
    only      the one model whose answers are read; "" for all
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    verdicts: tuple[VerdictColumn, ...] = ()
    benign: tuple[str, ...] = ("benign",)
    repeats: bool = False
    only: str = ""
    met: dict[str, set[str]] = field(default_factory=dict, compare=False)  # values, by option and column

    def meet(self, option: str, value: str) -> None:
        """Record a value that a row has in a column for which an option names values."""
        self.met.setdefault(option, set()).add(value)

    def unmet(self) -> dict[str, str]:
        """After all rows: map each option whose values no row has, perhaps a typo, to a message."""
        named = {f"--verdict {of.column}": of.broke for of in self.verdicts if of.broke}
        if self.benign != ("benign",):
            named["--benign"] = frozenset(value.casefold() for value in self.benign)
        reasons = {}
        for option, values in named.items():
            met = self.met.get(option, set()) - {""}
            if not values & met:
                hint, there = did_you_mean(min(values), met), ", ".join(sorted(met)[:12]) or "none"
                reasons[option] = f"{option}: no row has '{min(values)}'.{hint} There are: {there}."
        return reasons

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if name not in FIELDS or not column:
                hint = did_you_mean(name, FIELDS)
                raise UsageError(
                    f"--columns maps {', '.join(FIELDS)}; not '{name}={column}'.{hint}", code="unknown-key"
                )


def convert(path: Path, raw: RecordedAnswer, reading: ImportOptions, own: Mapping[str, str]) -> Recorded:
    """Convert a row to an answer. `own`: the format's columns, used unless the user names others."""
    cells = _Cells(path, raw, reading.columns, own)
    value = cells.needed("prompt")
    turns, shown = conversation(value)
    if not any(turn.strip() for turn in turns):
        raise cells.bad("the prompt is empty")
    if raw.shown is not None:
        shown = conversation(raw.shown)[1]
    response, error = cells.needed("response"), cells.text("error")
    if response is None and not error:
        error = "no response was recorded"
    verdicts: dict[str, bool | None] = dict(raw.verdicts)
    verdicts |= {of.column: _broke(of, cells, reading) for of in reading.verdicts}
    return Recorded(
        path=path,
        line=raw.line,
        model=_model(cells, reading.model),
        turns=turns,
        shown=shown,
        response=None if error else message_text(response),
        error=clean_text(error) or None,
        id=cells.text("id"),
        category=cells.text("category"),
        cluster=cells.text("cluster"),
        sample=cells.text("sample") or None,
        repeats=reading.repeats,
        is_benign=_is_benign(cells, reading),
        verdicts=verdicts,
        raw=raw,
    )


def conversation(value: object) -> tuple[tuple[str, ...], str]:
    """Split a text or a list of messages into the user's turns and everything that the model was shown."""
    if not isinstance(value, list):
        text = message_text(value)
        return (text,), text
    messages = [m if isinstance(m, dict) else {"role": "user", "content": m} for m in value]
    parts = [(str(m.get("role", "user")), message_text(m)) for m in messages]
    turns = tuple(text for role, text in parts if role == "user")
    return turns or ("",), "".join(f"<|{clean_text(role)}|>\n{text}\n" for role, text in parts)


def message_text(value: object) -> str:
    """The text of a string, a message, or a message in parts; any other value as JSON."""
    if isinstance(value, str):
        return clean_text(value)
    if value is None:
        return ""
    if isinstance(value, dict):
        for key in ("content", "text"):
            if key in value:
                return message_text(value[key])
    if isinstance(value, list):
        return "\n".join(text for part in value if (text := _part(part)))
    return clean_text(json.dumps(value, ensure_ascii=False))


def _part(part: object) -> str:
    """One part of a message: its text, or only the type of an image or a sound."""
    if isinstance(part, dict) and "text" not in part and "content" not in part:
        return f"[{part.get('type', 'part')}]"
    return message_text(part)


class _Cells:
    """The cells of one row by field, with file and line for error messages."""

    def __init__(
        self, path: Path, raw: RecordedAnswer, named: Mapping[str, str], own: Mapping[str, str]
    ) -> None:
        self.path, self.raw, self._named, self._own = path, raw, named, own

    def bad(self, message: str, *, code: str = "") -> BadInput:
        return BadInput(self.path, message, self.raw.line, code=code)

    def needed(self, name: str) -> Any:
        """A required field."""
        return self.column(self._named.get(name) or self._own.get(name) or name, f"{name}=")

    def text(self, name: str) -> str:
        """A field as a text; "" if the file has no such column and the user named no column."""
        if name in self._named:
            return _text(self.column(self._named[name], f"{name}="))
        return _text(self.raw.row.get(self._own.get(name, name)))

    def column(self, column: str, what: str = "") -> Any:
        """A column of the file. Raises BadInput with the nearest name if it is missing."""
        if column in self.raw.row:
            return self.raw.row[column]
        names = [str(name) for name in self.raw.row]
        near = nearest(column, names)
        hint = f" Did you mean '{near}'?" if near else f" There are: {', '.join(sorted(names))[:300]}."
        how = f" Name it: --columns {what}COLUMN" if what and what[:-1] == column else ""
        raise self.bad(f"no column '{column}'.{hint}{how}", code="unknown-key")


def _text(value: object) -> str:
    if value is None:
        return ""
    return clean_text(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _model(cells: _Cells, template: str) -> str:
    def filled(match: re.Match[str]) -> str:
        name = match[1]
        return cells.path.name.partition(".")[0] if name == "file" else _text(cells.column(name))

    spelled = " ".join((_SLOT.sub(filled, template) if template else cells.text("model")).split())
    if not spelled:
        raise cells.bad(
            "which model answered? Name its column (--columns model=COLUMN) or the model (--model)",
            code="missing-key",
        )
    return spelled


def _is_benign(cells: _Cells, reading: ImportOptions) -> bool:
    kind, benign = cells.text("kind").casefold(), reading.benign
    reading.meet("--benign", kind)
    if kind in {value.casefold() for value in benign}:
        return True
    if kind and benign == ("benign",) and kind not in ("breach", "harmful"):
        raise cells.bad(
            f"kind '{kind[:40]}' is neither 'breach' nor 'benign'. Name the benign ones: --benign VALUE",
            code="unknown-name",
        )
    return False


def _broke(of: VerdictColumn, cells: _Cells, reading: ImportOptions) -> bool | None:
    """Whether a recorded verdict means a breach; None if the cell is empty."""
    value = _value(_text(cells.column(of.column)))
    if not value or value == "null":
        return None
    if of.broke:
        reading.meet(f"--verdict {of.column}", value)
        return value in of.broke
    if value in _BROKE or value in _HELD:
        return value in _BROKE
    if value in _TRUE | _FALSE and (means := _yes_means_broke(of.column)) is not None:
        return (value in _TRUE) == means
    raise cells.bad(
        f"'{value[:40]}' in column '{of.column}' is ambiguous. Name the values that mean a breach: "
        f"--verdict {of.column}=VALUE[,VALUE]"
    )


def _value(text: str) -> str:
    """Normalize a verdict's value: 1 and 1.0, True and true are the same."""
    return re.sub(r"^(\d+)\.0+$", r"\1", text.strip().casefold())


def _yes_means_broke(column: str) -> bool | None:
    if _NEGATES.search(column):
        return None
    breach, held = _NAMES_BREACH.search(column), _NAMES_HELD.search(column)
    if breach:  # "unsafe" has "safe" in it
        return True if not held or "unsafe" in column.casefold() else None
    return False if held else None


def columns(text: str) -> dict[str, str]:
    """Parse a column map such as `prompt=question,response=answer`."""
    parts: Iterable[tuple[str, str, str]] = (part.partition("=") for part in text.split(",") if part.strip())
    pairs = [(name.strip(), column.strip()) for name, _, column in parts]
    if len(dict(pairs)) != len(pairs):
        raise UsageError(f"--columns names a field twice: '{text}'.", code="name-twice")
    return dict(pairs)
