"""The arithmetic of a decoder over a shared prefix and one KV slot per row.

The application's prefix is computed once, and its keys and values are kept once. Attention over it is one
matmul for all rows of the batch. Each row keeps only its own keys and values after the prefix. One softmax
runs over both parts, so the result is plain attention. Both parts have whole blocks, masked after their ends.
A softmax sums the remainder of a vector in another order than the same numbers in a longer row.

Rows of several adapters begin with the same text, and each adapter has its own keys and values of it. A step
attends to each by itself, at a proven width. So a row has the bits of a step of its adapter.

A token on which an adapter acts is marked: it is given as ~token, below zero, which also holds the number of
the adapter. A number is never given again while a process runs. So the cache of prompts, which compares
tokens, tells adapters apart: from their base, from each other, and from earlier ones of the same name.

Promises: the numbers of a row depend only on that row. A decode step has one of a few widths, and autotune.py
proves which of them give equal bits. `prefill` takes one row, so its shapes are its own. `prefill_packed`
takes segments of several rows. Its proven widths keep the bits wherever a row is cut.
Leaves to others: the slot of a row and what is prefilled together (session.py), and which token is
drawn (`Sampler`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch.nn import functional

from heredity.formats.architectures import ARCHITECTURES
from heredity.formats.weights import Block, DecoderShape, Weights

CHUNK = 256  # tokens per prefill pass; longer prompts need several
PAD = 16  # prefill lengths are rounded up to this
FEWEST_QUERIES = 64  # rows of a segment's matmul in attention: fewer are summed in another order
BLOCK = 64  # cache lengths are rounded up to this
FEWEST_ROWS = 4  # of a matmul over a prefix: fewer take another kernel, which sums otherwise
NUMBERS = 1 << 32  # above every token: the number of an adapter is counted in these


@dataclass(slots=True)
class SharedPrefix:
    """Keys and values of the tokens that rows begin with: (kv heads, n_positions, head_dim) per layer.

    text: the tokens without marks of adapters.
    """

    tokens: tuple[int, ...]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    text: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.text = plain(self.tokens)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def n_positions(self) -> int:
        """Positions in memory, whole blocks; those from `length` on are finite padding, and masked."""
        return round_up(self.length, BLOCK)

    def at(self, slot: int) -> SharedPrefix:  # noqa: ARG002
        """Return the prefix of the row in a slot."""
        return self

    def scores(self, queries: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the scores (kv heads, rows, group, n_positions) of queries; the padding is masked.

        queries: (kv heads, rows, group, head_dim).
        """
        n_heads, n_rows, group, head_dim = queries.shape
        flat = queries.reshape(n_heads, n_rows * group, head_dim)
        scores = torch.bmm(flat, self.keys[layer].transpose(1, 2))
        scores[..., self.length :] = -torch.inf
        return scores.view(n_heads, n_rows, group, self.n_positions)

    def weighted(self, p: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the sums of the values (kv heads, rows, group, head_dim).

        p: (kv heads, rows, group, n_positions and more), contiguous; those after n_positions are not used.
        """
        n_heads, n_rows, group, _ = p.shape
        of_shared = p.view(n_heads, n_rows * group, -1)[:, :, : self.n_positions]
        return torch.bmm(of_shared, self.values[layer]).view(n_heads, n_rows, group, -1)

    def joined(self, side: list[torch.Tensor], layer: int, new: torch.Tensor) -> torch.Tensor:
        """Return a row's own keys or values after those of the prefix, with zeros up to a `key_length`."""
        n = self.length + new.shape[1]
        shared = [side[layer][:, : self.length]] if self.length else []
        rest = new.new_zeros(new.shape[0], key_length(n) - n, new.shape[2])
        return torch.cat([*shared, new, rest], dim=1)


class VariedPrefix(SharedPrefix):
    """The prefixes of rows that begin with one text and differ in their adapters.

    by_slot: the prefix of each slot in use. widths: the proven numbers of rows of a step, ascending.
    device: of the decoder. The rows are put there once, and not in each layer.
    """

    def __init__(self, by_slot: dict[int, SharedPrefix], widths: Sequence[int], device: torch.device) -> None:
        super().__init__(next(iter(by_slot.values())).text, [], [])
        self._by_slot = by_slot
        n_rows = [max(width, FEWEST_ROWS) for width in widths]
        by_prefix: dict[int, tuple[SharedPrefix, list[int]]] = {}
        for slot, prefix in by_slot.items():
            by_prefix.setdefault(id(prefix), (prefix, []))[1].append(slot)
        self._parts = [
            (prefix, torch.tensor(rows, device=device), padded_rows(rows, n_rows).to(device))
            for prefix, rows in by_prefix.values()
        ]

    def at(self, slot: int) -> SharedPrefix:
        """Return the prefix of the row in a slot."""
        return self._by_slot[slot]

    def scores(self, queries: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the scores of each row over its own prefix; those of other rows are zero."""
        n_heads, n_rows, group, _ = queries.shape
        out = queries.new_zeros(n_heads, n_rows, group, self.n_positions)
        for prefix, rows, filled in self._parts:
            scores = prefix.scores(queries.index_select(1, filled), layer)
            out.index_copy_(1, rows, scores[:, : len(rows)])
        return out

    def weighted(self, p: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the sums of each row over its own prefix; those of other rows are zero."""
        n_heads, n_rows, group, _ = p.shape
        head_dim = self._parts[0][0].values[layer].shape[-1]
        out = p.new_zeros(n_heads, n_rows, group, head_dim)
        for prefix, rows, filled in self._parts:
            sums = prefix.weighted(p.index_select(1, filled), layer)
            out.index_copy_(1, rows, sums[:, : len(rows)])
        return out


def padded_rows(rows: Sequence[int], widths: Sequence[int]) -> torch.Tensor:
    """Return numbers of rows, the last one repeated up to the smallest of these widths that holds them."""
    width = next(width for width in widths if width >= len(rows))
    return torch.tensor([*rows, *[rows[-1]] * (width - len(rows))])


def key_length(n: int) -> int:
    """Return the number of keys to sum over where n are needed: whole blocks, but never 4 or 5 of them.

    A row's sum must not depend on how many keys of no weight follow, and the longest row of a batch decides
    that. MKL's float32 kernel for AVX2 sums 256 or 320 terms in two halves, and other lengths from the start.
    """
    n = round_up(n, BLOCK)
    return 6 * BLOCK if 3 * BLOCK < n < 6 * BLOCK else n


def round_up(n: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least n."""
    return -(-n // step) * step


# --- marks ---


def marked(tokens: Iterable[int], number: int) -> tuple[int, ...]:
    """Return tokens with the mark of an adapter; they have none yet. number: 1 or more; 0 marks nothing."""
    if not number:
        return tuple(tokens)
    above = (number - 1) * NUMBERS
    return tuple(~(token + above) for token in tokens)


def number_of(token: int) -> int:
    """Return the number of the adapter that acts on a token; 0 for none."""
    return 0 if token >= 0 else ~token // NUMBERS + 1


def continued(prompt: tuple[int, ...], output: Iterable[int]) -> tuple[int, ...]:
    """Return tokens that follow a prompt of `placed`: the adapter acts on all of them or on none."""
    return marked(output, number_of(prompt[-1]) if prompt else 0)


def plain(tokens: Iterable[int]) -> tuple[int, ...]:
    """Return tokens without marks."""
    return tuple(token if token >= 0 else ~token % NUMBERS for token in tokens)


class Rotation(NamedTuple):
    """The changes of queries and keys that depend on their positions.

    cos, signed sin: (rows, 1, head_dim); None for layers that rotate nothing. temperature: factors on the
    queries, (rows, 1, 1).
    """

    cos: torch.Tensor | None = None
    sin: torch.Tensor | None = None
    temperature: torch.Tensor | None = None


def partners(shape: DecoderShape, n_pairs: int) -> torch.Tensor:
    """Return the channel that each channel of a head is rotated with. n_pairs: pairs of rotated channels."""
    order = torch.arange(shape.head_dim)
    if ARCHITECTURES[shape.model_type].rotates_neighbours:
        return order.view(-1, 2).flip(-1).flatten()
    return torch.cat([order[n_pairs : 2 * n_pairs], order[:n_pairs], order[2 * n_pairs :]])


def spread(shape: DecoderShape, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and signed sin by channel, (rows, 1, head_dim), from those by pair: for `partners`."""
    if ARCHITECTURES[shape.model_type].rotates_neighbours:
        return cos.repeat_interleave(2, -1), torch.stack([-sin, sin], -1).flatten(-2)
    rest = cos.new_ones(len(cos), 1, shape.head_dim - 2 * cos.shape[-1])  # channels that keep their values
    return torch.cat([cos, cos, rest], -1), torch.cat([-sin, sin, 0 * rest], -1)


def temperatures(n_step: float, strength: float, positions: torch.Tensor) -> torch.Tensor:
    """Return factors on queries that grow with the position by steps of n_step tokens: (rows, 1, 1), fp32.

    Source: Nakanishi 2025 (2501.19399), as Llama 4 has it.
    """
    steps = torch.floor((positions.to(torch.float32) + 1.0) / n_step)
    return (torch.log1p(steps) * strength + 1.0)[:, None, None]


Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
ResidualHook = Callable[[torch.Tensor], torch.Tensor]


class Pass(NamedTuple):
    """New tokens on their way through the layers.

    kind: of one row, one token of every row, or segments of several rows. is_read: False if only keys and
    values are wanted; the last layer then computes nothing else.
    """

    kind: Literal["row", "step", "packed"]
    tokens: torch.Tensor
    positions: torch.Tensor
    attend: Attend
    is_read: bool = True


@dataclass(slots=True)
class KvSlots:
    """Each row's own keys and values: (width, kv heads, capacity, head_dim) per layer."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @property
    def width(self) -> int:
        return len(self.keys[0])

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for cache in (*self.keys, *self.values):
            cache[target, :, :length] = cache[source, :, :length]

    def resize(self, width: int, capacity: int, n_rows: int) -> None:
        """Change the shape in place, and keep the first `n_rows` rows. One layer at a time is held twice."""
        for side in (self.keys, self.values):
            for layer in range(len(side)):
                _, n_heads, held, head_dim = side[layer].shape
                n_kept = min(held, capacity)
                size = (width, n_heads, capacity, head_dim)
                new = torch.zeros(size, dtype=side[layer].dtype, device=side[layer].device)
                new[:n_rows, :, :n_kept] = side[layer][:n_rows, :, :n_kept]
                side[layer] = new


@dataclass(slots=True)
class KvWrites:
    """The places of new keys and values: those of `rows[i]` go to position `positions[i]` of `slots[i]`."""

    rows: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor

    def to(self, device: torch.device) -> KvWrites:
        """The same on a device."""
        return KvWrites(self.rows.to(device), self.slots.to(device), self.positions.to(device))


class Segment(NamedTuple):
    """New tokens of a row, a multiple of PAD: their keys and values go to its slot, from `start` on."""

    slot: int
    start: int
    tokens: tuple[int, ...]

    @property
    def end(self) -> int:
        """The number of the row's own positions up to the last of these tokens."""
        return self.start + len(self.tokens)


class Decoder:
    """A model's weights with two forward passes: prefill rows, or step all rows.

    hook: changes the residual stream (rows, hidden) after the embedding, each attention and each MLP, in this
    order. A pass calls it 1 + 2 n_layers times. It must treat each row by itself.
    """

    can_pack = True  # whether keys and values depend on nothing but the tokens before them
    can_draft = True  # whether a position that was written may be written again with another token
    cache_form = ""  # how keys and values are kept, if not in full precision; part of `numerics`
    chunk = CHUNK  # tokens per pass of `prefill`

    def __init__(self, weights: Weights, dtype: torch.dtype, hook: ResidualHook | None = None) -> None:
        self.weights, self.shape, self.dtype, self._hook = weights, weights.shape, dtype, hook
        self.device = weights.norm.device
        self._has_windows = any(self.shape.windows)
        n_pairs, head_dim = len(weights.rope[0]), self.shape.head_dim
        is_usual = 2 * n_pairs == head_dim and not ARCHITECTURES[self.shape.model_type].rotates_neighbours
        self._partners = None if is_usual else partners(self.shape, n_pairs).to(self.device)

    def hooked(self, hook: ResidualHook) -> Decoder:
        """Return the same weights with a hook on the residual stream."""
        return self._like(self.weights, hook)

    def until(self, n_layers: int) -> Decoder:
        """Return the first layers only: a prefill then returns the residual stream after the last of them."""
        windows, rotations = (of[:n_layers] for of in (self.shape.windows, self.shape.rotations))
        shape = replace(self.shape, n_layers=n_layers, windows=windows, rotations=rotations)
        weights = replace(self.weights, shape=shape, blocks=self.weights.blocks[:n_layers])
        return self._like(weights, self._hook)

    def slots(self, width: int, capacity: int) -> KvSlots:
        """Return empty slots. They are zeroed: masked positions must be finite."""
        shape = self.shape
        size = (width, shape.n_kv_heads, capacity, shape.head_dim)

        def make() -> list[torch.Tensor]:
            return [torch.zeros(size, dtype=self.dtype, device=self.device) for _ in range(shape.n_layers)]

        return KvSlots(make(), make())

    def prefix(self, tokens: tuple[int, ...]) -> SharedPrefix:
        """Compute a prefix once, in chunks of fixed size."""
        slots, empty = self.slots(1, round_up(len(tokens), CHUNK)), SharedPrefix((), [], [])
        if tokens:
            self.prefill(empty, slots, 0, tokens, is_read=False)
        n_positions = round_up(len(tokens), BLOCK)
        cut = [
            [cache[0, :, :n_positions].contiguous() for cache in side] for side in (slots.keys, slots.values)
        ]
        return SharedPrefix(tokens, cut[0], cut[1])

    def prefill(
        self,
        prefix: SharedPrefix,
        slots: KvSlots,
        slot: int,
        prompt_tokens: tuple[int, ...],
        n_cached: int = 0,
        is_read: bool = True,
    ) -> torch.Tensor:
        """Run a row's own tokens through the model and write their keys and values into its slot.

        n_cached: tokens whose keys and values are in the slot already: whole chunks, but not all.
        is_read: False if only keys and values are wanted; the last layer then computes nothing else.
        Returns the final hidden states (padded length - n_cached, hidden), with padding after the
        row's length. They mean nothing unless is_read.
        """
        n_padded, is_read = (
            padded(prompt_tokens),
            is_read or self._hook is not None,
        )  # a hook is promised its calls
        hidden = []
        for start in range(n_cached, n_padded, self.chunk):
            n_new = min(self.chunk, n_padded - start)
            cut = prompt_tokens[start : start + n_new]
            tokens = torch.tensor(cut + (0,) * (n_new - len(cut)), device=self.device)
            positions = self._range(0, n_new) + prefix.length + start
            attend = self._attend_many(prefix, slots, slot, start, n_new, is_read)
            hidden.append(self._forward(Pass("row", tokens, positions, attend, is_read)))
            self._end_pass(slots, [(slot, start + len(cut))])
        return torch.cat(hidden)

    def prefill_packed(
        self, prefix: SharedPrefix, slots: KvSlots, segments: Sequence[Segment], width: int
    ) -> None:
        """Write the keys and values of segments in one pass of `width` tokens, at least as many as they have.

        A segment attends to the positions before it in its slot, which must be written.
        """
        tokens, positions = torch.zeros(width, dtype=torch.long), torch.zeros(width, dtype=torch.long)
        at = 0
        for segment in segments:
            rows = slice(at, at := at + len(segment.tokens))
            tokens[rows] = torch.tensor(segment.tokens)
            positions[rows] = torch.arange(segment.start, segment.end) + prefix.length
        is_read = self._hook is not None  # a hook is promised its calls
        tokens, positions = tokens.to(self.device), positions.to(self.device)
        attend = self._attend_segments(prefix, slots, segments, is_read)
        self._forward(Pass("packed", tokens, positions, attend, is_read))

    def step(
        self,
        prefix: SharedPrefix,
        slots: KvSlots,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        n_slots: int | None = None,
        writes: KvWrites | None = None,
    ) -> torch.Tensor:
        """Run one token per row. Returns logits (width, vocabulary).

        tokens: (width,) the last token of each row; lengths: (width,) own tokens before it, each below the
        slots' capacity. n_slots: the rows that have a slot, by default all; later rows only keep the matmuls
        at their width. They read no cache, and their logits mean nothing. writes: by default each row writes
        to its own slot. A layer writes before it reads, so rows may stand for several tokens of one text.
        """
        n_slots = len(tokens) if n_slots is None else n_slots
        ends = lengths[:n_slots] + 1
        tokens, lengths, slot_range = tokens.to(self.device), lengths.to(self.device), self._range(0, n_slots)
        writes = (
            KvWrites(slot_range, slot_range, lengths[:n_slots]) if writes is None else writes.to(self.device)
        )
        attend = self._attend_all(prefix, slots, lengths, n_slots, writes)
        logits = self.logits(self._forward(Pass("step", tokens, lengths + prefix.length, attend)))
        self._end_pass(slots, enumerate(ends.tolist()))
        return logits

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and head: (rows, hidden) -> (rows, vocabulary)."""
        logits = self.weights.head(self._norm(hidden, self.weights.norm))
        return logits if self.shape.logits_scale == 1.0 else logits / self.shape.logits_scale

    # --- inside ------------------------------------------------------------------------------------

    def _range(self, start: int, end: int) -> torch.Tensor:
        """Return whole numbers on the device."""
        return torch.arange(start, end, device=self.device)

    def _mask(self, is_hidden: torch.Tensor) -> torch.Tensor:
        """Return -inf for each hidden key, and 0 for the others."""
        zero = torch.zeros(is_hidden.shape, dtype=self.dtype, device=self.device)
        return zero.masked_fill_(is_hidden, -torch.inf)

    def _like(self, weights: Weights, hook: ResidualHook | None) -> Decoder:
        """Return a decoder of the same kind."""
        return Decoder(weights, self.dtype, hook)

    def _end_pass(self, slots: KvSlots, ends: Iterable[tuple[int, int]]) -> None:
        """Do what follows a pass by row or by step. ends: slots, and where the tokens in them end."""

    def _forward(self, new: Pass) -> torch.Tensor:
        """Return the residual stream after the last layer: (tokens, hidden)."""
        shape, hook = self.shape, self._hook
        x = self.weights.embedding[new.tokens]
        if shape.is_gemma:  # in the dtype of the weights, as Gemma is computed
            x = x * torch.tensor(shape.embedding_scale, dtype=self.dtype)
        elif shape.embedding_scale != 1.0:
            x = x * shape.embedding_scale
        rotations = self._rotation(new.positions)
        x = x if hook is None else hook(x)
        for i, block in enumerate(self.weights.blocks):
            q, k, v = self._qkv(block, self._norm(x, block.norm_attention), rotations[shape.rotations[i]])
            attended = new.attend(i, q, k, v)
            if not new.is_read and i == shape.n_layers - 1:
                return x  # its keys and values are written
            x = x + self._added(block.out(attended), block.norm_attention_out)
            x = x if hook is None else hook(x)
            x = x + self._added(block.mlp(self._norm(x, block.norm_mlp), shape.is_gemma), block.norm_mlp_out)
            x = x if hook is None else hook(x)
        return x

    def _added(self, x: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        """Return what a part of a layer adds to the residual stream."""
        x = self._norm(x, norm)
        return x if self.shape.residual_scale == 1.0 else x * self.shape.residual_scale

    def _qkv(
        self, block: Block, x: torch.Tensor, turn: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (rows, heads, head_dim), scaled; keys and values (rows, kv heads, head_dim)."""
        s = self.shape
        n_qk = s.n_heads + s.n_kv_heads
        heads = block.qkv(x).view(len(x), n_qk + s.n_kv_heads, s.head_dim)
        qk = heads[:, :n_qk]
        if block.norm_q is not None and block.norm_k is not None:
            q, k = qk[:, : s.n_heads], qk[:, s.n_heads :]
            qk = torch.cat([self._norm(q, block.norm_q), self._norm(k, block.norm_k)], dim=1)
        if turn.cos is not None and turn.sin is not None:
            order = self._partners
            partner = qk.roll(s.head_dim // 2, -1) if order is None else qk[..., order]
            qk = torch.addcmul(qk * turn.cos, partner, turn.sin)
        if block.norm_rotated is not None:
            qk = self._norm(qk, block.norm_rotated)
        q = qk[:, : s.n_heads] * s.attention_scale
        q = q if turn.temperature is None else q * turn.temperature
        return q, qk[:, s.n_heads :], heads[:, n_qk:]

    def _attend_many(
        self, prefix: SharedPrefix, slots: KvSlots, slot: int, start: int, n_new: int, is_read: bool
    ) -> Attend:
        """Return causal attention of many tokens of a row; it writes keys and values from `start` on.

        is_read: False if the last layer only writes.
        """
        s, end = self.shape, start + n_new
        group, kv = s.n_heads // s.n_kv_heads, s.n_kv_heads
        queries = self._range(start, end)
        own_mask = self._mask(self._range(0, end)[None] > queries[:, None])[:, None]
        window_masks = self._window_masks(prefix, queries, end)

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = slots.keys[i][slot], slots.values[i][slot]
            keys[:, start:end] = k.transpose(0, 1)
            values[:, start:end] = v.transpose(0, 1)
            if not is_read and i == s.n_layers - 1:
                return q
            # copies: a matmul over a partial view would take the slow path
            own_keys, own_values = keys[:, :end].contiguous(), values[:, :end].contiguous()
            q = q.view(n_new, kv, group, s.head_dim).transpose(0, 1).reshape(kv, n_new * group, s.head_dim)
            scores = torch.bmm(q, own_keys.transpose(1, 2)).view(kv, n_new, group, end) + own_mask
            if prefix.length:
                shared = prefix.scores(q.view(kv, n_new, group, s.head_dim), i)
                scores = torch.cat([shared, scores], dim=-1)
            if s.windows[i] in window_masks:
                scores += window_masks[s.windows[i]][:, None]
            p = torch.softmax(scores, dim=-1)
            o = torch.bmm(p[..., prefix.n_positions :].reshape(kv, n_new * group, end), own_values)
            if prefix.length:
                of_shared = p[..., : prefix.n_positions].reshape(kv, n_new * group, prefix.n_positions)
                o = o + torch.bmm(of_shared, prefix.values[i])
            o = o.view(kv, n_new, group, s.head_dim).transpose(0, 1)
            return o.reshape(n_new, s.n_heads * s.head_dim)

        return attend

    def _attend_segments(
        self, prefix: SharedPrefix, slots: KvSlots, segments: Sequence[Segment], is_read: bool
    ) -> Attend:
        """Return causal attention of packed segments, each by itself; it writes their keys and values.

        is_read: False if the last layer only writes.
        """
        s = self.shape
        masks = [self._segment_masks(prefix, segment) for segment in segments]

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out, at = q.new_zeros(len(q), s.n_heads * s.head_dim), 0
            for segment, mask in zip(segments, masks, strict=True):
                rows = slice(at, at := at + len(segment.tokens))
                keys, values = slots.keys[i][segment.slot], slots.values[i][segment.slot]
                keys[:, segment.start : segment.end] = k[rows].transpose(0, 1)
                values[:, segment.start : segment.end] = v[rows].transpose(0, 1)
                if is_read or i < s.n_layers - 1:
                    of = prefix.at(segment.slot)
                    keys = of.joined(of.keys, i, keys[:, : segment.end])
                    values = of.joined(of.values, i, values[:, : segment.end])
                    out[rows] = self._attend_segment(q[rows], keys, values, mask[s.windows[i]])
            return out

        return attend

    def _segment_masks(self, prefix: SharedPrefix, segment: Segment) -> dict[int, torch.Tensor]:
        """For each window size in use, and 0: (tokens, 1, last keys), -inf for a key that is not seen.

        Without a window these are the keys from the segment's first token on: all of it sees those before.
        """
        first, end = prefix.length + segment.start, prefix.length + segment.end
        queries = self._range(first, end)[:, None, None]
        masks = {}
        for size in {0, *self.shape.windows}:
            ages = queries - self._range(0 if size else first, key_length(end))
            is_hidden = (ages < 0) | (ages >= self._reach(queries, size)) if size else ages < 0
            masks[size] = self._mask(is_hidden)
        return masks

    def _attend_segment(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return what a segment's queries (tokens, heads, head_dim) attend to: (tokens, heads * head_dim)."""
        n, (kv, _, head_dim) = len(q), keys.shape
        n_queries = q.shape[1] // kv * n
        q = q.view(n, kv, -1, head_dim).transpose(0, 1).reshape(kv, n_queries, head_dim)
        q = _filled(q, max(n_queries, FEWEST_QUERIES), 1)
        scores = torch.bmm(q, keys.transpose(1, 2))
        scores[:, :n_queries].view(kv, n, -1, keys.shape[1])[..., -mask.shape[-1] :] += mask
        o = torch.bmm(torch.softmax(scores, dim=-1), values)[:, :n_queries]
        return o.reshape(kv, n, -1, head_dim).transpose(0, 1).reshape(n, -1)

    def _attend_all(
        self, prefix: SharedPrefix, slots: KvSlots, lengths: torch.Tensor, n_slots: int, writes: KvWrites
    ) -> Attend:
        """Return attention of one token per row: one matmul over the prefix, a batched one over caches."""
        s = self.shape
        width, group, n_positions = len(lengths), s.n_heads // s.n_kv_heads, slots.capacity
        n, lengths, n_together = n_slots, lengths[:n_slots], max(width, FEWEST_ROWS)
        into = writes.slots[:, None], self._range(0, s.n_kv_heads)[None], writes.positions[:, None]
        own_mask = self._mask(self._range(0, n_positions)[None] > lengths[:, None])[:, None, None]
        window_masks = self._window_masks(prefix, lengths, n_positions)

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            slots.keys[i][into], slots.values[i][into] = k[writes.rows], v[writes.rows]
            keys, values = slots.keys[i][:n].flatten(0, 1), slots.values[i][:n].flatten(0, 1)
            own_scores = torch.bmm(q[:n].reshape(-1, group, s.head_dim), keys.transpose(1, 2))
            own_scores = own_scores.view(n, s.n_kv_heads, group, n_positions) + own_mask
            if not prefix.length:
                if s.windows[i] in window_masks:
                    own_scores += window_masks[s.windows[i]][:, None, None]
                p = torch.softmax(own_scores, dim=-1).view(-1, group, n_positions)
                return _filled(torch.bmm(p, values).view(n, -1), width, 0)
            # Over the prefix all rows are one matmul, whose size decides the bits: it keeps its width.
            together = _filled(q.view(width, s.n_kv_heads, group, s.head_dim), n_together, 0).transpose(0, 1)
            shared = prefix.scores(together, i)
            scores = torch.cat([shared[:, :n], own_scores.transpose(0, 1)], dim=-1)
            if s.windows[i] in window_masks:
                scores += window_masks[s.windows[i]][:, None]
            p = torch.softmax(scores, dim=-1)
            o = prefix.weighted(_filled(p, n_together, 1), i)[:, :width]
            of_own = p[..., prefix.n_positions :].transpose(0, 1).reshape(-1, group, n_positions)
            o_own = torch.bmm(of_own, values).view(n, s.n_kv_heads, group, s.head_dim)
            return (o.transpose(0, 1) + _filled(o_own, width, 0)).reshape(width, -1)

        return attend

    def _window_masks(
        self, prefix: SharedPrefix, queries: torch.Tensor, n_own: int
    ) -> dict[int, torch.Tensor]:
        """For each window size in use: (queries, prefix + own), -inf where a key lies before the window."""
        if not self._has_windows:
            return {}
        keys = torch.cat(
            [self._range(0, prefix.n_positions), self._range(0, n_own) + prefix.length]
        )  # their positions
        queries = (queries + prefix.length)[:, None]
        ages, sizes = queries - keys[None], {size for size in self.shape.windows if size}
        return {size: self._mask(ages >= self._reach(queries, size)) for size in sizes}

    def _reach(self, queries: torch.Tensor, size: int) -> torch.Tensor | int:
        """Return how many positions a query sees, from its own backwards, by a window of this size."""
        return queries % size + 1 if self.shape.has_chunks else size

    def _norm(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        return x if weight is None else functional.rms_norm(x, weight.shape, weight, self.shape.rms_norm_eps)

    def _rotation(self, positions: torch.Tensor) -> tuple[Rotation, Rotation, Rotation]:
        """Return the rotations of global layers, of windowed layers, and of those that rotate nothing."""
        rotations = []
        kinds = zip(self.weights.rope, self.weights.rope_scale, strict=True)
        for inverse, scale in list(kinds)[: 1 + self._has_windows]:
            angles = (positions.to(torch.float32)[:, None] * inverse)[:, None]
            cos, sin = angles.cos() * scale, angles.sin() * scale
            if self._partners is None:  # roll(x) puts the second half first; its sign is the rotation's
                cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
            else:
                cos, sin = spread(self.shape, cos, sin)
            rotations.append(Rotation(cos.to(self.dtype), sin.to(self.dtype)))
        none = Rotation()
        if self.shape.temperature is not None:
            none = Rotation(temperature=temperatures(*self.shape.temperature, positions).to(self.dtype))
        return rotations[0], rotations[-1], none


def _filled(x: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Return x with zeros appended up to `width` along `dim`."""
    if x.shape[dim] == width:
        return x
    return torch.cat([x, x.new_zeros([*x.shape[:dim], width - x.shape[dim], *x.shape[dim + 1 :]])], dim)


def padded(tokens: Sequence[int]) -> int:
    """Return the length at which a row is prefilled: whole chunks, then a multiple of PAD."""
    return max(PAD, round_up(len(tokens), PAD))
