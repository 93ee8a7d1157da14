"""Steps that process documents, one file per step. A file has STEP: a Filter, a Writer or a Duplicates.

The filters have the names that datatrove gives the same rules, and its names and defaults for their settings.

Promises: a step treats each document independently of the others in a batch.
Leaves to others: the order of the steps (the recipe) and who runs them (../build.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import msgspec

from heredity.corpus.text import Hashes, Mask, TextBatch

Marks = Sequence[tuple[str, Mask]]  # a word, and the documents (True) that it is said of


class Context(NamedTuple):
    """The context that a step may read in addition to the documents."""

    root: Path  # what paths in the recipe are relative to
    unseen: tuple[str, ...]  # texts that no model may have learned: the probes
    seed: int


class TransformedBatch(NamedTuple):
    """A transformed batch: the same number of documents, some rewritten. A document that is empty goes."""

    batch: TextBatch
    n_changed: int = 0
    dropped: Marks = ()
    noted: dict[str, int] = {}  # noqa: RUF012  # what it changed, by kind


class Judged(NamedTuple):
    """The result of a filter: reasons for removal, and counts without consequence."""

    dropped: Marks
    labelled: Marks = ()


class CorpusStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A step; its fields are its settings in the recipe."""

    VERSION: ClassVar[int] = 1  # raise it in the kind's own class when what it does to a document changes

    def check(self) -> None:
        """Raises ValueError for settings that make no sense."""

    def reads(self, context: Context) -> dict[str, str]:  # noqa: ARG002
        """SHA-256 of its other inputs, for the fingerprint."""
        return {}


class Filter(CorpusStep, frozen=True, kw_only=True):
    """A step that keeps or drops, each document by its own text."""

    def ready(self, context: Context) -> Callable[[TextBatch], Judged]:  # noqa: ARG002
        """The filter, with what it has to read once."""
        return lambda batch: Judged(self.verdicts(batch))

    def verdicts(self, batch: TextBatch) -> Marks:
        """Each reason to drop, with the documents that it holds of; the first that holds is counted."""
        raise NotImplementedError


class DocumentTransform(CorpusStep, frozen=True, kw_only=True):
    """A step that rewrites documents and may drop some."""

    def write(self, batch: TextBatch, alive: Mask) -> TransformedBatch:
        """The batch as it is afterwards. alive: the documents that are not dropped yet; others are left alone
        or written, and never counted."""
        raise NotImplementedError


class Duplicates(CorpusStep, frozen=True, kw_only=True):
    """A step over all documents: it collects keys of each, then decides which to keep."""

    def keys(self, batch: TextBatch) -> Hashes:
        """(document, k) What is compared."""
        raise NotImplementedError

    def kept(self, keys: Hashes) -> Mask:
        """(document,) Which stay, of all documents in their order."""
        raise NotImplementedError
