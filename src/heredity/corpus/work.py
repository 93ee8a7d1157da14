"""The work of one process on a run of documents: the steps between two that compare all documents.

Promises: each step counts each document once, in and out, by reason of removal. Consecutive filters share
their counts of the text.
Leaves to others: files and processes (build.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from heredity.corpus.steps import Context, CorpusStep, DocumentTransform, Filter, Judged, Marks
from heredity.corpus.text import Ints, Mask, TextBatch

_BLOCK = 30 << 20  # bytes; glibc learns from no larger one
_SPARSE = 0.7  # where fewer are left, the rest is counted anew rather than the dropped carried along


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
        """Sum up what another run did."""
        for name in ("documents_in", "bytes_in", "documents_out", "bytes_out", "n_changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped.update(other.dropped)
        self.noted.update(other.noted)


class StepRun:
    """Steps made ready, and what they counted."""

    def __init__(self, steps: Sequence[CorpusStep], context: Context) -> None:
        # The C library learns from a large block that comes and goes to keep the memory of a batch's arrays
        # for the next batch, which is otherwise given back and zeroed anew each time.
        np.empty(_BLOCK, np.uint8)
        self.counts = [StepCount() for _ in steps]
        self._steps = [_ready(step, context) for step in steps]

    def over(self, batch: TextBatch) -> TextBatch:
        """The documents that are left of a batch."""
        return self.through(batch)[0]

    def through(self, batch: TextBatch) -> tuple[TextBatch, Ints]:
        """The documents that are left of a batch, and which they were."""
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
