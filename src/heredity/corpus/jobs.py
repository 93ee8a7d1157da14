"""One job of a worker: read and run steps; run steps on the rest; tokenize.

Promises: the outcome of a job is a function of the job, and is recorded once it is on disk. A worker ends
when its build has ended. A user's mistake is returned as its message, because our exceptions cannot be
passed between processes.
Leaves to others: the order of jobs and what their outcomes add up to (build.py).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import HeredityError, UsageError
from heredity.core.files import explain_full_disk, hash_file, write_atomic
from heredity.core.records import encode
from heredity.corpus import tokenizer
from heredity.corpus.recipe import CorpusRecipe
from heredity.corpus.sources import Input, Job, SkippedDocument
from heredity.corpus.steps import Context, CorpusStep, Duplicates
from heredity.corpus.text import TARGET, Ints, Mask, TextBatch, batches
from heredity.corpus.work import StepCount, StepRun


class JobFolder(NamedTuple):
    """The folder of a build, and the files of a job in it. stage: what the job has come to: how often all
    documents were compared, and at last its tokens."""

    folder: Path
    job: int
    stage: int = 0

    @property
    def record(self) -> Path:
        """The file that records that the job reached this stage."""
        return self._named("done")

    def at(self, what: str) -> Path:
        """The path of one of the job's arrays."""
        return self._named(f"{what}.npy")

    @property
    def text(self) -> Path:
        return self._named("text")

    def _named(self, what: str) -> Path:
        return self.folder / f"{self.job:06}.{self.stage}.{what}"

    def put(self, what: str, values: NDArray[Any]) -> Path:
        """Keep an array."""
        following = _following(self.at(what))
        with explain_full_disk(self.folder, values.nbytes), following.open("wb") as file:
            np.save(file, values)
        return following.replace(self.at(what))

    def get(self, what: str) -> NDArray[Any]:
        """An array that was put."""
        found: NDArray[Any] = np.load(self.at(what), allow_pickle=False)
        return found

    def write(self, batches: Iterable[TextBatch]) -> list[Path]:
        """Keep documents, and say in which files."""
        lengths = [np.zeros(0, np.int64)]
        following = _following(self.text)
        with following.open("wb") as file:
            for batch in batches:
                with explain_full_disk(self.folder, len(batch.raw)):
                    file.write(batch.raw)
                lengths.append(batch.lengths)
        following.replace(self.text)
        return [self.text, self.put("lengths", np.concatenate(lengths))]

    def forget(self) -> None:
        """Let the documents go, and what they were compared by: the job has come further."""
        for path in (self.text, self.at("lengths"), self.at("keys")):
            path.unlink(missing_ok=True)

    def batches(self, kept: Mask | None = None) -> Iterator[TextBatch]:
        """The documents again, or those of them that are kept."""
        lengths: Ints = self.get("lengths")
        ends = np.cumsum(lengths + 1)
        at = done = 0
        with self.text.open("rb") as file:
            while at < len(lengths):
                stop = int(np.searchsorted(ends, done + TARGET)) + 1
                stop = min(stop, len(lengths))
                batch = TextBatch(file.read(int(ends[stop - 1]) - done), lengths[at:stop])
                yield batch if kept is None else batch.keep(kept[at:stop])
                at, done = stop, int(ends[stop - 1])


def _following(path: Path) -> Path:
    """A name of this process's own: a worker that outlives a killed build for a moment may write the same."""
    return path.with_name(f"{path.name}.{os.getpid()}.next")


@dataclass
class JobResult:
    """The result of a job. counts: of each of its steps; where all documents are compared, of each
    source."""

    counts: list[StepCount] = field(default_factory=list)
    read: StepCount = field(default_factory=StepCount)
    n_bytes: int = 0


class Finished(msgspec.Struct, frozen=True):
    """A record. files: SHA-256 by name."""

    done: JobResult
    files: dict[str, str]


def finish(path: Path, files: Iterable[Path], done: JobResult) -> JobResult:
    """Say in the record at `path` that a job is done, and by which files in the same folder."""
    hashes = {file.relative_to(path.parent).as_posix(): hash_file(file) for file in files}
    write_atomic(path, encode(Finished(done, hashes)))
    return done


def done_before(path: Path) -> JobResult:
    """The result of a recorded job."""
    return _read(path).done


def is_whole(path: Path) -> bool:
    """Whether there is such a record, and every file of it as it was written."""
    try:
        found = _read(path)
        return all(hash_file(path.parent / name) == hashed for name, hashed in found.files.items())
    except (OSError, msgspec.DecodeError):
        return False


def _read(path: Path) -> Finished:
    return msgspec.json.decode(path.read_bytes(), type=Finished, dec_hook=_counter)


def _counter(_kind: type, value: Any) -> Any:
    return Counter(value)


T = TypeVar("T")
LONGEST = 64 << 20  # bytes of a document: counting in it takes many times as much memory
_ENCODED = 256  # documents that are cut into tokens at a time


class SourceJob(NamedTuple):
    """A job of a source, with where its documents are kept. steps: places in the recipe; then come the keys
    of the step at `keys`. latest: the stage that an earlier build reached, -1 for none."""

    place: JobFolder
    source: int
    job: Job
    steps: range = range(0)
    keys: int | None = None
    latest: int = -1

    @property
    def before(self) -> JobFolder:
        """The file of the documents that it resumes with."""
        return self.place._replace(stage=self.place.stage - 1)


class Worker:
    """A process's own copy of what every job needs."""

    def __init__(self, recipe: CorpusRecipe, context: Context) -> None:
        self.recipe, self.context = recipe, context
        self._ready: dict[range, StepRun] = {}

    def inputs(self, source: int, job: Job) -> list[Input]:
        """The files of a job as they are now."""
        return self.recipe.sources[source].inputs(job)

    def latest(self, place: JobFolder, most: int) -> int:
        """The last stage, `most` at most, of which everything is there from before; -1 for none."""
        stages = range(most, -1, -1)
        return next((n for n in stages if is_whole(place._replace(stage=n).record)), -1)

    def run(self, task: SourceJob) -> JobResult:
        """Steps over the documents of a job, read or kept."""
        done, place = JobResult(), task.place
        run = self._run(task.steps)
        found = task.before.batches(_kept(task.before)) if place.stage else self._read(task, done)
        step = self.recipe.steps[task.keys] if task.keys is not None else None
        keys: list[Any] = []
        files = place.write(_passed(found, run, step, keys))
        if isinstance(step, Duplicates):
            files.append(place.put("keys", np.concatenate(keys) if keys else step.keys(TextBatch.of([]))))
        done.counts = run.counts
        return finish(place.record, files, done)

    def _run(self, steps: range) -> StepRun:
        if steps not in self._ready:
            self._ready[steps] = StepRun([self.recipe.steps[i] for i in steps], self.context)
        run = self._ready[steps]
        run.counts = [StepCount() for _ in steps]
        return run

    def _read(self, task: SourceJob, done: JobResult) -> Iterator[TextBatch]:
        source = self.recipe.sources[task.source]
        for batch in batches(_counted(source.read(task.job), done.read)):
            if (longest := int(batch.lengths.max())) > LONGEST:
                raise UsageError(
                    _too_long(source.name, task.job, longest), code="document-too-long", table=source.name
                )
            yield batch

    def encode(self, task: SourceJob, folder: Path, dtype: str, validation: float) -> JobResult:
        """Cut a job's documents into tokens; kept of each: length, bytes, a draw, whether held out."""
        made, end = tokenizer.load(folder), tokenizer.end_of(folder)
        parts, lengths, sizes, draws = [np.zeros(0, dtype)], [], [], []
        for batch in task.before.batches():
            documents = list(batch)
            draws += [_draw(document) for document in documents]
            sizes += batch.lengths.tolist()
            for at in range(0, len(documents), _ENCODED):
                texts = [document.decode() for document in documents[at : at + _ENCODED]]
                for encoded in made.encode_batch_fast(texts, add_special_tokens=False):
                    parts.append(np.array([*encoded.ids, end], dtype))
                    lengths.append(len(encoded.ids) + 1)
        made_of = {
            "tokens": np.concatenate(parts),
            "token_lengths": np.array(lengths, np.int64),
            "sizes": np.array(sizes, np.int64),
            "draws": np.array(draws, np.uint64),
            "is_held_out": held_out(np.array(draws, np.uint64), validation),
        }
        files = [task.place.put(what, values) for what, values in made_of.items()]
        return finish(task.place.record, files, JobResult())


def _passed(
    found: Iterable[TextBatch], run: StepRun, step: CorpusStep | None, keys: list[Any]
) -> Iterator[TextBatch]:
    for batch in found:
        left = run.over(batch)
        if len(left):
            if isinstance(step, Duplicates):
                keys.append(step.keys(left))
            yield left


def _too_long(source: str, job: Job, n_bytes: int) -> str:
    names = [name for _, name in job.files]
    where = names[0] if len(names) == 1 else f"one of {names[0]} to {names[-1]}"
    return (
        f"source '{source}': a document of {where} has {n_bytes:,} bytes, and {LONGEST:,} is the most. Cut it"
        " into documents (separator = ...), or into files."
    )


def _kept(place: JobFolder) -> Any:
    return place.get("kept") if place.at("kept").is_file() else None


def _counted(documents: Iterable[bytes | SkippedDocument], count: StepCount) -> Iterator[bytes]:
    for document in documents:
        count.documents_in += 1
        if isinstance(document, SkippedDocument):
            count.dropped[document.reason] += 1
            continue
        count.documents_out += 1
        count.bytes_out += len(document)
        yield document


def _draw(document: bytes) -> int:
    """64 bits of a document's own: the same text is on the same side of every cut."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8, person=b"split").digest(), "little")


def held_out(draws: Any, share: float) -> Any:
    """(document,) Whether it is of the validation split."""
    return draws < np.uint64(min(int(share * 2.0**64), 2**64 - 1))


def draws_of(batch: TextBatch) -> Any:
    """(document,) Its draw."""
    return np.array([_draw(document) for document in batch], np.uint64)


# --- processes ---------------------------------------------------------------------------------------

_worker: Worker | None = None


class _Failed(NamedTuple):
    message: str
    is_mistake: bool  # of the user's
    code: str
    table: str


def _begin(recipe: CorpusRecipe, context: Context) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as many processes as cores are at work already
    threading.Thread(target=_end_with_build, daemon=True).start()
    _worker = Worker(recipe, context)


def _end_with_build() -> None:
    """Wait for the process that builds, and go with it: killed, it cannot say so."""
    if (building := parent_process()) is not None:
        building.join()
        os._exit(1)


def _call(asked: tuple[str, tuple[Any, ...]]) -> Any:
    assert _worker is not None
    name, arguments = asked
    try:
        return getattr(_worker, name)(*arguments)
    except HeredityError as error:
        return _Failed(str(error), isinstance(error, UsageError), error.code, error.table)


Calls = Callable[[str, Sequence[tuple[Any, ...]]], Iterator[Any]]


@contextmanager
def calling(recipe: CorpusRecipe, context: Context, workers: int) -> Iterator[Calls]:
    """A function that calls a Worker's method for each of many arguments, the results in that order."""
    if workers == 1:
        worker = Worker(recipe, context)
        yield lambda name, rows: (getattr(worker, name)(*row) for row in rows)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (recipe, context)) as pool:

        def calls(name: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
            try:
                for found in pool.map(_call, [(name, row) for row in rows]):
                    if isinstance(found, _Failed):
                        raise (UsageError if found.is_mistake else HeredityError)(
                            found.message, code=found.code, table=found.table
                        )
                    yield found
            except BrokenProcessPool:
                raise HeredityError(
                    "A worker process died; the system may have been out of memory. Give fewer: --workers 1"
                ) from None

        try:
            yield calls
        finally:
            pool.shutdown(cancel_futures=True)


def added(counts: Iterable[Counter[str]]) -> dict[str, int]:
    """Counts by word, the largest first."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
