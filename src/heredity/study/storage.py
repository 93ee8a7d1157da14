"""The files of a study's folder: the structs of their rows, reading and writing, and what is still to ask.

    plan.json -> responses.jsonl -> verdicts.jsonl -> estimates.json; beside them prefixes.jsonl, runs.jsonl,
    errors.jsonl (responses that were asked again), events.jsonl and judge.json (the chosen judge)

    earlier = read_earlier_runs(folder, grid, meter)
    for index in earlier.still_to_ask(grid.of_model(0)): ...

Promises: flushed rows survive a crash. A row of another plan, or a second row of a trial, is an error with
its line. A prefix is on disk before a row names it. A trial with a row in responses.jsonl is not asked again.
"""

from __future__ import annotations

import hashlib
import re
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from heredity.core.cache import ResponseCache
from heredity.core.errors import Damaged, HeredityError, NotComparable, UsageError
from heredity.core.files import Rows, read_file, rewrite, write_atomic
from heredity.core.progress import TrialMeter
from heredity.core.records import (
    ROW_SCHEMA,
    SCHEMA,
    Cause,
    Exchange,
    Manner,
    Outcome,
    Record,
    Response,
    Stop,
    ToolCall,
    ToolOutcome,
    Unprompted,
    Verdict,
    digest,
    digest_response,
    encode,
    is_failed,
    is_out_of_scope,
)
from heredity.core.sanitize import label
from heredity.redteam.judges import DEFAULT, Decider
from heredity.study import estimates
from heredity.study.estimates import Estimates, LackingFile
from heredity.study.plan import Grid, Plan, PlannedModel, TrialSet, check_schema

RESPONSES, VERDICTS, PREFIXES, RUNS = "responses.jsonl", "verdicts.jsonl", "prefixes.jsonl", "runs.jsonl"
ERRORS = "errors.jsonl"  # error responses whose trials were asked again
JUDGE = "judge.json"
ESTIMATES = "estimates.json"
COSTS = "costs.json"
LACKING = "lacking.json"
RESTORE = "Restore the file, or ask again in another folder."
FLUSH_SECONDS = 1.0  # a power cut loses at most the answers of this time, and they are asked again


def folder_name(name: str) -> str:
    """A name as a part of a folder's name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:40].strip("-") or "study"


# --- rows -----------------------------------------------------------------------------------------


class VerdictRow(msgspec.Struct):
    """A row of verdicts.jsonl without the text of its evidence, which makes reading faster (core Verdict)."""

    index: int
    trial: str
    judge: str
    outcome: Outcome | None
    manner: Manner | None = None
    error: str | None = None
    response: str = ""
    judged_by: str = ""
    score: float | msgspec.UnsetType = msgspec.UNSET
    members: dict[str, Outcome] | msgspec.UnsetType = msgspec.UNSET
    error_code: str | msgspec.UnsetType = msgspec.UNSET
    cause: Cause | msgspec.UnsetType = msgspec.UNSET
    attempted: str | msgspec.UnsetType = msgspec.UNSET
    unprompted: tuple[Unprompted, ...] | msgspec.UnsetType = msgspec.UNSET
    useful: bool | msgspec.UnsetType = msgspec.UNSET
    schema: int = ROW_SCHEMA


class PromptPrefix(Record, frozen=True):
    """A row of prefixes.jsonl: a text that many prompts of the study begin with."""

    digest: str
    text: str
    schema: int = SCHEMA


class RunRecord(Record, frozen=True):
    """A row of runs.jsonl: one model asked once.

    It is written at the start of a run with zeros, so that a killed run is recorded, and at its end.
    """

    model: str
    engine: str
    at: str  # ISO 8601, UTC
    host: str
    seconds: float
    n_asked: int
    n_errors: int
    n_cached: int
    versions: dict[str, str]
    numerics: str = ""  # the part of `engine` that may change an answer; one model has one in a study
    account: dict[str, Any] = msgspec.field(default_factory=dict)  # see engines.Provenance
    base_numerics: str = ""  # the numerics of the unchanged model, if an attack has changed it
    is_batch_unverified: bool = False  # an answer may depend on the other requests of its batch
    plan_seal: str = ""  # of plan.json when this run began (plan.plan_seal); "": not known, as in older runs
    machine: str | msgspec.UnsetType = msgspec.UNSET  # of a worker: the kind of machine (host.machine_name)
    schema: int = ROW_SCHEMA


class ChosenJudge(Record, frozen=True):
    """judge.json: the judge that was chosen for the answers in this folder."""

    judge: str
    schema: int = SCHEMA


def run_records(folder: Path) -> Iterator[RunRecord]:
    """Every row of runs.jsonl."""
    return iter(Rows(folder / RUNS, RunRecord))


def verdict_rows(folder: Path, grid: Grid, judged: TrialSet | None = None) -> Iterator[VerdictRow]:
    """Every verdict; its trial is added to `judged`. Raises Damaged for one of another plan, or a second."""
    rows = Rows(folder / VERDICTS, VerdictRow)
    judged = TrialSet(len(grid)) if judged is None else judged
    for row in rows:
        if not grid.matches(row.index, row.trial):
            raise _not_of_this_plan(rows, row.index)
        if not judged.add(row.index):
            raise _there_twice(rows, row.index)
        yield row


def distinct_errors(folder: Path, grid: Grid) -> list[tuple[str, int]]:
    """The errors of failed trials with their counts, the most frequent first.

    Messages that differ only in numbers count as one; the first of them is returned.
    """
    counts: dict[tuple[str, str], int] = {}
    first: dict[tuple[str, str], str] = {}
    for row in verdict_rows(folder, grid):
        if row.error is not None and is_failed(row):
            kind = (str(row.error_code or ""), re.sub(r"\d+", "#", row.error))
            counts[kind] = counts.get(kind, 0) + 1
            first.setdefault(kind, row.error)
    return sorted(((first[kind], n) for kind, n in counts.items()), key=lambda each: -each[1])


def open_responses(folder: Path) -> Rows[Response]:
    """responses.jsonl, for reading."""
    return Rows(folder / RESPONSES, Response)


def open_verdicts(folder: Path) -> Rows[Verdict]:
    """verdicts.jsonl with its texts, for reading."""
    return Rows(folder / VERDICTS, Verdict)


def answered_rows(rows: Rows[Response], grid: Grid, answered: TrialSet) -> Iterator[Response]:
    """Every response in `rows`; its trial is added to `answered`.

    Raises Damaged for a response of another trial, or a second one.
    """
    for row in rows:
        if not is_of_its_trial(row, grid):
            raise _not_of_this_plan(rows, row.index)
        if not answered.add(row.index):
            raise _there_twice(rows, row.index)
        yield row


def is_of_its_trial(row: Response, grid: Grid) -> bool:
    """Whether a response is to the trial of its index, in every part that names it."""
    if not 0 <= row.index < len(grid):
        return False
    trial = grid.trial(row.index)
    return (
        row.trial == trial.id
        and row.probe == trial.probe.id
        and row.model == trial.model.id
        and row.attack == trial.attack
        and (row.sample, row.seed) == (trial.sample, trial.seed)
        and row.application == grid.application
    )


def _not_of_this_plan(rows: Rows[Any], index: int) -> Damaged:
    return Damaged(f"{rows.path}:{rows.line}: trial {index} is not of this plan. Remove the line to go on.")


def _there_twice(rows: Rows[Any], index: int) -> Damaged:
    return Damaged(f"{rows.path}:{rows.line}: trial {index} is there twice. Remove one to go on.")


# --- writing responses ----------------------------------------------------------------------------


class RunCount:
    """The responses, errors and cache hits of one run of one model."""

    def __init__(self) -> None:
        self.n_asked = self.n_errors = self.n_cached = 0

    def add(self, response: Response, is_error: bool) -> None:
        self.n_asked += 1
        self.n_errors += is_error
        self.n_cached += response.is_cached


class ResponseWriter:
    """Writes finished responses to responses.jsonl, and counts them."""

    def __init__(
        self, rows: Rows[Response], cache: ResponseCache | None, meter: TrialMeter, count: RunCount,
        machine: str | msgspec.UnsetType = msgspec.UNSET,
    ) -> None:  # fmt: skip
        self._rows, self._cache, self._meter, self._count = rows, cache, meter, count
        self._machine, self._last = machine, time.monotonic()

    def __call__(self, response: Response) -> None:
        if self._machine is not msgspec.UNSET:
            response = msgspec.structs.replace(response, machine=self._machine)
        try:
            self._rows.append(response)
            self._rows.write()  # kill -9 loses no answer, which may have been paid for
        except OSError as error:
            raise _unwritten(self._rows.path, error) from error
        is_error = is_failed(response)
        self._count.add(response, is_error)
        self._meter.answered(response.index, is_error, response.is_cached, is_out_of_scope(response))
        if time.monotonic() - self._last >= FLUSH_SECONDS:
            self.flush()
            self._last = time.monotonic()

    def flush(self) -> None:
        try:
            self._rows.flush()
        except OSError as error:
            raise _unwritten(self._rows.path, error) from error
        if self._cache is not None:
            self._cache.flush()


def _unwritten(path: Path, error: OSError) -> HeredityError:
    return HeredityError(
        f"{path} cannot be written: {error.strerror or error}. Its rows are whole: fix the cause and run "
        "the same command again."
    )


class ResponseDigests:
    """The digest of every trial's response: eight bytes per trial, in the plan's order."""

    def __init__(self, n_trials: int) -> None:
        self._digests = array("Q", bytes(8 * n_trials))

    def add(self, response: Response) -> None:
        self._digests[response.index] = int(digest_response(response), 16)

    def is_judged_by(self, verdict: VerdictRow | Verdict) -> bool:
        """Whether this verdict is about the response in the folder; False if there is no response."""
        return verdict.response == f"{self._digests[verdict.index]:016x}"


class Prefixes:
    """prefixes.jsonl: the texts that many prompts begin with, each stored once; a few per study."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PREFIXES
        self._texts = {row.digest: row.text for row in Rows(self._path, PromptPrefix)}

    def check(self, needed: Iterable[str]) -> None:
        """Raise Damaged if a prefix that responses need is missing, or is another text."""
        for name in sorted(needed):
            if name and digest(self._text(name)) != name:
                raise Damaged(f"{self._path}: prefix {name} is not the text that it is named by. {RESTORE}")

    def add(self, prefix: PromptPrefix) -> None:
        """Save a prefix; it is on disk before any row names it."""
        if prefix.digest and prefix.digest not in self._texts:
            with Rows(self._path, PromptPrefix) as rows:
                rows.append(prefix)
            self._texts[prefix.digest] = prefix.text

    def prompt(self, exchange: Exchange) -> str:
        """The whole text that the model saw, prefill included. Raises Damaged if its prefix is lost."""
        return (self._text(exchange.prefix) if exchange.prefix else "") + exchange.prompt

    def _text(self, name: str) -> str:
        if name not in self._texts:
            raise Damaged(f"{self._path}: no prefix {name}, which a response begins with. {RESTORE}")
        return self._texts[name]


# --- the judge ------------------------------------------------------------------------------------


def chosen_judge(folder: Path) -> str:
    """The judge that decides in this folder if no check does; the default if none was chosen."""
    path = folder / JUDGE
    if not path.exists():
        return DEFAULT
    try:
        return msgspec.json.decode(read_file(path), type=ChosenJudge).judge
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{path}: {error}. Delete it, and name the judge again with --judge.") from None


def choose_judge(folder: Path, judge: str) -> None:
    """Save the judge of this folder. It is not a part of the plan, which holds only the questions."""
    if chosen_judge(folder) != judge:
        write_atomic(folder / JUDGE, encode(ChosenJudge(judge)) + b"\n")


# --- the responses behind the verdicts --------------------------------------------------------------


class RawPassage(msgspec.Struct):
    """The id of a retrieved passage."""

    chunk: str


class RawExchange(msgspec.Struct):
    """An exchange as its file spells it: the fields that a judge reads are compared, not decoded."""

    prefill: msgspec.Raw
    text: msgspec.Raw
    tool_calls: msgspec.Raw
    stop: msgspec.Raw
    n_prompt_tokens: int
    n_tokens: int
    guarded: list[str] = []
    retrieved: list[RawPassage] = []
    outcomes: list[ToolOutcome] = []


class AttackerTokens(msgspec.Struct):
    """The tokens of one question to the attacker model."""

    n_prompt_tokens: int
    n_tokens: int


class RawResponse(msgspec.Struct):
    """The fields of a response that are counted or compared."""

    index: int
    exchanges: list[RawExchange]
    error: msgspec.Raw = msgspec.Raw(b"null")
    consulted: list[AttackerTokens] = []
    recorded: msgspec.Raw = msgspec.Raw(b"")
    schema: int = ROW_SCHEMA

    @property
    def texts(self) -> list[str]:
        """The model's answers, one for each exchange."""
        return [msgspec.json.decode(exchange.text, type=str) for exchange in self.exchanges]

    @property
    def chunks(self) -> Iterator[str]:
        """The passages that were retrieved before its turns."""
        return (passage.chunk for exchange in self.exchanges for passage in exchange.retrieved)


def judged_responses(folder: Path, has_verdict: bytearray, digests: array[int]) -> Iterator[RawResponse]:
    """Every response with a verdict, after a check that the verdict is about this response.

    has_verdict: one byte per trial; digests: of the response that each verdict is about. Raises Damaged if a
    response differs from the judged one, or if a verdict has no response.
    """
    rows, left = Rows(folder / RESPONSES, RawResponse), bytearray(has_verdict)
    again = f"Judge again, which asks only the missing trials: heredity study {folder}"
    for row in rows:
        if not 0 <= row.index < len(left) or not has_verdict[row.index]:
            continue
        if not left[row.index]:
            raise _there_twice(rows, row.index)
        left[row.index] = False
        if not _has_digest(row, digests[row.index]):
            raise Damaged(
                f"{rows.path}:{rows.line}: trial {row.index} is not the answer that its verdict is on. "
                f"{again}"
            )
        yield row
    if (index := left.find(True)) >= 0:
        raise Damaged(f"{rows.path}: trial {index} has a verdict and no answer. {again}")


def _has_digest(row: RawResponse, number: int) -> bool:
    """Whether a response has this digest, as records.digest_response computes it."""
    parts: list[bytes | msgspec.Raw] = [b"[["]
    for e in row.exchanges:
        parts += b",[", e.prefill, b",", e.text, b",", e.tool_calls, b",", e.stop, b"]"
    if row.exchanges:
        parts[1] = b"["
    spelt = b"".join((*parts, b"],", row.error, b"," if row.recorded else b"", row.recorded, b"]"))
    # A row that heredity wrote has the bytes of the digest. Another spelling is decoded and encoded first.
    return number != 0 and (_hash(spelt) == number or _hash(encode(_respelt(spelt))) == number)


def _hash(spelt: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(spelt, digest_size=8).digest(), "big")


def _respelt(spelt: bytes) -> list[object]:
    exchanges, error, *recorded = msgspec.json.decode(spelt)
    return [msgspec.convert(exchanges, _JudgedParts), error, *recorded]


_JudgedParts = list[tuple[str, str, tuple[ToolCall, ...], Stop]]


# --- estimates.json -------------------------------------------------------------------------------


def write_lacking(folder: Path, lacking_files: Sequence[LackingFile]) -> None:
    """Save lacking.json, or remove it if no file lacks anything."""
    if lacking_files:
        write_atomic(folder / LACKING, encode(list(lacking_files)) + b"\n")
    else:
        (folder / LACKING).unlink(missing_ok=True)


def read_lacking(folder: Path) -> tuple[LackingFile, ...]:
    """The files of an import that lack answers of their own runs. Raises Damaged for a broken file."""
    path = folder / LACKING
    if not path.exists():
        return ()
    try:
        return msgspec.json.decode(read_file(path), type=tuple[LackingFile, ...])
    except msgspec.DecodeError as error:
        raise Damaged(f"{path}: {label(str(error), 200)}. Import the answers again.") from None


def write_estimates(folder: Path, estimates: Estimates) -> None:
    """Save estimates.json, whole or not at all."""
    write_atomic(folder / ESTIMATES, msgspec.json.format(encode(estimates), indent=1) + b"\n")


def read_estimates(folder: Path) -> Estimates:
    """The estimates of a folder.

    Raises UsageError before the first estimate, NotComparable for another schema, Damaged for a broken file.
    """
    path = folder / ESTIMATES
    try:
        data = read_file(path)
    except OSError:
        if not folder.exists():
            raise UsageError(f"{folder}: no such folder.") from None
        raise UsageError(f"{folder} has no {ESTIMATES} yet. Run the study to its end first.") from None
    again = "Run the same study again: it estimates again from the verdicts, and asks nothing twice."
    check_schema(path, data, estimates.SCHEMA, again)
    try:
        return msgspec.json.decode(data, type=Estimates)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{path}: {error}. Delete it, run the study again: nothing is asked twice.") from None


# --- resuming -----------------------------------------------------------------------------------------
# Only `EarlierRuns.still_to_ask` decides which trials are asked: look there if a resumed study asks twice, or
# too little. Answers of one model are never mixed from engines with different arithmetic. A verdict counts
# only for the response and the judges that it is from.

EVENTS = "events.jsonl"


class StudyEvent(Record, frozen=True):
    """A row of events.jsonl.

    judged_again  `n` verdicts of `judge` were given again, because it is another one or another version now
    estimated     estimates were computed when `n` trials were answered, and others were still to be asked
    """

    kind: Literal["judged_again", "estimated"]
    at: str  # ISO 8601, UTC
    n: int
    judge: str = ""
    schema: int = SCHEMA


def note_event(folder: Path, kind: Literal["judged_again", "estimated"], n: int, judge: str = "") -> None:
    """Add a row to events.jsonl."""
    with Rows(folder / EVENTS, StudyEvent) as rows:
        rows.append(StudyEvent(kind, datetime.now(UTC).isoformat(timespec="seconds"), n, judge))


@dataclass(frozen=True)
class EarlierRuns:
    """The state of a study's folder after the runs so far.

    answered  the trials that have a row in responses.jsonl
    engines   by model, in the plan's order: the engines that answered
    digests   of the responses, for their verdicts
    """

    answered: TrialSet
    engines: tuple[set[str], ...]
    digests: ResponseDigests

    def still_to_ask(self, indices: Iterable[int]) -> Iterator[int]:
        """The trials among `indices` that this run has to ask: those without a row in responses.jsonl.

        An error is a row, too, so its trial is not asked again; `--retry-errors` first moves such rows away
        (`set_errors_aside`). So is a trial that its model does not support. A torn last line is not a row. A
        trial whose answer is in the response cache is asked, but reaches no engine (runner.py).
        """
        return self.answered.missing(indices)

    def of_block(self, grid: Grid, m: int, low: int, high: int) -> Iterator[int]:
        """The trials of a model in a block of probes that are still to ask."""
        return self.still_to_ask(grid.of_probes(m, low, high))


def read_earlier_runs(folder: Path, grid: Grid, meter: TrialMeter) -> EarlierRuns:
    """Read responses.jsonl once, and count its rows in `meter`.

    Raises Damaged for a row of another plan, a second row of a trial, or a lost prefix. It also does for an
    engine that no run recorded, because its answers could not be continued.
    """
    answered, engines = TrialSet(len(grid)), tuple(set[str]() for _ in grid.plan.models)
    digests, prefixes = ResponseDigests(len(grid)), set[str]()
    for row in answered_rows(open_responses(folder), grid, answered):
        digests.add(row)
        if not is_out_of_scope(row):
            meter.had(is_failed(row), row.is_cached, row.index // meter.n_per_part)
        engines[row.index // grid.plan.n_per_model].add(row.engine)
        prefixes.update(exchange.prefix for exchange in row.exchanges)
    Prefixes(folder).check(prefixes)
    _refuse_unknown_arithmetic(folder, grid.plan, engines)
    return EarlierRuns(answered, engines, digests)


def read_digests(folder: Path, grid: Grid) -> ResponseDigests:
    """The digests of the responses in a folder; none if there is no verdict to compare with them."""
    digests = ResponseDigests(len(grid))
    if next(iter(open_verdicts(folder)), None) is None:
        return digests
    for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
        digests.add(row)
    return digests


def set_errors_aside(folder: Path, grid: Grid) -> None:
    """Move every error row from responses.jsonl to errors.jsonl, so that its trial is asked again.

    A trial that its model does not support stays, because it is not an error. If the process is killed in
    between, a row is in both files, and twice in errors.jsonl after the next call. It is never lost. Raises
    UsageError for an import, whose models are not here.
    """
    if grid.plan.application.rendering == "recorded":
        raise UsageError(
            f"{folder} holds answers that were recorded elsewhere: they cannot be asked again here. "
            "Record what is missing, and import it into another folder."
        )
    n = 0
    with Rows(folder / ERRORS, Response) as aside:
        for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
            if is_failed(row):
                aside.append(row)
                n += 1
    if n:
        rewrite(folder / RESPONSES, Response, lambda row: not is_failed(row))


def drop_stale_verdicts(
    folder: Path, digests: ResponseDigests, grid: Grid, decider: Decider | None = None
) -> None:
    """Drop every verdict that is not about the current response, or not by the current judges.

    Its response is gone, was asked again or was edited, or the judges changed: it is judged again.
    """
    chosen, probes, samples = decider or Decider(), grid.plan.probes, grid.plan.samples
    now = [chosen.judged_by(probe) for probe in probes]

    def is_own(row: VerdictRow | Verdict) -> bool:
        return row.judged_by == now[row.index // samples % len(probes)] and digests.is_judged_by(row)

    # It reads to the end: damage anywhere is reported before a row is dropped.
    stale = [row for row in verdict_rows(folder, grid) if not is_own(row)]
    for judge, n in sorted(Counter(row.judge for row in stale if digests.is_judged_by(row)).items()):
        note_event(folder, "judged_again", n, judge)
    if stale:
        rewrite(folder / VERDICTS, Verdict, is_own)


# --- the arithmetic of earlier answers --------------------------------------------------------------


def refuse_other_arithmetic(folder: Path, model: PlannedModel, numerics: str, earlier: set[str]) -> None:
    """Raise NotComparable if `earlier` engines of this model have other numerics than these."""
    held = {run.base_numerics for run in run_records(folder) if run.engine in earlier}
    if held - {numerics}:
        raise NotComparable(
            f"Model '{model.name}' answered in {folder} as '{held.pop()}' computes, this engine is "
            f"'{numerics}': its answers would not belong together. Ask on the machine and with the "
            "versions of before, or in another folder."
        )


def _refuse_unknown_arithmetic(folder: Path, plan: Plan, earlier: Iterable[set[str]]) -> None:
    """Raise Damaged if no run records the arithmetic of an engine of `earlier` (by model)."""
    held = {(run.model, run.engine) for run in run_records(folder)}
    for model, engines in zip(plan.models, earlier, strict=True):
        for engine in sorted(engines):
            if (model.id, engine) not in held:
                raise Damaged(
                    f"{folder / RUNS}: no run of '{model.name}' by '{engine}', which answered here: "
                    f"its arithmetic is not known. {RESTORE}"
                )
