"""POST /v1/embeddings: the embeddings of texts by an embedding model of the store.

Promises: an embedding is that of `heredity index` with the same model. A text that the model cannot read as a
whole is refused, never cut. Texts of several requests take turns.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from heredity.application.retrieval.models import Embedder
from heredity.core.errors import Busy, ContextOverflow, UsageError
from heredity.core.records import Model
from heredity.deploy.serve import schema
from heredity.formats.tokenizer_files import has_more_tokens

MAX_TEXTS = 2048


def count_tokens(encoder: Embedder, text: str) -> int:
    """The tokens of a text. Raises UsageError if they are more than the model reads."""
    most = encoder.n_tokens
    is_far_beyond = has_more_tokens(text, most, encoder.count)
    n_tokens = most + 1 if is_far_beyond else encoder.count(text)
    if n_tokens > most:
        n_shown = f"over {most}" if is_far_beyond else f"{n_tokens}"
        raise UsageError(
            f"This model's maximum context length is {most} tokens. However, a text has {n_shown} tokens",
            code=ContextOverflow.code,
            key="input",
        )
    return n_tokens


class Embedded(NamedTuple):
    """An embedding, float32 (hidden,), and the tokens of its text."""

    values: bytes
    n_tokens: int


class EmbeddingService:
    """A served embedding model in a thread of its own. started_as: other names that the operator gave."""

    def __init__(self, encoder: Embedder, most: int = 256, started_as: tuple[str, ...] = ()) -> None:
        self._encoder, self._most, self.n_open = encoder, most, 0
        self._thread = ThreadPoolExecutor(1, "embeddings")
        self.started_as = started_as

    @property
    def model(self) -> Model:
        """The record of the model."""
        return self._encoder.model

    @property
    def names(self) -> tuple[str, ...]:
        """The names that callers may give."""
        return (self.model.name, *self.started_as, self.model.id)

    async def embed(self, text: str) -> Embedded:
        """Embed one text. Raises UsageError if it is too long."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, text)

    def _embed(self, text: str) -> Embedded:
        n_tokens = count_tokens(self._encoder, text)
        return Embedded(self._encoder.embed(text).astype("<f4").tobytes(), n_tokens)

    def admit(self) -> None:
        """Count an open request; the caller subtracts it. Raises Refusal if too many are open."""
        if self.n_open >= self._most:
            message = f"{self.n_open:,} requests are already open. Try again later."
            raise schema.Refusal(429, message, "too_many_requests", Busy.code)
        self.n_open += 1

    def close(self) -> None:
        """Finish the text that is in progress, and refuse the others."""
        self._thread.shutdown(cancel_futures=True)


class EmbeddingsBody(msgspec.Struct):
    """The body of POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class EmbeddingsRequest(NamedTuple):
    """A parsed body."""

    texts: list[str]
    is_base64: bool
    dimensions: int | None


def parse(given: Mapping[str, object]) -> EmbeddingsRequest:
    """Parse a body of /v1/embeddings. Raises UsageError."""
    fields, _ = schema.select_fields(given, EmbeddingsBody.__struct_fields__, ignores=False)
    body = schema.convert(fields, EmbeddingsBody)
    inputs = [body.input] if isinstance(body.input, str) else body.input
    texts = [each for each in inputs if isinstance(each, str)]
    if len(texts) < len(inputs):
        raise UsageError(
            "input holds tokens of another model's tokenizer: send texts "
            "(in LangChain: check_embedding_ctx_length=False)",
            key="input",
        )
    if not texts or not all(texts) or len(texts) > MAX_TEXTS:
        raise UsageError(f"input takes 1 to {MAX_TEXTS:,} texts, none of them empty", key="input")
    return EmbeddingsRequest(texts, body.encoding_format == "base64", body.dimensions)


def formatted(name: str, asked: EmbeddingsRequest, embedded: list[Embedded]) -> dict[str, object]:
    """Return the embeddings as a body. Raises UsageError if they have another size than was asked for."""
    size = len(embedded[0].values) // 4
    if asked.dimensions not in (None, size):
        raise UsageError(
            f"this model's embeddings have {size} dimensions, not {asked.dimensions}",
            code="bad-setting",
            key="dimensions",
        )
    data = [
        {"object": "embedding", "index": i, "embedding": _written(each.values, asked.is_base64)}
        for i, each in enumerate(embedded)
    ]
    n_tokens = sum(each.n_tokens for each in embedded)
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}


def _written(values: bytes, is_base64: bool) -> str | list[float]:
    if is_base64:
        return base64.b64encode(values).decode()
    numbers: list[float] = np.frombuffer(values, "<f4").tolist()
    return numbers
