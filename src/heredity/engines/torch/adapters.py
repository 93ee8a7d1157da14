"""Any number of adapters over one base in memory, with rows of different adapters in one batch.

The base and each adapter are an engine of their own name, numerics, chat and constraints. They share weights,
batches and caches. A token carries the number of its adapter (decoder.py). So a cached beginning is used
only for the adapter that computed it. An activated adapter changes nothing before its invocation, and there
it shares the beginnings of its base.

Promises: an answer has the same bits by itself and among rows of other adapters. `numerics` of an adapter is
that of its own engine wherever its numbers are.
Leaves to others: adapters of other forms, which have an engine of their own.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from heredity.core.errors import EngineFailure, Unavailable
from heredity.core.records import Reply, Request
from heredity.engines import AddressedRequest, Capabilities, Listener
from heredity.engines.chat import ChatCodec, has_tokenizer
from heredity.engines.torch import autotune
from heredity.engines.torch.autotune import PASS_WIDTHS, WIDTHS
from heredity.engines.torch.decoder import (
    NUMBERS,
    PAD,
    Decoder,
    Pass,
    ResidualHook,
    SharedPrefix,
    marked,
    padded_rows,
    plain,
    round_up,
)
from heredity.engines.torch.engine import AnsweringEngine, TorchEngine
from heredity.engines.torch.session import Member, PrefixPool, Session, marked_from
from heredity.formats.adapted import Place, Update, Updates, UpdateStack, read_updates, stacked_alone
from heredity.formats.int8 import Linear
from heredity.formats.weights import Block, Weights

_KEPT = 64  # plans; the rows of a step are mostly those of the step before
_N_OUTPUTS = 1 << 18  # numbers of each product that are compared
_PROVEN: dict[object, ProvenRows] = {}  # of this process, by shapes and arithmetic
_MAX_STACKED = 12  # adapters of one batched product when it is tried
_MAX_PADDING = 4  # rows that are multiplied for each that is needed, in a product of several adapters
_PACKED = (PAD, *PASS_WIDTHS)


class ProvenRows(NamedTuple):
    """The numbers of rows with which a product has the bits of the widest step, or packed pass.

    stacked: those of several adapters of one shape in one batched product; the others are for one adapter.
    """

    step: tuple[int, ...]
    packed: tuple[int, ...]
    stacked: tuple[int, ...] = ()


class Share(NamedTuple):
    """The rows of adapters of one shape in a pass: those of the stack `shape` from `first` on.

    multiplied: (adapters, n) the rows of their product, up to a proven number for each. taken: where `rows`
    are in it; None: at the beginning.
    """

    shape: int
    first: int
    rows: torch.Tensor
    multiplied: torch.Tensor
    taken: torch.Tensor | None = None


class Route(threading.local):
    """The rows of this thread's pass, by adapter; none: the base answers all of them."""

    shares: Sequence[Share] = ()

    @contextmanager
    def to(self, shares: Sequence[Share]) -> Iterator[None]:
        """Change these rows until the end of the block."""
        before, self.shares = self.shares, shares
        try:
            yield
        finally:
            self.shares = before


class RoutedLinear:
    """A matmul of the base with the updates of some rows. `stacks` is by the number of a shape."""

    def __init__(self, base: Linear, route: Route) -> None:
        self._base, self._route = base, route
        self.stacks: dict[int, UpdateStack] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in) -> (rows, out)"""
        out = self._base(x)
        for shape, first, rows, multiplied, taken in self._route.shares:
            if (stack := self.stacks.get(shape)) is not None:
                given = x.index_select(0, multiplied.flatten()).view(*multiplied.shape, -1)
                change = stack(given, first)
                change = change[: len(rows)] if taken is None else change.index_select(0, taken)
                out.index_add_(0, rows, change)
        return out


class AdapterDecoder(Decoder):
    """A decoder of a base in which each marked token is changed by its adapter."""

    def __init__(
        self, weights: Weights, dtype: torch.dtype, adapters: AdapterSet, hook: ResidualHook | None = None
    ) -> None:
        super().__init__(weights, dtype, hook)
        self.adapters = adapters

    def _forward(self, new: Pass) -> torch.Tensor:
        is_marked = new.tokens < 0
        if not bool(is_marked.any()):
            return super()._forward(new)
        numbers = torch.where(is_marked, ~new.tokens // NUMBERS + 1, 0)
        shares = self.adapters.shares(new.kind, tuple(numbers.tolist()), new.tokens.device)
        with self.adapters.route.to(shares):
            return super()._forward(
                new._replace(tokens=torch.where(is_marked, ~new.tokens % NUMBERS, new.tokens))
            )

    def _like(self, weights: Weights, hook: ResidualHook | None) -> Decoder:
        return AdapterDecoder(weights, self.dtype, self.adapters, hook)


class AdapterSet:
    """The adapters of a base. `weights` are those of the base, ready for them."""

    def __init__(self, base: Weights) -> None:
        self.route = Route()
        self._linears: dict[Place, RoutedLinear] = {}
        self._places: dict[int, tuple[int, int]] = {}  # by number: its shape, and its place in the stacks
        self._shapes: list[object] = []
        self._proven: dict[int, ProvenRows] = {}  # by shape
        self._plans: OrderedDict[tuple[str, tuple[int, ...]], tuple[Share, ...]] = OrderedDict()
        self._lock = threading.Lock()
        blocks = tuple(self._routed(layer, block) for layer, block in enumerate(base.blocks))
        self.weights = replace(base, blocks=blocks)

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    def _routed(self, layer: int, block: Block) -> Block:
        def linear(field: str, base: Linear) -> RoutedLinear:
            return self._linears.setdefault((layer, field), RoutedLinear(base, self.route))

        return replace(
            block,
            qkv=linear("qkv", block.qkv),
            out=linear("out", block.out),
            gate_up=None if block.gate_up is None else linear("gate_up", block.gate_up),
            down=None if block.down is None else linear("down", block.down),
        )

    def put(self, number: int, updates: Updates, proven: ProvenRows) -> None:
        """Hold an adapter under a number that no token has yet. Any thread may do so."""
        with self._lock:
            if updates.shape not in self._shapes:
                self._shapes.append(updates.shape)
            shape = self._shapes.index(updates.shape)
            n_there = sum(each == shape for each, _ in self._places.values())
            for place, update in updates.by_place.items():
                stacks = self._linears[place].stacks
                stacks[shape] = stacks[shape].with_(update) if n_there else stacked_alone(update)
            self._proven[shape] = proven
            self._places[number] = shape, n_there

    def remove(self, number: int) -> None:
        """Free an adapter of which no row is in flight, in the thread that answers."""
        with self._lock:
            shape, place = self._places.pop(number)
            left = {n: at for n, (each, at) in self._places.items() if each == shape}
            for linear in self._linears.values():
                if (stack := linear.stacks.pop(shape, None)) is not None and left:
                    linear.stacks[shape] = stack.without(place)
            self._places |= {n: (shape, at - (at > place)) for n, at in left.items()}
            self._plans.clear()

    def shares(self, kind: str, numbers: tuple[int, ...], device: torch.device) -> tuple[Share, ...]:
        """Return the rows of each adapter in a `Pass`. numbers: the adapter of each row; 0 for the base.

        Raises EngineFailure for one that was removed.
        """
        if not self._places.keys() >= set(numbers) - {0}:
            raise EngineFailure("an adapter of these rows is no longer here")
        key = kind, numbers
        if (planned := self._plans.get(key)) is None:
            planned = self._plans[key] = tuple(self._planned(kind, numbers, device))
            if len(self._plans) > _KEPT:
                self._plans.popitem(last=False)
        return planned

    def _planned(self, kind: str, numbers: tuple[int, ...], device: torch.device) -> Iterator[Share]:
        rows: dict[tuple[int, int], list[int]] = {}
        for at, number in enumerate(numbers):
            if number:
                rows.setdefault(self._places[number], []).append(at)
        if kind == "row":  # the product of an adapter by itself: all rows of the pass
            for (shape, place), changed in rows.items():
                there = torch.tensor(changed, device=device)
                yield Share(shape, place, there, torch.arange(len(numbers), device=device)[None], there)
            return
        for run in _runs(sorted(rows)):
            yield from self._shared(kind, {place: rows[place] for place in run}, device)

    def _shared(
        self, kind: str, run: Mapping[tuple[int, int], list[int]], device: torch.device
    ) -> Iterator[Share]:
        """Yield the shares of adapters next to each other in one stack: one of all, or one of each."""
        shape = next(iter(run))[0]
        proven, most = self._proven[shape], max(map(len, run.values()))
        if kind == "step" and len(run) > 1:
            width = next((each for each in proven.stacked if each >= most), 0)
            if width and width * len(run) <= _MAX_PADDING * sum(map(len, run.values())):
                yield _share(run, (width,), device)
                return
        for place, rows in run.items():
            yield _share({place: rows}, proven.step if kind == "step" else proven.packed, device)


def _runs(places: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield the places that follow each other in a stack, together. places: sorted."""
    run: list[tuple[int, int]] = []
    for shape, place in places:
        if run and run[-1] != (shape, place - 1):
            yield run
            run = []
        run.append((shape, place))
    if run:
        yield run


def _share(
    run: Mapping[tuple[int, int], Sequence[int]], widths: Sequence[int], device: torch.device
) -> Share:
    (shape, first), rows = next(iter(run)), [at for changed in run.values() for at in changed]
    multiplied = torch.stack([padded_rows(changed, widths) for changed in run.values()])
    taken = None
    if len(run) > 1:
        places = enumerate(run.values())
        taken = torch.tensor(
            [i * multiplied.shape[1] + at for i, changed in places for at in range(len(changed))]
        )
        taken = taken.to(device)
    return Share(shape, first, torch.tensor(rows, device=device), multiplied.to(device), taken)


def prove_rows(updates: Updates, decoder: Decoder, width: int) -> ProvenRows:
    """Find the numbers of rows that keep the bits of a row. width: of the widest step.

    Which ones do depends on shapes and kernels, not on the numbers in the matrices.
    """
    by_shape = {update.shape: update for update in updates.by_place.values()}
    key = frozenset(by_shape), decoder.dtype, decoder.device, width
    if (proven := _PROVEN.get(key)) is not None:
        return proven
    distinct, steps = by_shape.values(), [each for each in WIDTHS if each < width]
    step = (*_same(distinct, decoder, steps, width, _by), width)
    packed = (*_same(distinct, decoder, _PACKED[:-1], _PACKED[-1], _by), _PACKED[-1])
    stacked = tuple(_same(distinct, decoder, step, width, _by_stack))
    return _PROVEN.setdefault(key, ProvenRows(step, packed, stacked))


def _same(
    updates: Iterable[Update],
    decoder: Decoder,
    widths: Sequence[int],
    usual: int,
    product: Callable[[Update, torch.Tensor, int], torch.Tensor],
) -> list[int]:
    """Return the widths at which a product has the bits of an adapter by itself at the usual width."""
    same = list(widths)
    for update in updates:
        n_rows = round_up(max(usual, _N_OUTPUTS // sum(part.n_out for part in update.parts)), usual)
        drawn = torch.randn((n_rows, update.a.shape[1]), generator=torch.Generator().manual_seed(1))
        rows = drawn.to(decoder.device, decoder.dtype)
        expected = torch.cat([update.fused()(some) for some in rows.split(usual)])
        same = [width for width in same if torch.equal(product(update, rows, width), expected)]
    return same


def _by(update: Update, rows: torch.Tensor, width: int) -> torch.Tensor:
    """Return the products of rows, `width` at a time."""
    return torch.cat([update(_filled(some, width))[: len(some)] for some in rows.split(width)])


def _by_stack(update: Update, rows: torch.Tensor, width: int) -> torch.Tensor:
    """Return the products of rows, in stacks of several adapters of this update, `width` rows each."""
    stack = stacked_alone(update)
    for _ in range(1, _MAX_STACKED):
        stack = stack.with_(update)
    filled = _filled(rows, round_up(len(rows), width)).view(-1, width, rows.shape[1])
    products, at, n = [], 0, 2
    while at < len(filled):  # 2, 3, ... of them, so that their number is seen to change nothing
        some = filled[at : at + n]
        products.append(stack(some, 0))
        at, n = at + len(some), n % _MAX_STACKED + 1
    return torch.cat(products)[: len(rows)]


def _filled(rows: torch.Tensor, n: int) -> torch.Tensor:
    """Return rows with the last one repeated, up to n."""
    return rows.index_select(0, padded_rows(range(len(rows)), (n,)).to(rows.device))


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
                fingerprint = autotune.fingerprint(_AllMarked(base.decoder, number), base.width)
            tuning = msgspec.structs.replace(tuning, fingerprint=fingerprint)
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

    @property
    def capabilities(self) -> Capabilities:
        """See Capabilities."""
        return Capabilities(streamer=self)

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

    def _forward(self, new: Pass) -> torch.Tensor:
        return super()._forward(new._replace(tokens=~(new.tokens + self._above)))
