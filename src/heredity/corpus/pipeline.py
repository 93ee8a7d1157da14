"""The documents of a build: read, passed through every step, and counted.

Between two steps that compare all documents, jobs run independently. Such a step, and the tokenizer, need all
jobs: a gate records that they are done.

Promises: every document is counted, in and out of every step, empty ones too. A job that was finished before
a kill is not repeated.
Leaves to others: each step (steps/), and the tokens (build.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from heredity.core.errors import BadInput
from heredity.corpus.jobs import Calls, JobFolder, JobResult, SourceJob, added, done_before, finish, is_whole
from heredity.corpus.recipe import CorpusRecipe, kind_of
from heredity.corpus.sources import Input
from heredity.corpus.steps import Duplicates
from heredity.corpus.work import StepCount
from heredity.corpus.workspace import Watch


@dataclass
class DocumentStage:
    """All jobs of a build, each at its stage. counts: (step, source)."""

    recipe: CorpusRecipe
    calls: Calls
    watch: Watch
    tasks: list[SourceJob] = field(default_factory=list)
    inputs: list[list[Input]] = field(default_factory=list)
    read: list[StepCount] = field(default_factory=list)
    counts: list[list[StepCount]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Find the jobs, and hash all their files."""
        sources = self.recipe.sources
        for number, source in enumerate(sources):
            for job in source.jobs(self.recipe.root):
                self.tasks.append(SourceJob(JobFolder(Path(), len(self.tasks)), number, job))
        self.inputs = [[] for _ in sources]
        self.read = [StepCount() for _ in sources]
        self.counts = [[StepCount() for _ in sources] for _ in self.recipe.steps]
        self.barriers = [i for i, step in enumerate(self.recipe.steps) if isinstance(step, Duplicates)]
        rows = [(task.source, task.job) for task in self.tasks]
        for number, (task, found) in enumerate(zip(self.tasks, self.calls("inputs", rows), strict=True), 1):
            self.inputs[task.source] += found
            self.watch.at("hashing", number, len(rows))

    @property
    def last(self) -> int:
        """The stage of a job's tokens: one after that of its last steps."""
        return len(self.barriers) + 1

    def gate(self, number: int) -> Path:
        """The record that all jobs have finished the stage before this one."""
        return self.tasks[0].place.folder / f"all.{number}.done"

    def go_on(self, between: Path) -> None:
        """Find the jobs that an earlier build finished."""
        self.tasks = [task._replace(place=JobFolder(between, task.place.job)) for task in self.tasks]
        gates = range(1, self.last + 1)
        n_open = next((number - 1 for number in gates if not is_whole(self.gate(number))), self.last)
        if not any(task.place.record.exists() for task in self.tasks):
            return
        found = self.calls("latest", [(task.place, n_open) for task in self.tasks])
        for number, (task, latest) in enumerate(zip(self.tasks, found, strict=True)):
            self.tasks[number] = task._replace(latest=latest)
            self.watch.at("checking", number + 1, len(self.tasks))

    def run(self) -> None:
        """Run all steps."""
        start = 0
        for stage, stop in enumerate([*self.barriers, None]):
            steps = range(start, len(self.recipe.steps) if stop is None else stop)
            self._arrange(stage, steps, stop)
            for task, done in self.through("run", [(task,) for task in self.tasks], _doing(stage)):
                self._count(task, done)
                if stage:
                    task.before.forget()
            self._refuse_empty(steps)
            if stop is not None:
                self._compare(stage, stop)
                self._refuse_empty(range(stop, stop + 1))
                start = stop + 1

    def through(
        self, name: str, rows: Sequence[tuple[object, ...]], doing: str
    ) -> Iterator[tuple[SourceJob, JobResult]]:
        """Call a worker's method for every job. Yields each with its result, first those of an earlier build.

        rows: the arguments, one row per job.
        """
        total = len(self.tasks)
        is_old = [task.latest >= task.place.stage for task in self.tasks]
        n_old = sum(is_old)
        if n_old:
            self.watch.say(f"{doing}: {n_old:,} of {total:,} jobs are done already")
        for number, task in enumerate((task for task, old in zip(self.tasks, is_old, strict=True) if old), 1):
            self.watch.at(doing, number, total)
            yield task, done_before(task.place.record)
        new = [i for i, old in enumerate(is_old) if not old]
        found = self.calls(name, [rows[i] for i in new])
        for number, (i, done) in enumerate(zip(new, found, strict=True), n_old + 1):
            self.watch.at(doing, number, total)
            yield self.tasks[i], done

    def _arrange(self, stage: int, steps: range, keys: int | None) -> None:
        for i, task in enumerate(self.tasks):
            self.tasks[i] = task._replace(place=task.place._replace(stage=stage), steps=steps, keys=keys)

    def arrange_tokens(self) -> None:
        """Set every job to the stage of its tokens."""
        self._arrange(self.last, range(0), None)

    def _count(self, task: SourceJob, done: JobResult) -> None:
        if not task.place.stage:
            self.read[task.source].add(done.read)
        for step, count in zip(task.steps, done.counts, strict=True):
            self.counts[step][task.source].add(count)

    def _compare(self, stage: int, number: int) -> None:
        """Decide which documents to keep, by a step that compares all of them, unless that is recorded."""
        gate = self.gate(stage + 1)
        if not is_whole(gate):
            self._without_duplicates(gate, number)
        self.counts[number] = done_before(gate).counts

    def _without_duplicates(self, gate: Path, number: int) -> None:
        step = self.recipe.steps[number]
        assert isinstance(step, Duplicates)
        keys = [task.place.get("keys") for task in self.tasks]
        kept = step.kept(np.concatenate(keys))
        counts = [StepCount() for _ in self.recipe.sources]
        files = []
        at = 0
        for task, own in zip(self.tasks, keys, strict=True):
            here = kept[at : at + len(own)]
            at += len(own)
            files.append(task.place.put("kept", here))
            lengths = task.place.get("lengths")
            count = counts[task.source]
            count.documents_in += len(own)
            count.bytes_in += int(lengths.sum())
            count.documents_out += int(here.sum())
            count.bytes_out += int(lengths[here].sum())
            if n := int((~here).sum()):
                count.dropped["duplicate"] += n
            self.watch.at("comparing", at, len(kept))
        finish(gate, files, JobResult(counts))

    def _refuse_empty(self, steps: range) -> None:
        """Raise BadInput if the sources, or one of these steps, left no document."""
        if not sum(count.documents_out for count in self.read):
            why = added(count.dropped for count in self.read)
            reasons = f" Left out: {_listed(why)}." if why else ""
            raise BadInput(
                self.recipe.path,
                f"the sources hold no document.{reasons} Name others.",
                code="corpus-no-document",
            )
        for number in steps:
            row = self.counts[number]
            if not sum(count.documents_out for count in row):
                kind = kind_of(self.recipe.steps[number])
                n = sum(count.documents_in for count in row)
                reasons = _listed(added(count.dropped for count in row))
                raise BadInput(
                    self.recipe.path,
                    f"the corpus is empty: the step '{kind}' dropped all {n:,} documents"
                    f" ({reasons}). Loosen its settings or leave it out.",
                    code="corpus-all-dropped",
                )


def _doing(stage: int) -> str:
    return "reading" if not stage else f"after comparison {stage}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items()) or "empty"
