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

from heredity.core.errors import BadArgument, Unavailable, first_line

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from heredity.engines.chat.codec import ChatCodec

_KEPT = 64  # compiled schemas
# Free whitespace would let a small model write blanks until its answer is cut.
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_WHAT = "decoding.json_schema"


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
            if schema not in self._compiled:
                self._compiled[schema] = self._compile(schema)
                if len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(schema)
            return Constraint(self._compiled[schema])

    def _compile(self, schema: str) -> LLMatcher:
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError:
            raise Unavailable(
                "Answers that match a JSON schema need llguidance. Install it: pip install 'heredity[torch]'",
                code="package-missing",
            ) from None
        if self._tokens is None:
            self._tokens = from_tokenizer(self._codec.fast_tokenizer, self._n_vocabulary, sorted(self._stops))
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_FORM)  # type: ignore[arg-type]
        except ValueError as error:
            why = first_line(error)
        else:
            found = LLMatcher(self._tokens, grammar, log_level=0)
            if not found.is_error():
                return found
            why = found.get_error().split("\n")[0]
        raise BadArgument(f"this JSON schema cannot be held: {why[:300]}", code="bad-schema", key=_WHAT)
