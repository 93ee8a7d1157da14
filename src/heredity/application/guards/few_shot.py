"""Shows worked examples before a conversation: always the same ones, or those most like the question.

Similar questions share rare words (BM25), or have embeddings that point in the same direction.

Source: examples by embeddings, Liu et al. 2021 (2101.06804); by BM25, Rubin et al. 2021 (2112.08633).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from heredity.application.guards import GuardFacts, GuardRule
from heredity.application.retrieval import own_words
from heredity.core.errors import BadArgument, BadInput
from heredity.core.readers import json_lines
from heredity.core.records import Message, Request
from heredity.core.sanitize import clean_text

if TYPE_CHECKING:
    from heredity.application.retrieval.index import Bm25
    from heredity.application.retrieval.models import Floats

MAX_BYTES = 2_000_000  # of a file of examples, all of which a plan stores
Example = tuple[str, str]  # a question and its answer


class FewShotGuard(GuardRule, frozen=True):
    """examples: questions with answers. n: shown at once. select: the "first" ones, or the most "similar".

    An application's file may name a JSONL file of them instead, in `file`. "similar" orders them by BM25 over
    the newest question, the nearest last; it needs the extra `retrieval`. With the name of an embedding model
    in `embed` it orders them by the cosine of their embeddings; `completed` adds `embed_id`, its id.
    """

    PLACES: ClassVar[frozenset[str]] = frozenset({"embed"})

    examples: tuple[Example, ...]
    n: int = 4
    select: Literal["first", "similar"] = "first"
    embed: str | UnsetType = UNSET
    embed_id: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if not self.examples or self.n < 1:
            raise BadArgument("few_shot needs examples, and n of at least 1")
        if self.embed is not UNSET and self.select != "similar":
            raise BadArgument('`embed` of few_shot needs select = "similar"')
        if (self.embed is UNSET) != (self.embed_id is UNSET):
            why = "the embedding model of few_shot was not read: use Application.load"
            raise BadArgument(why)

    @classmethod
    def completed(cls, settings: dict[str, object], folder: Path) -> dict[str, object]:
        """The settings with the examples of `file` and the id of `embed`, so that digests have both."""
        if isinstance(name := settings.get("embed"), str) and "embed_id" not in settings:
            from heredity.application.retrieval.models import find_embedder

            settings = {**settings, "embed_id": find_embedder(name).record.id}
        if (named := settings.get("file")) is None:
            return settings
        if not isinstance(named, str) or "examples" in settings:
            raise BadArgument("few_shot takes `examples`, or the name of a file in `file`", key="guards")
        others = {key: value for key, value in settings.items() if key != "file"}
        return {**others, "examples": read_examples(folder / Path(named).expanduser())}

    def prepare(self, request: Request, facts: GuardFacts) -> Request:  # noqa: ARG002
        """The request with the examples behind the system message and the application's own examples."""
        has_system = bool(request.messages) and request.messages[0].role == "system"
        at = max(request.n_shared, int(has_system))
        chosen = self._chosen(request.messages[at:])
        shown = [
            message
            for each in chosen
            for message in (Message("user", each[0]), Message("assistant", each[1]))
        ]
        messages = (*request.messages[:at], *shown, *request.messages[at:])
        is_shared = self.select == "first" and at == request.n_shared
        return replace(request, messages=messages, n_shared=request.n_shared + len(shown) * is_shared)

    def _chosen(self, conversation: tuple[Message, ...]) -> list[Example]:
        asked = next(filter(None, map(own_words, reversed(conversation))), "")
        if self.select == "first" or not asked:
            return list(self.examples[: self.n])
        scores = self._scores(tuple(question for question, _ in self.examples), asked)
        order = np.argsort(-scores, kind="stable")[: self.n]  # equal scores keep the order of the examples
        return [self.examples[int(i)] for i in reversed(order)]

    def _scores(self, questions: tuple[str, ...], asked: str) -> Floats:
        """How similar each question is to the one that was asked. (question,)"""
        if isinstance(self.embed, UnsetType) or isinstance(self.embed_id, UnsetType):
            return _ranking(questions).scores(asked)
        from heredity.application.retrieval.models import opened_embedder

        embedder = opened_embedder(self.embed, self.embed_id)
        return _embeddings(questions, self.embed, self.embed_id) @ embedder.embed(asked)


def read_examples(path: Path) -> list[Example]:
    """The examples of a JSONL file: objects with `question` and `answer`. Raises BadInput with the line."""
    if not path.is_file():
        raise BadInput(path, "there is no such file", code="unreadable-file")
    if (n_bytes := path.stat().st_size) > MAX_BYTES:
        raise BadInput(path, f"has {n_bytes:,} bytes, more than {MAX_BYTES:,} of examples")
    examples = [
        (_text(path, n, row, "question"), _text(path, n, row, "answer")) for n, row in json_lines(path)
    ]
    if not examples:
        raise BadInput(path, "has no rows")
    return examples


def _text(path: Path, line: int, row: Mapping[str, object], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(path, f"'{name}' must be a text that is not empty", line, code="missing-key")
    if clean_text(value) != value:
        raise BadInput(path, f"'{name}' has characters that are no text", line)
    return value


@lru_cache(maxsize=4)
def _ranking(questions: tuple[str, ...]) -> Bm25:
    from heredity.application.retrieval.index import Bm25

    return Bm25.from_texts(questions)


@lru_cache(maxsize=4)
def _embeddings(questions: tuple[str, ...], name: str, wanted: str) -> Floats:
    from heredity.application.retrieval.models import opened_embedder

    return opened_embedder(name, wanted).embed_all(questions)


GUARD = FewShotGuard
