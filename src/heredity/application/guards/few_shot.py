"""Shows worked examples before a conversation: always the same ones, or those most like the question.

Source: examples by similarity, Liu et al. 2021 (2101.06804); by BM25, Rubin et al. 2021 (2112.08633).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from msgspec.structs import replace

from heredity.application.conversation import own_words
from heredity.application.guards.protocols import GuardRule
from heredity.core.errors import BadArgument
from heredity.core.records import Message, Request

if TYPE_CHECKING:
    from heredity.application.retrieval.lexical import Bm25
    from heredity.application.spec import Application

Example = tuple[str, str]  # a question and its answer


class FewShotGuard(GuardRule, frozen=True):
    """examples: questions with answers. n: shown at once. select: the "first" ones, or the most "similar".

    "similar" orders them by BM25 over the newest question, the nearest last; it needs the extra `retrieval`.
    """

    examples: tuple[Example, ...]
    n: int = 4
    select: Literal["first", "similar"] = "first"

    def __post_init__(self) -> None:
        if not self.examples or self.n < 1:
            raise BadArgument("few_shot needs examples, and n of at least 1", code="bad-setting")

    def prepare(self, request: Request, application: Application) -> Request:  # noqa: ARG002
        """The request with the examples behind the system message and the application's own examples."""
        has_system = bool(request.messages) and request.messages[0].role == "system"
        at = max(request.n_shared, int(has_system))
        chosen = self._chosen(request.messages[at:])
        shown = [message for each in chosen for message in _messages(each)]
        messages = (*request.messages[:at], *shown, *request.messages[at:])
        is_shared = self.select == "first" and at == request.n_shared
        return replace(request, messages=messages, n_shared=request.n_shared + len(shown) * is_shared)

    def _chosen(self, conversation: tuple[Message, ...]) -> list[Example]:
        asked = next(filter(None, map(own_words, reversed(conversation))), "")
        if self.select == "first" or not asked:
            return list(self.examples[: self.n])
        scores = _ranking(tuple(question for question, _ in self.examples)).scores(asked)
        order = np.argsort(-scores, kind="stable")[: self.n]  # equal scores keep the order of the examples
        return [self.examples[int(i)] for i in reversed(order)]


def _messages(example: Example) -> tuple[Message, Message]:
    return Message("user", example[0]), Message("assistant", example[1])


@lru_cache(maxsize=4)
def _ranking(questions: tuple[str, ...]) -> Bm25:
    from heredity.application.retrieval.lexical import Bm25

    return Bm25.of(questions)


GUARD = FewShotGuard
