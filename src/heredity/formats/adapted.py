"""An adapter applied to a resident base: x W' + scale * (x A') B', with DoRA's factors and replaced tensors.

Promises: the weights of the base are in memory once for any number of adapters; a layer with replaced tensors
is read again.
The updates of an adapter are also read as small matmuls of their own, so that rows of several adapters share
a pass. Only an adapter of matrices A and B of a decoder's linear layers is read so. Any other is refused by
what it has. All sizes are checked, so that no row of another model can fail by them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional

from heredity.core.errors import Damaged, Unavailable
from heredity.formats import weights as base_weights
from heredity.formats.architectures import ARCHITECTURES, ExpertNames
from heredity.formats.int8 import Linear
from heredity.formats.peft import ADVICE, HEAD, Adapter, LowRank, read_adapter, row_factor
from heredity.formats.safetensors_io import read_safetensors
from heredity.formats.weights import (
    EMBEDDING,
    Block,
    Expert,
    Experts,
    Gate,
    TensorFiles,
    Weights,
    steady_tile,
)

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


NORM = "model.norm.weight"
_MODULE, _HEAD_MODULE = EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight")


class _Overlaid(TensorFiles):
    """The tensors of a base, some of them replaced."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, device: torch.device, whole: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__(folder, dtype, device)
        self._whole = whole

    def read(self, name: str, as_stored: bool = False) -> torch.Tensor:
        if (own := self._whole.get(name)) is None:
            return super().read(name, as_stored)
        return own if as_stored else own.to(self.dtype)

    def of_base(self, name: str) -> torch.Tensor:
        """Return the tensor of the base, as it is stored."""
        return super().read(name, as_stored=True)

    def get(self, name: str) -> torch.Tensor | None:
        return self.read(name) if name in self._whole else super().get(name)


def apply_adapter(weights: Weights, folder: Path, base: Path, dtype: torch.dtype) -> Weights:
    """Return the base, whose files are in `base`, with an adapter; tensors that it keeps are shared.

    Raises Damaged if the adapter does not fit, and Unavailable for a layer that this engine cannot adapt.
    """
    names, is_tied = tensor_names(base), base_weights.read_shape(base)[3]
    device = weights.norm.device
    adapter = moved(read_adapter(folder).fitted(names, is_tied, folder), device)
    _refuse_others(adapter, folder, weights)
    gate = Gate() if adapter.invocation else None
    files = _Overlaid(base, dtype, device, adapter.whole)
    blocks = tuple(_block(weights, i, adapter, files, gate) for i in range(weights.shape.n_layers))
    adapted = dataclasses.replace(
        weights, blocks=blocks, base=weights, invocation=adapter.invocation, gate=gate
    )
    return _ends(adapted, adapter, files, is_tied)


def moved(adapter: Adapter, device: torch.device) -> Adapter:
    """Return the adapter with its tensors on a device."""

    def moved(part: LowRank) -> LowRank:
        bias = None if part.bias is None else part.bias.to(device)
        magnitude = None if part.magnitude is None else part.magnitude.to(device)
        a, b = part.a.to(device), part.b.to(device)
        return dataclasses.replace(part, a=a, b=b, bias=bias, magnitude=magnitude)

    low_rank = {name: moved(part) for name, part in adapter.low_rank.items()}
    whole = {name: tensor.to(device) for name, tensor in adapter.whole.items()}
    return dataclasses.replace(adapter, low_rank=low_rank, whole=whole)


def tensor_names(folder: Path) -> set[str]:
    """Return the names of all tensors of a folder, from the headers of its files."""
    return {name for path in sorted(folder.glob("*.safetensors")) for name in read_safetensors(path)}


class MatrixNames(NamedTuple):
    """The matrices of a layer that can be adapted, by the fields of its block; those of experts apart."""

    qkv: Sequence[str]
    out: Sequence[str]
    gate_up: Sequence[str]
    down: Sequence[str]


def matrix_names(weights: Weights, block: Block) -> MatrixNames:
    """Return the names of a layer's matrices in the files."""
    of = ARCHITECTURES[weights.shape.model_type]
    if block.experts is None or of.experts is None:
        return MatrixNames(of.qkv, of.out, of.gate_up, of.down)
    return MatrixNames(of.qkv, of.out, of.experts.shared_gate_up, of.experts.shared_down)


def _names_of_experts(weights: Weights) -> ExpertNames | None:
    """The names of a model's experts. None: it has none, or its files keep those of a layer in one tensor."""
    names = ARCHITECTURES[weights.shape.model_type].experts
    return None if names is None or names.is_stacked else names


def _refuse_others(adapter: Adapter, folder: Path, weights: Weights) -> None:
    """Raise Unavailable for a linear layer that is not one of a decoder's fused matmuls.

    Of an activated adapter also for a matrix next to experts: its rows are not those of the pass.
    """
    is_activated = bool(adapter.invocation)
    known = {
        f"model.layers.{i}.{name}"
        for i, block in enumerate(weights.blocks)
        for names in matrix_names(weights, block)[: 2 if is_activated and block.experts is not None else None]
        for name in names
    }
    of = None if is_activated else _names_of_experts(weights)
    for i, block in enumerate(weights.blocks):
        if of is not None and block.experts is not None:
            n_experts = len(block.experts.each)
            each = [name.format(n) for name in (*of.gate_up, *of.down) for n in range(n_experts)]
            known |= {f"model.layers.{i}.{name}" for name in (of.router, *each)}
    for module in adapter.low_rank:
        if module not in known and module not in (_MODULE, _HEAD_MODULE):
            advice = "" if is_activated else f" {ADVICE}"
            raise Unavailable(f"{folder} adapts {module[:80]!r}, which the torch engine cannot.{advice}")


@dataclass(frozen=True, slots=True)
class _Layer:
    """The updates of one layer. at: what its names begin with."""

    at: str
    adapter: Adapter
    files: TensorFiles
    gate: Gate | None = None  # of an activated adapter

    def parts(self, names: Sequence[str]) -> list[LowRank | None]:
        """Return the updates of matrices; None for one that has none."""
        return [self.adapter.low_rank.get(f"{self.at}{name}") for name in names]

    def adapted(self, linear: Linear, names: Sequence[str], n_out: Sequence[int] = ()) -> Linear:
        """Return the matmul of these matrices with their updates; itself if it has no update.

        n_out: the outputs of each matrix, if there are several.
        """
        parts, modules = self.parts(names), [f"{self.at}{name}" for name in names]
        if not any(parts):
            return linear
        n_out = n_out if len(parts) > 1 else ()
        added = add_low_rank(linear, parts, n_out, self.files.dtype, self.gate)
        return _extended(added, parts, modules, n_out, self.files)


def _block(weights: Weights, layer: int, adapter: Adapter, files: TensorFiles, gate: Gate | None) -> Block:
    """Return a layer with its updates; read again if tensors of it are replaced."""
    at, block, shape = f"model.layers.{layer}.", weights.blocks[layer], weights.shape
    if any(name.startswith(at) for name in adapter.whole):
        block = base_weights.block(shape, files, layer)
    updates, names = _Layer(at, adapter, files, gate), matrix_names(weights, block)
    of_heads = [n * shape.head_dim for n in (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)]
    gate_up, down, experts = block.gate_up, block.down, block.experts
    if gate_up is not None and down is not None:
        row = torch.zeros((1, shape.hidden_size), dtype=files.dtype, device=weights.norm.device)
        gate_up = updates.adapted(gate_up, names.gate_up, [gate_up(row).shape[-1] // 2] * 2)
        down = updates.adapted(down, names.down)
    if experts is not None and (of := _names_of_experts(weights)) is not None:
        experts = _experts(updates, experts, of, base_weights.how(shape, files))
    return dataclasses.replace(
        block,
        qkv=updates.adapted(block.qkv, names.qkv, of_heads),
        out=updates.adapted(block.out, names.out),
        gate_up=gate_up,
        down=down,
        experts=experts,
    )


def _experts(updates: _Layer, experts: Experts, names: ExpertNames, how: str) -> Experts:
    """Return the experts of a layer with their updates. how: the kind of matmul of the base."""
    router = updates.files.read(f"{updates.at}{names.router}.weight")
    n_inner = experts.each[0].gate_up(router[:1]).shape[-1] // 2
    each, tile = list(experts.each), experts.tile
    for i, expert in enumerate(experts.each):
        gate_up, down = ([name.format(i) for name in some] for some in (names.gate_up, names.down))
        parts = updates.parts([*gate_up, *down])
        if any(parts):
            each[i] = Expert(
                updates.adapted(expert.gate_up, gate_up, [n_inner] * 2), updates.adapted(expert.down, down)
            )
            ranks = [0 if part is None else len(part.a) for part in parts]
            tile = min(tile, steady_tile(each[i], router, f"{how} with ranks {ranks}"))
    return dataclasses.replace(
        experts, router=updates.adapted(experts.router, [names.router]), each=each, tile=tile
    )


def add_low_rank(
    base: Linear, parts: Sequence[LowRank | None], n_out: Sequence[int], dtype: torch.dtype,
    gate: Gate | None = None,
) -> Linear:  # fmt: skip
    """Return one matmul with the stacked A of all parts, and one with their B as blocks.

    gate: of an activated adapter, whose update acts on some rows only.
    """
    there = [part for part in parts if part is not None]
    a = stacked(parts, dtype)
    rows, column = [], 0
    n_columns = len(a)
    for part, size in zip(parts, n_out or [len(there[0].b)], strict=True):
        block = torch.zeros(size, n_columns, device=a.device)
        if part is not None:
            if len(part.b) != size:
                raise Damaged(
                    f"The adapter does not fit its base: {len(part.b)} outputs, and the base has {size}.",
                    code="adapter-misfit",
                )
            rank = part.a.shape[0]
            block[:, column : column + rank] = part.b * part.scale
            column += rank
        rows.append(block)
    b = torch.cat(rows).to(dtype).contiguous()
    if gate is None:
        return lambda x: base(x) + functional.linear(functional.linear(x, a), b)
    return lambda x: gate.add(base(x), lambda: functional.linear(functional.linear(x, a), b))


def stacked(parts: Sequence[LowRank | None], dtype: torch.dtype) -> torch.Tensor:
    """Return the A of all parts as one matrix (ranks, in)."""
    return torch.cat([part.a for part in parts if part is not None]).to(dtype).contiguous()


def _extended(
    linear: Linear, parts: Sequence[LowRank | None], modules: Sequence[str], n_out: Sequence[int],
    files: TensorFiles,
) -> Linear:  # fmt: skip
    """Return a matmul with the biases of B added, and the rows of DoRA at their magnitudes."""
    there = [part for part in parts if part is not None]
    n_outputs = n_out or [len(there[0].b)]
    if any(part.bias is not None for part in there):
        added = torch.cat([
            torch.zeros(size, device=files.device)
            if part is None or part.bias is None
            else part.scale * part.bias
            for part, size in zip(parts, n_outputs, strict=True)
        ]).to(files.dtype)  # fmt: skip
        plain = linear
        linear = lambda x: plain(x) + added  # noqa: E731
    if all(part.magnitude is None for part in there):
        return linear
    factors, kept = [], []
    for part, module, size in zip(parts, modules, n_outputs, strict=True):
        factor, bias = torch.ones(size, device=files.device), files.get(f"{module}.bias")
        if part is not None and part.magnitude is not None:
            weight = files.read(f"{module}.weight", as_stored=True)
            if not weight.is_floating_point():
                raise Unavailable(f"DoRA needs the base in full precision, and {module} is {weight.dtype}.")
            factor = row_factor(part.magnitude, weight.float() + part.delta())
        factors.append(factor)
        # The bias of the base is not scaled: (y - bias) * factor + bias.
        kept.append(torch.zeros_like(factor) if bias is None else bias.float() * (1 - factor))
    scale, rest = torch.cat(factors).to(files.dtype), torch.cat(kept).to(files.dtype)
    updated = linear
    return lambda x: updated(x) * scale + rest


def _ends(weights: Weights, adapter: Adapter, files: _Overlaid, is_tied: bool) -> Weights:
    """Return the weights with the adapter's embedding, head and last norm."""
    low, whole = adapter.low_rank, adapter.whole
    embedding, head, norm, shape = weights.embedding, weights.head, weights.norm, weights.shape
    if EMBEDDING in whole or _MODULE in low:
        embedding = adapter.changed(EMBEDDING, files.of_base(EMBEDDING)).to(files.dtype)
        shape = dataclasses.replace(shape, vocab_size=len(embedding))
    new_head = whole.get(HEAD)
    if new_head is None and is_tied and adapter.keeps_ties:
        new_head = whole.get(EMBEDDING)
    if new_head is not None:
        head = base_weights.linear(new_head.to(files.dtype))
    n_outputs = weights.shape.vocab_size if new_head is None else len(new_head)
    if n_outputs != shape.vocab_size:
        raise Damaged(
            f"The adapter's embedding has {shape.vocab_size} tokens, and the head {n_outputs}.",
            code="adapter-misfit",
        )
    if (part := low.get(_HEAD_MODULE)) is not None:
        place = [_MODULE if is_tied and HEAD not in whole else _HEAD_MODULE]
        head = add_low_rank(head, [part], [n_outputs], files.dtype)
        head = _extended(head, [part], place, [n_outputs], files)
    if NORM in whole:
        norm = base_weights.norm_of(weights.shape, files)
    return dataclasses.replace(weights, shape=shape, embedding=embedding, head=head, norm=norm)
