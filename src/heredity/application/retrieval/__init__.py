"""Retrieval: an index of a folder of documents, and the passages of it that match a question.

    with searching_in(store):            # the store of embedding models and rerankers
        ApplicationSession(application).retrieve(question)

Promises: equal text gives equal passages in equal order. A file that cannot be read is named, left out and
counted. Importing this loads none of the libraries of the extra `retrieval`.
Leaves to others: how passages are put in front of a question (passages.py). Results name models by id, so
that they are the same from any store that has these models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heredity.lineage.store import Store

_STORE = ContextVar["Store | None"]("store", default=None)


@contextmanager
def searching_in(store: Store | None) -> Iterator[None]:
    """Search with the models of this store; None changes nothing. A thread has a context of its own."""
    before = _STORE.set(store or _STORE.get())
    try:
        yield
    finally:
        _STORE.reset(before)


def search_store() -> Store:
    """The store of the search that runs now."""
    if (found := _STORE.get()) is not None:
        return found
    from heredity.lineage.store import Store

    return Store()
