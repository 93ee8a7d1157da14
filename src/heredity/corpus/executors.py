"""The steps of a recipe on datatrove's executors: on this machine, or on a cluster that Slurm runs.

The sources and steps are heredity's own; only steps that look at one document at a time run here. Each task
of datatrove takes every n-th job.

Promises: the kept documents, their texts and their order are those of a local build.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import msgspec

from heredity.core.errors import Unavailable, how_to_install
from heredity.core.files import write_atomic
from heredity.corpus.jobs import StepRun
from heredity.corpus.recipe import CorpusRecipe, kept_of, kind_of, n_spread_steps
from heredity.corpus.sources import Job, SkippedDocument
from heredity.corpus.steps import Context
from heredity.corpus.text import TARGET, TextBatch

try:
    from datatrove.data import Document
    from datatrove.pipeline.base import PipelineStep
except ImportError:
    raise Unavailable(f"This needs datatrove. {how_to_install('torch,corpus,datatrove')}") from None


class JobPart(NamedTuple):
    """A job with its source, and its number among all jobs of the recipe."""

    number: int
    source: int
    job: Job


def parts(recipe: CorpusRecipe) -> list[JobPart]:
    """Every job, in the order of a local build."""
    job_parts = [(i, job) for i, source in enumerate(recipe.sources) for job in source.jobs(recipe.root)]
    return [JobPart(number, source, job) for number, (source, job) in enumerate(job_parts)]


def pipeline(recipe: CorpusRecipe, unseen: tuple[str, ...], out: Path) -> list[PipelineStep]:
    """Steps for an executor of datatrove, which write the kept documents to `out`/kept. Raises UsageError."""
    return [
        ReadDocuments(recipe),
        Cleaning(recipe, unseen, n_spread_steps(recipe)),
        Keeping(recipe, str(out)),
    ]


class ReadDocuments(PipelineStep):  # type: ignore[misc]
    """The documents of a recipe's sources."""

    name, type = "heredity: sources", "READER"

    def __init__(self, recipe: CorpusRecipe) -> None:
        super().__init__()
        self._recipe = recipe

    def run(
        self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """The documents of every n-th job."""
        yield from data or ()
        for part in parts(self._recipe)[rank::world_size]:
            source = self._recipe.sources[part.source]
            for place, document in enumerate(source.read(part.job)):
                if isinstance(document, SkippedDocument):
                    self.stat_update(f"skipped_{document.reason}")
                    continue
                about = {"source": source.name, "job": part.number}
                yield Document(text=document.decode(), id=f"{part.number:06}/{place}", metadata=about)


class Cleaning(PipelineStep):  # type: ignore[misc]
    """The steps of a recipe before `stop`; they share their counts of a text, as in a local build."""

    name, type = "heredity: steps", "FILTER"

    def __init__(self, recipe: CorpusRecipe, unseen: tuple[str, ...], stop: int) -> None:
        super().__init__()
        self._steps, self._context = recipe.steps[:stop], Context(recipe.root, unseen, recipe.seed)

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # noqa: ARG002
        """The documents that are left, with their new texts."""
        run = StepRun(self._steps, self._context)
        for held in _batched(data):
            left, places = run.through(
                TextBatch.from_documents([document.text.encode() for document in held])
            )
            for place, text in zip(places.tolist(), left, strict=True):
                held[place].text = text.decode()
                yield held[place]
        for step, count in zip(self._steps, run.counts, strict=True):
            self.stat_update(f"{kind_of(step)}: in", value=count.documents_in)
            for reason, n in count.dropped.items():
                self.stat_update(f"{kind_of(step)}: {reason}", value=n)


class Keeping(PipelineStep):  # type: ignore[misc]
    """Write documents as JSON lines, one file per job, also for a job with none left."""

    name, type = "heredity: JSON lines", "WRITER"

    def __init__(self, recipe: CorpusRecipe, out: str) -> None:
        super().__init__()
        self._recipe, self._out = recipe, out

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents, once they are on disk."""
        waiting = {part.number: part for part in parts(self._recipe)[rank::world_size]}
        for number, documents in groupby(data, lambda document: document.metadata["job"]):
            held = list(documents)
            self._write(waiting.pop(number), held)
            yield from held
        for part in waiting.values():
            self._write(part, [])

    def _write(self, part: JobPart, documents: list[Document]) -> None:
        path = kept_of(Path(self._out), part.source) / f"{part.number:06}.jsonl"
        encoder = msgspec.json.Encoder()
        rows = (encoder.encode({"text": each.text, "id": each.id}) + b"\n" for each in documents)
        write_atomic(path, b"".join(rows))


def _batched(documents: Iterable[Document]) -> Iterator[list[Document]]:
    held: list[Document] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document.text)
        if size >= TARGET:
            yield held
            held, size = [], 0
    if held:
        yield held
