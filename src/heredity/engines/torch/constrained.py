"""Answers that match a JSON schema: the tokens that may come next, as a mask over the logits (llguidance).

Promises: an answer that ends by itself is JSON that the schema allows, with one space behind each comma and
colon. The mask depends only on the schema and the answer so far, so that a batch changes no answer.
Leaves to others: drawing from the masked logits (sampling.py).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch

from heredity.core.errors import Unavailable, first_line
from heredity.engines._json_schemas import grammar_of, refused

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from heredity.engines.chat.codec import ChatCodec

_KEPT = 64  # compiled schemas


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
            found = self._compiled.get(schema)
        if found is None:  # outside the lock: the answers of others do not wait for a schema that takes long
            found = self._compile(schema)
        with self._lock:
            self._compiled[schema] = found
            self._compiled.move_to_end(schema)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return Constraint(found)

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
