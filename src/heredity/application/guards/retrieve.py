"""Shows the passages of an index that match each question: a study then measures what retrieval adds.

It is [retrieval] of an application for one model of a study; the others see no passages.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import UNSET, UnsetType
from msgspec.structs import asdict, replace

from heredity.application.guards import GuardFacts, GuardRule
from heredity.application.retrieval import Retrieval, own_words, with_passages
from heredity.core.records import Request, RetrievalMethod


class RetrieveGuard(GuardRule, frozen=True):
    """The settings of a Retrieval that was read: index, hash, passages, method, and those of its reranker."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"index", "rerank"})
    RETRIEVES: ClassVar[bool] = True

    index: str
    hash: str
    passages: int = 4
    method: RetrievalMethod = "bm25"
    rerank: str | UnsetType = UNSET
    candidates: int | UnsetType = UNSET
    rerank_id: str | UnsetType = UNSET

    def prepare(self, request: Request, facts: GuardFacts) -> Request:  # noqa: ARG002
        """The request with passages before the newest question. Raises as Retrieval.search does."""
        messages = list(request.messages)
        for at in range(len(messages) - 1, request.n_shared - 1, -1):
            if asked := own_words(messages[at]):
                passages = Retrieval(**asdict(self)).search(asked)
                messages[at] = with_passages(messages[at], passages)
                # A later reply to a turn answers results of tools: its row does not repeat the passages.
                if at == len(messages) - 1:
                    request = replace(request, retrieved=(*passages, *(request.retrieved or ())))
                return replace(request, messages=tuple(messages))
        return request


GUARD = RetrieveGuard
