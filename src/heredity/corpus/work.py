"""Run steps on batches of documents, and count what each step did.

Promises: each step counts each document once, in and out, by reason of removal. Consecutive filters share
their counts of the text.
Leaves to others: files and processes (jobs.py), and steps that compare all documents (build.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from heredity.corpus.steps import Context, CorpusStep, DocumentTransform, Filter, Judged, Marks
from heredity.corpus.text import Ints, Mask, TextBatch

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
