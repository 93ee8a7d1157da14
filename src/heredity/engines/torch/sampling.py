"""How a row draws its next token: on the processor and in float64, whatever computed the logits.

A JSON schema is a mask over the logits (llguidance), which depends only on the schema and the answer so far.

Promises: equal logits, decoding and seed draw the same tokens. An answer that ends by itself is JSON that the
schema allows, with one space behind each comma and colon.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch

from heredity.core.errors import Unavailable, first_line
from heredity.core.records import Decoding
from heredity.engines._json_schemas import grammar_of, refused

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from heredity.engines.chat import ChatCodec

_MAX_SCHEMAS = 64  # compiled


class Constraint:
    """The tokens that one answer may go on with. `is_lost`: the schema is too complex to go on."""

    def __init__(self, start: LLMatcher) -> None:
        self._start, self._state = start, start.deep_copy()

    def restarted(self) -> Constraint:
        """The constraint at the beginning of an answer."""
        return Constraint(self._start)

    @property
    def is_lost(self) -> bool:
        return bool(self._state.is_error())

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (vocabulary,) with minus infinity for each token that may not come next."""
        bits = np.frombuffer(self._state.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little", count=len(logits)).astype(bool)
        return logits.masked_fill(~torch.from_numpy(allowed), -torch.inf)

    def accept(self, token: int) -> None:
        """Go on with a token."""
        self._state.consume_token(token)


class Constraints:
    """The schemas of an engine's answers, each compiled once for its tokenizer."""

    def __init__(self, codec: ChatCodec, stops: frozenset[int], n_vocabulary: int) -> None:
        self._codec, self._stops, self._n_vocabulary = codec, stops, n_vocabulary
        self._tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()  # a server checks schemas while the engine answers

    def of(self, schema: str) -> Constraint:
        """A constraint for one answer. Raises BadArgument for a schema that cannot be held."""
        with self._lock:
            compiled = self._compiled.get(schema)
        if (
            compiled is None
        ):  # outside the lock: the answers of others do not wait for a schema that takes long
            compiled = self._compile(schema)
        with self._lock:
            self._compiled[schema] = compiled
            self._compiled.move_to_end(schema)
            if len(self._compiled) > _MAX_SCHEMAS:
                self._compiled.popitem(last=False)
        return Constraint(compiled)

    def _compile(self, schema: str) -> LLMatcher:
        grammar = grammar_of(schema)
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        if self._tokens is None:
            stops = sorted(self._stops)
            try:
                self._tokens = from_tokenizer(self._codec.fast_tokenizer, self._n_vocabulary, stops)
            except ValueError as error:
                why = f"No JSON schema can be held with this model's tokenizer: {first_line(error)}"
                raise Unavailable(why) from None
        llmatcher = LLMatcher(self._tokens, grammar, log_level=0)
        tried = llmatcher.deep_copy()
        if not llmatcher.is_error():
            tried.compute_bitmask()  # fails where no JSON at all can begin
        if tried.is_error():
            raise refused(tried.get_error())
        return llmatcher


class Sampler:
    """Draws the tokens of one row: greedy at temperature 0, else by inverse CDF with its own generator.

    constraint: the tokens that may come next; None: every one.
    """

    def __init__(self, decoding: Decoding, seed: int, constraint: Constraint | None = None) -> None:
        self._decoding, self._seed, self._constraint = decoding, seed, constraint
        self._stream = np.random.Generator(np.random.PCG64(seed)) if decoding.temperature > 0 else None

    def restarted(self) -> Sampler:
        """Return a sampler that draws the same again."""
        constraint = None if self._constraint is None else self._constraint.restarted()
        return Sampler(self._decoding, self._seed, constraint)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is drawn, whatever it is."""
        return self._stream is None and self._constraint is None

    @property
    def is_lost(self) -> bool:
        """Whether the answer cannot go on as its constraint demands."""
        return self._constraint is not None and self._constraint.is_lost

    def draw(self, logits: torch.Tensor) -> int:
        """Draw one token from logits (vocabulary,)."""
        if self._constraint is None:
            return self._drawn(logits)
        token = self._drawn(self._constraint.mask(logits))
        self._constraint.accept(token)
        return token

    def _drawn(self, logits: torch.Tensor) -> int:
        if self._stream is None:
            return int(logits.argmax())
        scaled = (wide := logits.to(torch.float64)) / self._decoding.temperature
        if not torch.isfinite(scaled).all():  # at a temperature close to zero
            scaled = (wide - wide.max()) / self._decoding.temperature
        p = torch.softmax(scaled, dim=-1)
        order = None
        if self._decoding.top_p < 1:
            p, order = p.sort(descending=True, stable=True)
            before = p.cumsum(0) - p
            p = p[: max(1, int((before < self._decoding.top_p).sum()))]
        total = p.cumsum(0)
        u = self._stream.random() * float(total[-1])
        at = min(int(torch.searchsorted(total, torch.tensor(u, dtype=torch.float64), right=True)), len(p) - 1)
        return at if order is None else int(order[at])
