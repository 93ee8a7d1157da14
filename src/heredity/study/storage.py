"""The rows of a study's folder: how they are written as answers come, and how they are read again.

Promises: what was flushed survives a crash; a row of another plan, or one that is there twice, is an error
with its place; a prefix is on the disk before a row names it.
Leaves to others: bytes (store.py), and what the rows hold (pump.py, judges/).
"""

from __future__ import annotations

import platform
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from heredity.core.cache import ResponseCache
from heredity.core.errors import Damaged, HeredityError, NotComparable
from heredity.core.files import write_atomic
from heredity.core.progress import Meter
from heredity.core.records import (
    JUDGE_FAILED,
    ROW_SCHEMA,
    SCHEMA,
    Exchange,
    Outcome,
    Record,
    Response,
    Verdict,
    digest,
    digest_response,
    encode,
    is_failed,
)
from heredity.core.rows import Rows, rewrite
from heredity.engines import base_numerics, is_batch_unverified
from heredity.engines.protocols import Accountant, Engine
from heredity.redteam.judges import DEFAULT, Decider
from heredity.study.estimates import Run
from heredity.study.legacy import RowsFromSchema1, run_from_schema_1
from heredity.study.plan import PlannedModel
from heredity.study.scheduler import Prefix
from heredity.study.trials import Grid, mark

JUDGE = "judge.json"
RESPONSES, VERDICTS, PREFIXES, RUNS = "responses.jsonl", "verdicts.jsonl", "prefixes.jsonl", "runs.jsonl"
ERRORS = "errors.jsonl"  # responses that were errors, set aside when their trials were asked again
_RESTORE = "Restore the file, or ask again in another folder."
FLUSH_SECONDS = 1.0  # a power cut loses at most what was answered in this time, and asks it again


class Mark(msgspec.Struct):
    """What a verdict row needs to be counted as done; decoding no more makes a resume faster."""

    index: int
    trial: str
    error: str | None = None
    outcome: Outcome | None = None
    response: str = ""
    judged_by: str = ""
    error_code: str | msgspec.UnsetType = msgspec.UNSET
    schema: int = ROW_SCHEMA


class Chosen(Record, frozen=True):
    """judge.json: the judge that was chosen for this folder's answers."""

    judge: str
    schema: int = SCHEMA


class Said:
    """What every trial's response says, as a digest: eight bytes a trial, in the plan's order."""

    def __init__(self, n_trials: int) -> None:
        self._digests = array("Q", bytes(8 * n_trials))

    def add(self, response: Response) -> None:
        self._digests[response.index] = int(digest_response(response), 16)

    def is_judged_by(self, verdict: Mark | Verdict) -> bool:
        """Whether this verdict is one on the response that is here; False where there is none."""
        return verdict.response == f"{self._digests[verdict.index]:016x}"


class Prefixes:
    """prefixes.jsonl: the texts that many prompts begin with, each stored once; a few a study."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PREFIXES
        self._texts = {row.digest: row.text for row in Rows(self._path, Prefix)}

    def check(self, needed: Iterable[str]) -> None:
        """Raise Damaged where a prefix that a response begins with is not here, or is another text."""
        for name in sorted(needed):
            if name and digest(self._text(name)) != name:
                raise Damaged(
                    f"{self._path}: prefix {name} is not the text that it is named by. {_RESTORE}",
                    code="prefix-changed",
                )

    def add(self, prefix: Prefix) -> None:
        """Keep a prefix; it is on the disk before any row names it."""
        if prefix.digest and prefix.digest not in self._texts:
            with Rows(self._path, Prefix) as rows:
                rows.append(prefix)
            self._texts[prefix.digest] = prefix.text

    def prompt(self, exchange: Exchange) -> str:
        """The whole text that the model saw, prefill included. Raises Damaged where its prefix is lost."""
        return (self._text(exchange.prefix) if exchange.prefix else "") + exchange.prompt

    def _text(self, name: str) -> str:
        if name not in self._texts:
            raise Damaged(
                f"{self._path}: no prefix {name}, which a response begins with. {_RESTORE}",
                code="prefix-missing",
            )
        return self._texts[name]


class Keeper:
    """Puts finished responses on the disk, a batch at a time."""

    def __init__(self, rows: Rows[Response], cache: ResponseCache | None, meter: Meter, count: Count) -> None:
        self._rows, self._cache, self._meter, self._count = rows, cache, meter, count
        self._last = time.monotonic()

    def __call__(self, response: Response) -> None:
        with _explained(self._rows.path):
            self._rows.append(response)
            self._rows.write()  # kill -9 loses none of what was answered, and perhaps paid for
        is_error = is_failed(response)
        self._count.add(response, is_error)
        self._meter.tick(is_error, response.is_cached)
        if time.monotonic() - self._last >= FLUSH_SECONDS:
            self.flush()
            self._last = time.monotonic()

    def flush(self) -> None:
        with _explained(self._rows.path):
            self._rows.flush()
        if self._cache is not None:
            self._cache.flush()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HeredityError(
            f"{path} cannot be written: {error.strerror or error}. What it holds is whole; mend that and "
            "run the same command again.",
            code="cannot-write",
        ) from error


class Count:
    """What one run of one model came to so far."""

    def __init__(self) -> None:
        self.n_asked = self.n_errors = self.n_cached = 0

    def add(self, response: Response, is_error: bool) -> None:
        self.n_asked += 1
        self.n_errors += is_error
        self.n_cached += response.is_cached


class Judging:
    """Gives every response its verdict, once; run again, it goes on with what was answered since.

    `tell` gets the index and outcome of every verdict, first those of earlier runs.
    """

    def __init__(
        self,
        folder: Path,
        grid: Grid,
        meter: Meter,
        tell: Callable[[int, Outcome | None], None] | None = None,
        decider: Decider | None = None,
    ) -> None:
        self._folder, self._grid, self._meter = folder, grid, meter
        self._tell = tell or (lambda index, outcome: None)  # noqa: ARG005
        self._decider = decider or Decider()
        self._judged, self._seen = bytearray(len(grid) // 8 + 1), bytearray(len(grid) // 8 + 1)
        self._by_id = {probe.id: probe for probe in grid.plan.probes}
        self._responses = Rows(folder / RESPONSES, Response, RowsFromSchema1(grid.plan))
        for row in marks(folder, self._judged, grid):
            meter.had(is_failed(row))
            self._tell(row.index, row.outcome)

    def run(self) -> None:
        last = time.monotonic()
        said = answered(self._folder, self._seen, self._grid, self._responses)
        new = (response for response in said if mark(self._judged, response.index))
        with Rows(self._folder / VERDICTS, Verdict) as rows:
            while some := list(islice(new, self._decider.at_once)):
                for row in self._verdicts(some):
                    rows.append(row)
                    self._meter.tick(is_failed(row))
                    self._tell(row.index, row.outcome)
                if time.monotonic() - last >= FLUSH_SECONDS:
                    rows.flush()
                    last = time.monotonic()
        self._responses.go_on()

    def _verdicts(self, some: list[Response]) -> Iterator[Verdict]:
        asked = [(self._by_id[response.probe], response) for response in some]
        found = self._decider.verdicts(asked, self._grid.plan.application)
        for (probe, response), row in zip(asked, found, strict=True):
            yield msgspec.structs.replace(
                row,
                response=digest_response(response),
                judged_by=self._decider.judged_by(probe),
                error_code=_error_code(row, response),
            )


def _error_code(row: Verdict, response: Response) -> str | msgspec.UnsetType:
    """Of a verdict row: the response's, or that of a judge that failed."""
    if row.error is None:
        return msgspec.UNSET
    return response.error_code if response.error is not None else JUDGE_FAILED


@contextmanager
def running(folder: Path, model: PlannedModel, engine: Engine) -> Iterator[Count]:
    """A row of runs.jsonl at the start, so that a killed run is there too, and one at the end."""
    started, count = time.monotonic(), Count()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    begun = Run(
        model.id, engine.name, at, platform.node(), 0.0, 0, 0, 0, _versions(), engine.numerics,
        base_numerics=base_numerics(engine), is_batch_unverified=is_batch_unverified(engine),
    )  # fmt: skip
    with Rows(folder / RUNS, Run) as rows:
        rows.append(begun)
    try:
        yield count
    finally:
        ended = msgspec.structs.replace(
            begun,
            seconds=round(time.monotonic() - started, 3),
            n_asked=count.n_asked,
            n_errors=count.n_errors,
            n_cached=count.n_cached,
            account=engine.account() if isinstance(engine, Accountant) else {},
        )
        # A full disk has been reported by the rows themselves; this line is only circumstance.
        with suppress(HeredityError, OSError), Rows(folder / RUNS, Run) as rows:
            rows.append(ended)


def runs(folder: Path) -> Iterator[Run]:
    """Every row of runs.jsonl."""
    return iter(Rows(folder / RUNS, Run, run_from_schema_1))


def refuse_other_arithmetic(folder: Path, model: PlannedModel, engine: Engine, earlier: set[str]) -> None:
    """Raise NotComparable where `earlier` engines of this model's answers compute otherwise than `engine`."""
    held = {run.base_numerics for run in runs(folder) if run.engine in earlier}
    if held - {engine.numerics}:
        raise NotComparable(
            f"Model '{model.name}' answered in {folder} as '{held.pop()}' computes, this engine is "
            f"'{engine.numerics}': its answers would not belong together. Ask on the machine and with the "
            "versions of before, or in another folder.",
            code="numerics-differ",
        )


def refuse_unknown_arithmetic(folder: Path, models: Sequence[PlannedModel], earlier: list[set[str]]) -> None:
    """Raise Damaged where the runs no longer say how an engine of `earlier` (by model) computed."""
    held = {(run.model, run.engine) for run in runs(folder)}
    for model, engines in zip(models, earlier, strict=True):
        for engine in sorted(engines):
            if (model.id, engine) not in held:
                raise Damaged(
                    f"{folder / RUNS}: no run of '{model.name}' by '{engine}', which answered here: "
                    f"how it computed is not known. {_RESTORE}",
                    code="run-missing",
                )


def marks(folder: Path, judged: bytearray, grid: Grid) -> Iterator[Mark]:
    """Every verdict as a mark, its bit set in `judged`. Raises Damaged for one of another plan, or twice."""
    rows = Rows(folder / VERDICTS, Mark, RowsFromSchema1(grid.plan))
    for row in rows:
        if not grid.matches(row.index, row.trial):
            raise _not_of_this_plan(rows, row.index)
        _mark(judged, row.index, rows)
        yield row


def answered(
    folder: Path, done: bytearray, grid: Grid, rows: Rows[Response] | None = None
) -> Iterator[Response]:
    """Every response (in `rows`, from its start), its bit set in `done`. Raises Damaged for one of another
    trial, or twice."""
    rows = Rows(folder / RESPONSES, Response, RowsFromSchema1(grid.plan)) if rows is None else rows
    for row in rows:
        if not _is_of_its_trial(row, grid):
            raise _not_of_this_plan(rows, row.index)
        _mark(done, row.index, rows)
        yield row


def _is_of_its_trial(row: Response, grid: Grid) -> bool:
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
    return Damaged(
        f"{rows.path}:{rows.line}: trial {index} is not of this plan. Remove the line to go on.",
        code="trial-not-planned",
    )


def _mark(done: bytearray, index: int, rows: Rows[Any]) -> None:
    if not mark(done, index):
        raise Damaged(
            f"{rows.path}:{rows.line}: trial {index} is there twice. Remove one to go on.", code="trial-twice"
        )


def drop_stale_verdicts(folder: Path, said: Said, grid: Grid, decider: Decider | None = None) -> None:
    """Drop every verdict that is not one of these judges on the response that is here: it is judged anew.

    What it judged is gone, was asked again or was edited; or the judges are others than they were.
    """
    chosen, probes, samples = decider or Decider(), grid.plan.probes, grid.plan.samples
    judged = bytearray(len(grid) // 8 + 1)
    now = [chosen.judged_by(probe) for probe in probes]

    def is_own(row: Mark | Verdict) -> bool:
        return row.judged_by == now[row.index // samples % len(probes)] and said.is_judged_by(row)

    # the sum reads to the end, so that damage anywhere is told before anything is dropped
    if sum(not is_own(row) for row in marks(folder, judged, grid)):
        rewrite(folder / VERDICTS, Verdict, is_own)


def chosen_judge(folder: Path) -> str:
    """The judge that decides in this folder where no check does; the usual one where none was chosen."""
    path = folder / JUDGE
    if not path.exists():
        return DEFAULT
    try:
        return msgspec.json.decode(path.read_bytes(), type=Chosen).judge
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{path}: {error}. Delete it, and name the judge again with --judge.") from None


def choose_judge(folder: Path, judge: str) -> None:
    """Keep which judge decides in this folder; no part of the plan, which says what is asked."""
    if chosen_judge(folder) != judge:
        write_atomic(folder / JUDGE, encode(Chosen(judge)) + b"\n")


def set_errors_aside(folder: Path, grid: Grid) -> None:
    """Move every error row from responses.jsonl to errors.jsonl, so that its trial is asked again.

    What its model cannot be asked at all stays: that is no error. Killed in between, a row is in both files,
    and in errors.jsonl twice after the next time; never in none.
    """
    seen = bytearray(len(grid) // 8 + 1)
    n = 0
    with Rows(folder / ERRORS, Response) as aside:
        for row in answered(folder, seen, grid):
            if is_failed(row):
                aside.append(row)
                n += 1
    if n:
        upgrade = RowsFromSchema1(grid.plan)
        rewrite(folder / RESPONSES, Response, lambda row: not is_failed(row), upgrade)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("heredity", *(n for n in ("numpy", "torch", "transformers") if n in sys.modules)):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
