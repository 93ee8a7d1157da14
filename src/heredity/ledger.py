"""The rows of a study's folder: how they are written as answers come, and how they are read again.

Promises: what was flushed survives a crash; a row of another plan, or one that is there twice, is an error
with its place; a prefix is on the disk before a row names it.
Leaves to others: bytes (store.py), and what the rows hold (pump.py, judges/).
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from heredity import plan
from heredity.engines import Engine
from heredity.errors import Damaged, HeredityError, NotComparable
from heredity.estimates import Run
from heredity.plan import Grid, PlannedModel
from heredity.progress import Meter
from heredity.pump import Prefix
from heredity.records import SCHEMA, Exchange, Response
from heredity.store import ResponseCache, Rows

RESPONSES, VERDICTS, PREFIXES, RUNS = "responses.jsonl", "verdicts.jsonl", "prefixes.jsonl", "runs.jsonl"
FLUSH_SECONDS = 1.0  # a crash loses at most what was answered in this time, and asks it again


class Mark(msgspec.Struct):
    """What a row needs to be counted as done; decoding no more makes a resume four times as fast."""

    index: int
    trial: str
    engine: str = ""
    error: str | None = None
    is_cached: bool = False
    schema: int = SCHEMA


class Prefixes:
    """prefixes.jsonl: the texts that many prompts begin with, each stored once; a few a study."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PREFIXES
        self._texts = {row.digest: row.text for row in Rows(self._path, Prefix)}

    def add(self, prefix: Prefix) -> None:
        """Keep a prefix; it is on the disk before any row names it."""
        if prefix.digest and prefix.digest not in self._texts:
            with Rows(self._path, Prefix) as rows:
                rows.append(prefix)
            self._texts[prefix.digest] = prefix.text

    def prompt(self, exchange: Exchange) -> str:
        """The whole text that the model saw, prefill included. Raises Damaged where its prefix is lost."""
        if exchange.prefix and exchange.prefix not in self._texts:
            raise Damaged(f"{self._path}: no prefix {exchange.prefix}, which a response begins with.")
        return self._texts.get(exchange.prefix, "") + exchange.prompt


class Keeper:
    """Puts finished responses on the disk, a batch at a time."""

    def __init__(self, rows: Rows[Response], cache: ResponseCache | None, meter: Meter, count: Count) -> None:
        self._rows, self._cache, self._meter, self._count = rows, cache, meter, count
        self._last = time.monotonic()

    def __call__(self, response: Response) -> None:
        with _explained(self._rows.path):
            self._rows.append(response)
        self._count.add(response)
        self._meter.tick(response.error is not None, response.is_cached)
        now = time.monotonic()
        if now - self._last >= FLUSH_SECONDS:
            self.flush()
            self._last = now

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
            "run the same command again."
        ) from error


class Count:
    """What one run of one model came to so far."""

    def __init__(self) -> None:
        self.n_asked = self.n_errors = self.n_cached = 0

    def add(self, response: Response) -> None:
        self.n_asked += 1
        self.n_errors += response.error is not None
        self.n_cached += response.is_cached


@contextmanager
def running(folder: Path, model: PlannedModel, engine: Engine) -> Iterator[Count]:
    """A row of runs.jsonl at the start, so that a killed run is there too, and one at the end."""
    started, count = time.monotonic(), Count()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    begun = Run(model.id, engine.name, at, platform.node(), 0.0, 0, 0, 0, _versions(), engine.numerics)
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
        )
        # A full disk has been reported by the rows themselves; this line is only circumstance.
        with suppress(HeredityError, OSError), Rows(folder / RUNS, Run) as rows:
            rows.append(ended)


def refuse_other_arithmetic(folder: Path, model: PlannedModel, engine: Engine, earlier: set[str]) -> None:
    """Raise NotComparable where `earlier` engines of this model's answers compute otherwise than `engine`."""
    held = {run.numerics for run in Rows(folder / RUNS, Run) if run.engine in earlier}
    if held - {engine.numerics}:
        raise NotComparable(
            f"Model '{model.name}' answered in {folder} as '{held.pop()}' computes, this engine is "
            f"'{engine.numerics}': its answers would not belong together. Ask on the machine and with the "
            "versions of before, or in another folder."
        )


def marks(path: Path, done: bytearray, grid: Grid) -> Iterator[Mark]:
    """Every row as a mark, its bit set in `done`. Raises Damaged for a row of another plan, or one twice."""
    for number, row in enumerate(Rows(path, Mark), 1):
        if not grid.matches(row.index, row.trial):
            raise Damaged(
                f"{path}:{number}: trial {row.index} is not of this plan. Remove the line to go on."
            )
        if not plan.mark(done, row.index):
            raise Damaged(f"{path}:{number}: trial {row.index} is there twice. Remove one to go on.")
        yield row


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("heredity", *(n for n in ("numpy", "torch", "transformers") if n in sys.modules)):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def check(response: Response, grid: Grid, folder: Path) -> None:
    if not grid.matches(response.index, response.trial):
        raise Damaged(
            f"{folder / RESPONSES}: trial {response.index} is not of this plan. Remove its line to go on."
        )
