"""The updates of an adapter as small matmuls of their own, so that rows of several adapters share a pass.

Promises: only an adapter is read that is nothing but matrices A and B of a decoder's linear layers. Any other
is refused by what it has. All sizes are checked, so that no row of another model can fail by them.
Leaves to others: the rows of a pass (engines/torch/adapters.py), files (peft.py), and adapters of every other
form, each over its base by itself (adapted.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional

from heredity.core.errors import Damaged, Unavailable
from heredity.formats import weights as base_weights
from heredity.formats.adapted import matrix_names, moved, stacked, tensor_names
from heredity.formats.int8 import Linear
from heredity.formats.peft import LowRank, read_adapter
from heredity.formats.weights import Block, Weights

Place = tuple[int, str]  # a layer, and a field of its Block


class Part(NamedTuple):
    """One of the matrices of a fused matmul. b: (n_out, rank), scaled; None: it has no update."""

    n_out: int
    b: torch.Tensor | None


Shape = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]


@dataclass(frozen=True, slots=True)
class Update:
    """The update of one fused matmul: a (ranks, in) stacks the A of all parts, and each part has its own B.

    So it takes no more memory than the files. `adapted.add_low_rank` has one B with zeros for all parts.
    """

    a: torch.Tensor
    parts: tuple[Part, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in) -> (rows, out), to be added to the base's."""
        hidden, at, updates = functional.linear(x, self.a), 0, []
        for n_out, b in self.parts:
            if b is None:
                updates.append(x.new_zeros(len(x), n_out))
            else:
                updates.append(functional.linear(hidden[:, at : at + b.shape[1]], b))
                at += b.shape[1]
        return updates[0] if len(updates) == 1 else torch.cat(updates, dim=1)

    @property
    def shape(self) -> Shape:
        """The sizes that decide the order of its sums: those of A, and outputs and rank of each part."""
        parts = tuple((n_out, 0 if b is None else b.shape[1]) for n_out, b in self.parts)
        return tuple(self.a.shape), parts

    @property
    def n_bytes(self) -> int:
        """The memory that it takes."""
        return self.a.nbytes + sum(0 if b is None else b.nbytes for _, b in self.parts)

    def fused(self) -> Linear:
        """Return the same update with one B for all parts, as an adapter by itself has it."""
        n_ranks, at, rows = len(self.a), 0, []
        for n_out, b in self.parts:
            block = self.a.new_zeros(n_out, n_ranks)
            if b is not None:
                block[:, at : at + b.shape[1]] = b
                at += b.shape[1]
            rows.append(block)
        whole = torch.cat(rows)
        return lambda x: functional.linear(functional.linear(x, self.a), whole)


@dataclass(frozen=True, slots=True)
class UpdateStack:
    """Updates of one shape, of several adapters: a (adapters, ranks, in), each b (adapters, n_out, rank)."""

    a: torch.Tensor
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return len(self.a)

    def at(self, place: int) -> Update:
        """Return the update of one adapter, in the same memory."""
        parts = tuple(Part(n_out, None if b is None else b[place]) for n_out, b in self.parts)
        return Update(self.a[place], parts)

    def with_(self, update: Update) -> UpdateStack:
        """Return a stack with one more at the end."""
        pairs = zip(self.parts, update.parts, strict=True)
        parts = tuple(
            Part(n_out, None if b is None or new is None else torch.cat([b, new[None]]))
            for (n_out, b), (_, new) in pairs
        )
        return UpdateStack(torch.cat([self.a, update.a[None]]), parts)

    def without(self, place: int) -> UpdateStack:
        """Return a stack without one of them."""

        def rest(of: torch.Tensor) -> torch.Tensor:
            return torch.cat([of[:place], of[place + 1 :]])

        parts = tuple(Part(n_out, None if b is None else rest(b)) for n_out, b in self.parts)
        return UpdateStack(rest(self.a), parts)

    def __call__(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Multiply the adapters from `first` on: (adapters, rows, in) -> (adapters * rows, out)."""
        if len(x) == 1:
            return self.at(first)(x[0])
        some = slice(first, first + len(x))
        hidden, at, updates = torch.bmm(x, self.a[some].mT), 0, []
        for n_out, b in self.parts:
            if b is None:
                updates.append(x.new_zeros(*x.shape[:2], n_out))
            else:
                updates.append(torch.bmm(hidden[..., at : at + b.shape[2]], b[some].mT))
                at += b.shape[2]
        return (updates[0] if len(updates) == 1 else torch.cat(updates, dim=2)).flatten(0, 1)


def stacked_alone(update: Update) -> UpdateStack:
    """Return a stack of one adapter."""
    parts = tuple(Part(n_out, None if b is None else b[None]) for n_out, b in update.parts)
    return UpdateStack(update.a[None], parts)


@dataclass(frozen=True, slots=True)
class Updates:
    """An adapter that can share its base. invocation: of an activated one, the tokens that wake it."""

    by_place: Mapping[Place, Update]
    invocation: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[tuple[Place, Shape], ...]:
        """The shapes of all its matrices; those of adapters with an equal one are stacked."""
        return tuple(sorted((place, update.shape) for place, update in self.by_place.items()))

    @property
    def n_bytes(self) -> int:
        """The memory that they take."""
        return sum(update.n_bytes for update in self.by_place.values())


def read_updates(weights: Weights, folder: Path, base: Path, dtype: torch.dtype) -> Updates:
    """Read the adapter in `folder`. weights: of its base, whose files are in `base`.

    Raises Unavailable with the code adapter-not-shared for an adapter of another form, and Damaged for one
    that does not fit its base.
    """
    if weights.how:
        raise _not_shared("its base is quantized")
    is_tied = base_weights.read_shape(base)[3]
    adapter = moved(read_adapter(folder).fitted(tensor_names(base), is_tied, folder), weights.norm.device)
    if adapter.whole:
        raise _not_shared(f"it replaces {min(adapter.whole)[:80]}")
    for module, part in adapter.low_rank.items():
        if part.magnitude is not None:
            raise _not_shared("it is a DoRA, which scales rows of the base")
        if part.bias is not None:
            raise _not_shared(f"it adds a bias to {module[:80]}")
    left, updates = set(adapter.low_rank), {}
    for layer, block in enumerate(weights.blocks):
        for field, names, sizes in _matrices(weights, block):
            modules = [f"model.layers.{layer}.{name}" for name in names]
            parts = [adapter.low_rank.get(module) for module in modules]
            left.difference_update(modules)
            if any(parts):
                updates[layer, field] = _update(parts, sizes, dtype)
    if left:
        raise _not_shared(f"it adapts {min(left)[:80]}")
    return Updates(updates, adapter.invocation)


def _not_shared(why: str) -> Unavailable:
    return Unavailable(f"It cannot share its base with other adapters: {why}.", code="adapter-not-shared")


class _Sizes(NamedTuple):
    n_in: int
    n_out: Sequence[int]  # of each matrix


def _matrices(weights: Weights, block: Block) -> Iterator[tuple[str, Sequence[str], _Sizes]]:
    """Yield the fused matmuls of a layer whose rows are those of a pass: field, matrices, sizes."""
    shape, names = weights.shape, matrix_names(weights, block)
    hidden, n_attended = shape.hidden_size, shape.n_heads * shape.head_dim
    n_kv = shape.n_kv_heads * shape.head_dim
    yield "qkv", names.qkv, _Sizes(hidden, (n_attended, n_kv, n_kv))
    yield "out", names.out, _Sizes(n_attended, (hidden,))
    if block.experts is None and block.gate_up is not None:
        row = torch.zeros((1, hidden), dtype=weights.norm.dtype, device=weights.norm.device)
        n_inner = block.gate_up(row).shape[-1] // 2
        yield "gate_up", names.gate_up, _Sizes(hidden, (n_inner, n_inner))
        yield "down", names.down, _Sizes(n_inner, (hidden,))


def _update(parts: Sequence[LowRank | None], sizes: _Sizes, dtype: torch.dtype) -> Update:
    n_out = sizes.n_out
    if len(parts) == 1 < len(n_out):  # the files have these matrices as one
        n_out = (sum(n_out),)
    for part, size in zip(parts, n_out, strict=True):
        if part is not None and (len(part.b), part.a.shape[1]) != (size, sizes.n_in):
            raise Damaged(
                f"The adapter does not fit its base: a matrix of {part.a.shape[1]} inputs and {len(part.b)}"
                f" outputs, and the base has {sizes.n_in} and {size}.",
                code="adapter-misfit",
            )
    a = stacked(parts, dtype)
    scaled = [None if part is None else (part.b * part.scale).to(dtype).contiguous() for part in parts]
    return Update(a, tuple(map(Part, n_out, scaled)))
