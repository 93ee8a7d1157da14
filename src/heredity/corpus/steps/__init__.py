"""Steps that process documents, one file each. STEP is a Filter, a DocumentTransform or a Duplicates.

Filters have the names of datatrove's rules, and its names and defaults for their settings.

Promises: a step treats each document independently of the others in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import msgspec

from heredity.corpus.text import Hashes, Mask, TextBatch

Marks = Sequence[tuple[str, Mask]]  # a reason or label, and the documents that it applies to


class Context(NamedTuple):
    """The inputs that a step may read in addition to the documents."""

    root: Path  # the folder of the recipe, to which its paths are relative
    unseen: tuple[str, ...]  # texts to keep out of the corpus: the probes
    seed: int


class TransformedBatch(NamedTuple):
    """A transformed batch: the same number of documents, some rewritten. Empty ones are dropped."""

    batch: TextBatch
    n_changed: int = 0
    dropped: Marks = ()
    noted: dict[str, int] = {}  # noqa: RUF012  # number of changes, by kind


class Judged(NamedTuple):
    """The result of a filter: reasons for removal, and labels that are only counted."""

    dropped: Marks
    labelled: Marks = ()


class CorpusStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A step; its fields are its settings in the recipe."""

    VERSION: ClassVar[int] = 1  # raise it in the class of the kind when its results change

    def check(self) -> None:
        """Raises ValueError for impossible values."""

    def reads(self, context: Context) -> dict[str, str]:  # noqa: ARG002
        """SHA-256 of its other inputs, for the fingerprint."""
        return {}


class Filter(CorpusStep, frozen=True, kw_only=True):
    """A step that keeps or drops each document by its own text."""

    def ready(self, context: Context) -> Callable[[TextBatch], Judged]:  # noqa: ARG002
        """The filter as a function of a batch. Files are read here, once."""
        return lambda batch: Judged(self.verdicts(batch))

    def verdicts(self, batch: TextBatch) -> Marks:
        """Each reason to drop, with its documents. A document counts under the first reason that holds."""
        raise NotImplementedError


class DocumentTransform(CorpusStep, frozen=True, kw_only=True):
    """A step that rewrites documents and may drop some."""

    def write(self, batch: TextBatch, alive: Mask) -> TransformedBatch:
        """The batch after this step. alive: the documents that are not dropped yet; only they are counted."""
        raise NotImplementedError


class Duplicates(CorpusStep, frozen=True, kw_only=True):
    """A step that compares all documents: it computes keys of each, then decides which to keep."""

    def keys(self, batch: TextBatch) -> Hashes:
        """(document, k) The keys of each document."""
        raise NotImplementedError

    def kept(self, keys: Hashes) -> Mask:
        """(document,) Which of all documents to keep, in their order."""
        raise NotImplementedError
