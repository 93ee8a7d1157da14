"""Any number of adapters over one base in memory, with rows of different adapters in one batch.

The base and each adapter are an engine of their own name, numerics, chat and constraints. They share weights,
batches and caches. A token carries the number of its adapter (prefixes.py). So a cached beginning is used
only for the adapter that computed it. An activated adapter changes nothing before its invocation, and there
it shares the beginnings of its base.

Promises: an answer has the same bits by itself and among rows of other adapters. `numerics` of an adapter is
that of its own engine wherever its numbers are.
Leaves to others: the products (routing.py), and adapters of other forms, which have an engine of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import torch

from heredity.core.errors import EngineFailure, Unavailable
from heredity.core.records import Reply, Request
from heredity.engines.chat.codec import ChatCodec
from heredity.engines.chat.folder import has_tokenizer
from heredity.engines.protocols import AddressedRequest, Listener
from heredity.engines.torch import autotune
from heredity.engines.torch.activated import marked_from
from heredity.engines.torch.decoder import Decoder, KvSlots, KvWrites
from heredity.engines.torch.engine import AnsweringEngine, TorchEngine
from heredity.engines.torch.prefixes import NUMBERS, SharedPrefix, marked, plain
from heredity.engines.torch.routing import AdapterDecoder, AdapterSet, prove_rows
from heredity.engines.torch.session import Member, PrefixPool, Session
from heredity.formats.updates import Updates, read_updates


class AdapterPool:
    """Splits the prompts of one adapter: their tokens are marked."""

    def __init__(self, shared: PrefixPool, number: int, invocation: tuple[int, ...]) -> None:
        self._shared, self._number, self._invocation = shared, number, invocation

    def split(self, shared: tuple[int, ...], tokens: tuple[int, ...]) -> tuple[SharedPrefix, tuple[int, ...]]:
        """Return the computed prefix of a prompt, and the prompt's tokens after it."""
        if self._invocation:
            return self._shared.split_placed(shared, marked_from(tokens, self._invocation, self._number))
        return self._shared.split_placed(shared, marked(tokens, self._number))

    def computed(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Return the longest computed prefix that these tokens begin with."""
        return plain(self._shared.computed(tokens if self._invocation else marked(tokens, self._number)))


class AdapterEngine(AnsweringEngine):
    """One adapter of a shared base. Its `reply` and `stream` take requests of this adapter only."""

    def __init__(self, base: TorchEngine, folder: Path, number: int, updates: Updates) -> None:
        pool = AdapterPool(base.pool, number, updates.invocation)
        codec = ChatCodec(folder if has_tokenizer(folder) else base.folder)
        if codec.n_tokens > max(base.codec.n_tokens, base.decoder.shape.vocab_size):
            raise Unavailable(
                "It cannot share its base with other adapters: its tokenizer has more tokens than the base.",
                code="adapter-not-shared",
            )
        tuning = base.tuning
        if tuning is not None:
            with torch.inference_mode():
                found = autotune.fingerprint(_AllMarked(base.decoder, number), base.width)
            tuning = msgspec.structs.replace(tuning, fingerprint=found)
        super().__init__(base.pool, pool, codec, base.folder, tuning)
        self.number, self.n_bytes = number, updates.n_bytes

    def close(self) -> None:
        """Do nothing: the base closes for all."""


class SharedBase:
    """A base and its adapters as one engine, which answers requests of all of them (AddressedRequest).

    engine: of the base, which this one replaces. Raises Unavailable if its decoder cannot be shared.
    """

    def __init__(self, engine: TorchEngine) -> None:
        decoder = engine.decoder
        if type(decoder) is not Decoder or decoder.weights.how or decoder.weights.base is not None:
            raise Unavailable(f"{engine.name} shares its base with no adapters.", code="adapter-not-shared")
        self._adapters = AdapterSet(decoder.weights)
        self.base = engine.over(AdapterDecoder(self._adapters.weights, decoder.dtype, self._adapters))
        self._members: dict[int, Member] = {0: self.base.member}
        self._numbers = itertools.count(1)
        self.name, self.numerics, self.width = self.base.name, self.base.numerics, self.base.width

    def read(self, folder: Path) -> Updates:
        """Read an adapter of this base. Raises Unavailable with the code adapter-not-shared, and Damaged."""
        decoder = self.base.decoder
        return read_updates(decoder.weights, folder, self.base.folder, decoder.dtype)

    def add(self, folder: Path, updates: Updates) -> AdapterEngine:
        """Return the engine of an adapter that was read from `folder`. Any thread may add one."""
        number = next(self._numbers)
        with torch.inference_mode():
            self._adapters.put(number, updates, prove_rows(updates, self.base.decoder, self.width))
        try:
            engine = AdapterEngine(self.base, folder, number, updates)
        except BaseException:
            self._adapters.remove(number)
            raise
        self._members[number] = engine.member
        return engine

    def remove(self, engine: AdapterEngine) -> None:
        """Free an adapter, and all that was computed with it, in the thread that answers.

        None of its requests may be in flight.
        """
        self._members.pop(engine.number, None)
        self.base.pool.forget_adapter(engine.number)
        self._adapters.remove(engine.number)

    def _member_of(self, request: Request) -> Member:
        number = request.adapter if isinstance(request, AddressedRequest) else 0
        if (member := self._members.get(number)) is None:
            raise EngineFailure("this adapter is no longer here")
        return member

    # --- as an Engine -------------------------------------------------------------------------------------

    def render(self, request: Request) -> str:
        """Return the full prompt of a request."""
        return self._member_of(request).codec.render(request)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer a stream of requests of all models."""
        with torch.inference_mode():
            yield from Session(self.base.pool, self._member_of, requests).run()

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        """Do the same and report the answers while they grow."""
        with torch.inference_mode():
            yield from Session(self.base.pool, self._member_of, requests, listener).run()

    def close(self) -> None:
        """Free the memory."""
        self.base.close()


class _AllMarked(AdapterDecoder):
    """The decoder of one adapter: every token of a step is marked."""

    def __init__(self, decoder: Decoder, number: int) -> None:
        assert isinstance(decoder, AdapterDecoder)
        super().__init__(decoder.weights, decoder.dtype, decoder.adapters)
        self._above = (number - 1) * NUMBERS

    def step(
        self,
        prefix: SharedPrefix,
        slots: KvSlots,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        n_slots: int | None = None,
        writes: KvWrites | None = None,
    ) -> torch.Tensor:
        """Do the same as `AdapterDecoder.step`."""
        return super().step(prefix, slots, ~(tokens + self._above), lengths, n_slots, writes)
