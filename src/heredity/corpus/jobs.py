"""One job of a worker: read and run steps; run steps on the rest; tokenize.

Promises: the outcome of a job depends on the job only, and is recorded once it is on disk. A worker ends when
its build has ended. A user's mistake is returned as its message, because our exceptions cannot be passed
between processes.
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
from heredity.corpus.steps import Context, CorpusStep, DocumentTransform, Duplicates, Filter, Judged, Marks
from heredity.corpus.text import TARGET, Hashes, Ints, Mask, TextBatch, batches

_BLOCK = 30 << 20  # bytes; glibc adapts to no larger block
_SPARSE = 0.7  # below this share of documents left, the dropped ones are removed from the batch


@dataclass
class StepCount:
    """The counts of a step. Bytes are of text, without the line feeds between documents."""

    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    n_changed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)

    def add(self, other: StepCount) -> None:
        """Add the counts of another run."""
        for name in ("documents_in", "bytes_in", "documents_out", "bytes_out", "n_changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped.update(other.dropped)
        self.noted.update(other.noted)


class StepRun:
    """Prepared steps, and their counts."""

    def __init__(self, steps: Sequence[CorpusStep], context: Context) -> None:
        # Once a large block was freed, the C library keeps the memory of a batch's arrays for the next batch;
        # otherwise it returns it to the system, which zeroes it again each time.
        np.empty(_BLOCK, np.uint8)
        self.counts = [StepCount() for _ in steps]
        self._steps = [_ready(step, context) for step in steps]

    def over(self, batch: TextBatch) -> TextBatch:
        """The documents of a batch that are left."""
        return self.through(batch)[0]

    def through(self, batch: TextBatch) -> tuple[TextBatch, Ints]:
        """The documents of a batch that are left, and their indices in it."""
        alive, places = np.ones(len(batch), np.bool_), np.arange(len(batch))
        for step, count in zip(self._steps, self.counts, strict=True):
            if np.count_nonzero(alive) < _SPARSE * len(alive):
                batch, places = batch.keep(alive), places[alive]
                alive = np.ones(len(batch), np.bool_)
            if not len(batch):
                break
            count.documents_in += int(alive.sum())
            count.bytes_in += int(batch.lengths[alive].sum())
            if isinstance(step, DocumentTransform):
                written = step.write(batch, alive)
                batch = written.batch
                count.n_changed += written.n_changed
                count.noted.update(written.noted)
                _drop(alive, [*written.dropped, ("empty", batch.lengths == 0)], count)
            else:
                judged = step(batch)
                count.noted.update(
                    {n: int((m & alive).sum()) for n, m in judged.labelled if (m & alive).any()}
                )
                _drop(alive, judged.dropped, count)
            count.documents_out += int(alive.sum())
            count.bytes_out += int(batch.lengths[alive].sum())
        return batch.keep(alive), places[alive]


def _ready(step: CorpusStep, context: Context) -> DocumentTransform | Callable[[TextBatch], Judged]:
    if isinstance(step, DocumentTransform):
        return step
    assert isinstance(step, Filter)
    return step.ready(context)


def _drop(alive: Mask, marks: Marks, count: StepCount) -> None:
    for reason, holds in marks:
        if n := int(np.count_nonzero(holds & alive)):
            count.dropped[reason] += n
            alive &= ~holds


class JobFolder(NamedTuple):
    """The folder of a build, and the files of a job in it.

    stage: the comparisons of all documents that the job has passed; the last stage holds its tokens.
    """

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
        """Save an array."""
        following = _following(self.at(what))
        with explain_full_disk(self.folder, values.nbytes), following.open("wb") as file:
            np.save(file, values)
        return following.replace(self.at(what))

    def get(self, what: str) -> NDArray[Any]:
        """Load an array."""
        array: NDArray[Any] = np.load(self.at(what), allow_pickle=False)
        return array

    def write(self, batches: Iterable[TextBatch]) -> list[Path]:
        """Save documents. Returns their files."""
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
        """Delete the documents and their keys, once a later stage is saved."""
        for path in (self.text, self.at("lengths"), self.at("keys")):
            path.unlink(missing_ok=True)

    def batches(self, kept: Mask | None = None) -> Iterator[TextBatch]:
        """Read the documents back: all, or those in the mask."""
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
    """A name unique to this process: a worker can outlive its killed build and write the same file."""
    return path.with_name(f"{path.name}.{os.getpid()}.next")


@dataclass
class JobResult:
    """The result of a job. counts: one per step; for a comparison of all documents, one per source."""

    counts: list[StepCount] = field(default_factory=list)
    read: StepCount = field(default_factory=StepCount)
    n_bytes: int = 0


class Finished(msgspec.Struct, frozen=True):
    """The record of a finished job. files: SHA-256 by name."""

    done: JobResult
    files: dict[str, str]


def finish(path: Path, files: Iterable[Path], done: JobResult) -> JobResult:
    """Record at `path` that a job is done, with the hashes of its files in the same folder."""
    hashes = {file.relative_to(path.parent).as_posix(): hash_file(file) for file in files}
    write_atomic(path, encode(Finished(done, hashes)))
    return done


def done_before(path: Path) -> JobResult:
    """The result of a recorded job."""
    return _read(path).done


def is_whole(path: Path) -> bool:
    """Whether the record exists and none of its files was changed."""
    try:
        result = _read(path)
        return all(hash_file(path.parent / name) == hashed for name, hashed in result.files.items())
    except (OSError, msgspec.DecodeError):
        return False


def _read(path: Path) -> Finished:
    return msgspec.json.decode(path.read_bytes(), type=Finished, dec_hook=_counter)


def _counter(_kind: type, value: dict[str, int]) -> Counter[str]:
    return Counter(value)


T = TypeVar("T")
MAX_DOCUMENT_BYTES = 64 << 20  # bytes of a document: the counts of a batch take many times as much memory
_ENCODED = 256  # documents that are tokenized at once


class SourceJob(NamedTuple):
    """A job of a source, and the folder of its documents.

    steps: indices of its steps in the recipe. keys: index of the comparison after them, None for none.
    latest: the stage that an earlier build reached, -1 for none.
    """

    place: JobFolder
    source: int
    job: Job
    steps: range = range(0)
    keys: int | None = None
    latest: int = -1

    @property
    def before(self) -> JobFolder:
        """The previous stage, whose documents this one reads."""
        return self.place._replace(stage=self.place.stage - 1)


class Worker:
    """The recipe and its prepared steps, in one process."""

    def __init__(self, recipe: CorpusRecipe, context: Context) -> None:
        self.recipe, self.context = recipe, context
        self._ready: dict[range, StepRun] = {}

    def inputs(self, source: int, job: Job) -> list[Input]:
        """Size and hash of each file of a job."""
        return self.recipe.sources[source].inputs(job)

    def latest(self, place: JobFolder, most: int) -> int:
        """The last complete stage of an earlier build, `most` at most; -1 for none."""
        stages = range(most, -1, -1)
        return next((n for n in stages if is_whole(place._replace(stage=n).record)), -1)

    def run(self, task: SourceJob) -> JobResult:
        """Run steps on the documents of a job, which are read from its source or from the previous stage."""
        done, place = JobResult(), task.place
        if task.steps not in self._ready:
            self._ready[task.steps] = StepRun([self.recipe.steps[i] for i in task.steps], self.context)
        run = self._ready[task.steps]
        run.counts = [StepCount() for _ in task.steps]
        run = run
        result = (
            task.before.batches(task.before.get("kept") if task.before.at("kept").is_file() else None)
            if place.stage
            else self._read(task, done)
        )
        step = self.recipe.steps[task.keys] if task.keys is not None else None
        keys: list[Hashes] = []
        files = place.write(_passed(result, run, step, keys))
        if isinstance(step, Duplicates):
            files.append(
                place.put("keys", np.concatenate(keys) if keys else step.keys(TextBatch.from_documents([])))
            )
        done.counts = run.counts
        return finish(place.record, files, done)

    def _read(self, task: SourceJob, done: JobResult) -> Iterator[TextBatch]:
        source = self.recipe.sources[task.source]
        for batch in batches(_counted(source.read(task.job), done.read)):
            if (longest := int(batch.lengths.max())) > MAX_DOCUMENT_BYTES:
                names = [name for _, name in task.job.files]
                where = names[0] if len(names) == 1 else f"one of {names[0]} to {names[-1]}"
                raise UsageError(
                    f"source '{source.name}': a document of {where} has {longest:,} bytes, and"
                    f" {MAX_DOCUMENT_BYTES:,} is the most. Split it into documents (separator = ...), or into"
                    " files.",
                    table=source.name,
                )
            yield batch

    def encode(self, task: SourceJob, folder: Path, dtype: str, validation: float) -> JobResult:
        """Tokenize the documents of a job. Saves length, bytes, draw and split of each."""
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
    text_batches: Iterable[TextBatch], run: StepRun, step: CorpusStep | None, keys: list[Hashes]
) -> Iterator[TextBatch]:
    for batch in text_batches:
        left = run.over(batch)
        if len(left):
            if isinstance(step, Duplicates):
                keys.append(step.keys(left))
            yield left


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
    """64 bits of a hash of the document, so that equal texts are in the same split."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8, person=b"split").digest(), "little")


def held_out(draws: Hashes, share: float) -> Mask:
    """(document,) Whether it is in the validation split."""
    return draws < np.uint64(min(int(share * 2.0**64), 2**64 - 1))


def draws_of(batch: TextBatch) -> Hashes:
    """(document,) The draw of each."""
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
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process per core already
    threading.Thread(target=_end_with_build, daemon=True).start()
    _worker = Worker(recipe, context)


def _end_with_build() -> None:
    """End with the process that builds: if it is killed, it cannot end its workers."""
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
    """A function that calls a Worker's method once per row of arguments, and yields the results in order."""
    if workers == 1:
        worker = Worker(recipe, context)
        yield lambda name, rows: (getattr(worker, name)(*row) for row in rows)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (recipe, context)) as pool:

        def calls(name: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
            try:
                for result in pool.map(_call, [(name, row) for row in rows]):
                    if isinstance(result, _Failed):
                        raise (UsageError if result.is_mistake else HeredityError)(
                            result.message, code=result.code, table=result.table
                        )
                    yield result
            except BrokenProcessPool:
                raise HeredityError(
                    "A worker process died; the system may have been out of memory. Use fewer: --workers 1"
                ) from None

        try:
            yield calls
        finally:
            pool.shutdown(cancel_futures=True)


def added(counts: Iterable[Counter[str]]) -> dict[str, int]:
    """The sum of the counts, largest first."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
