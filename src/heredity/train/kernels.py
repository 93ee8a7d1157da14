"""Attention within each packed document, and forward passes of transformers modules that are faster on a CPU.

Documents of similar length become rows of one matmul. Torch's fused kernel is faster on a GPU, in fp32, and
on a CPU with AMX. There, short rows take plain matmuls in the backward pass. On other CPUs the kernel's
bfloat16 is slow. All rows then take matmuls, a block of queries at a time, so that the square of a long
document is never held. Probabilities are recomputed in the backward pass.

Documents may share their first tokens, which the rest of a network computes once. Here each document has a
copy of them, and their gradient is the sum over the copies.

On a CPU norms, rotations, gates and losses are bound by memory. Here a norm is one product and one sum per
direction, and a rotation three passes. Compiled by torch's inductor, each is one pass.

Promises: a document attends only to itself. Numbers are those of transformers, within rounding. In bfloat16
the factor of a norm is rounded once more, and a rotated sum once instead of three times. The same documents
give the same bits: no sum over tokens is compiled. A chain that cannot be compiled is an error.
Leaves to others: the rest of a network (models/), and modules of another form (Gemma's norm adds one to its
weight), which stay unchanged.

Sources: RMS norm, Zhang & Sennrich 2019 (1910.07467); rotary positions, Su et al. 2021 (2104.09864); SwiGLU,
Shazeer 2020 (2002.05202).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

# What torch and the compiler raise without a compiler, its folder or its headers; anything else is a bug.
_COMPILER_ERRORS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
_RECOMPILE_LIMIT = 64  # recompilations of a chain, for dtypes, ranks and sizes of one


@cache
def compiled(chain: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, compiled for any number of tokens."""
    import torch._dynamo as dynamo
    from torch._inductor import config

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
    config.compile_threads = 1  # no pool of processes next to the training
    made: Callable[..., Any] = torch.compile(chain, dynamic=True, fullgraph=True)
    return made


@lru_cache(maxsize=1)
def why_unavailable() -> str:
    """Why compiling does not work on this machine; "" if a trial chain compiled and ran."""
    if not sys.platform.startswith("linux"):
        return "only supported on Linux"
    try:
        result = compiled(_probe)(torch.ones(3, 5))
    except _COMPILER_ERRORS as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return "" if bool((result == 3).all()) else f"a compiled sum is wrong ({os.uname().machine})"


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


# classes of transformers that are patched
NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention")
FEED_FORWARDS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")


class KernelPatch:
    """A replacement for a module's forward. The original handles inputs that this one does not support."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._usual = module.forward


def replace_forwards(
    model: nn.Module, known: Sequence[str], way: Callable[[Any], Callable[..., Any]]
) -> None:
    """Replace the forward of every module whose class has one of these names."""
    for module in model.modules():
        if type(module).__name__ in known:
            module.forward = way(module)


def patch_norms(model: nn.Module, is_fused: bool = False) -> None:
    """Patch every norm of a supported class. On other devices than a CPU the original runs."""
    replace_forwards(model, NORMS, lambda module: _PatchedNorm(module, is_fused))


class _PatchedNorm(KernelPatch):
    """The forward of a norm."""

    def __init__(self, module: Any, is_fused: bool) -> None:
        super().__init__(module)
        self._normed = _CompiledNorm if is_fused else _Norm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)"""
        if x.device.type != "cpu":
            usual: torch.Tensor = self._usual(x)
            return usual
        weight, eps = self._module.weight, self._module.variance_epsilon
        out: torch.Tensor = self._normed.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return out


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        factor = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)  # (..., 1)
        normed: torch.Tensor = x * factor
        ctx.save_for_backward(normed, factor, weight)
        out: torch.Tensor = normed * weight
        return out

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        normed, factor, weight = ctx.saved_tensors
        of_normed = out * weight
        along = (of_normed * normed).mean(-1, keepdim=True)
        of_x = torch.addcmul(of_normed, normed, along, value=-1).mul_(factor)
        of_weight = (out * normed).flatten(0, -2).sum(0)
        return of_x, of_weight, None


class _CompiledNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out, factor = compiled(_norm_forward)(x, weight, eps)
        ctx.save_for_backward(x, factor, weight)
        result: torch.Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        of_x, of_rows = compiled(_norm_back)(out, *ctx.saved_tensors)
        return of_x, of_rows.flatten(0, -2).sum(0), None


def _norm_forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float()
    factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # (..., 1)
    return (wide * factor).to(x.dtype) * weight, factor


def _norm_back(
    out: torch.Tensor, x: torch.Tensor, factor: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of the input, and of the weight at each row."""
    normed, grad = x.float() * factor, out.float()
    of_normed = grad * weight.float()
    along = (of_normed * normed).mean(-1, keepdim=True)
    return ((of_normed - normed * along) * factor).to(x.dtype), (grad * normed).to(weight.dtype)


def patch_attention(model: nn.Module, is_fused: bool = False) -> None:
    """Patch every attention of a supported class. On other devices than a CPU the original runs."""
    replace_forwards(model, ATTENTIONS, lambda module: _PatchedRotary(module, is_fused))


class _PatchedRotary(KernelPatch):
    """The forward of an attention."""

    def __init__(self, module: Any, is_fused: bool) -> None:
        super().__init__(module)
        self._turned = _CompiledRotate if is_fused else _Rotate

    def __call__(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        lengths: tuple[int, ...] = (),
        n_shared: int = 0,
        **rest: Any,
    ) -> Any:
        """(1, tokens, width) -> (1, tokens, width), and no weights."""
        if hidden_states.device.type != "cpu" or not lengths:
            rest |= {"lengths": lengths, "n_shared": n_shared}
            return self._usual(hidden_states, position_embeddings, attention_mask, **rest)
        at = self._module
        q, k, v = (
            linear(hidden_states).unflatten(-1, (-1, at.head_dim))
            for linear in (at.q_proj, at.k_proj, at.v_proj)
        )
        if hasattr(at, "q_norm"):
            q, k = at.q_norm(q), at.k_norm(k)
        cos, sin = (x.unsqueeze(-2) for x in position_embeddings)
        q, k = (self._turned.apply(x, cos, sin) for x in (q, k))  # type: ignore[no-untyped-call]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        window = getattr(at, "sliding_window", getattr(at.config, "sliding_window", None))
        out, _ = causal_attention(at, q, k, v, None, at.scaling, lengths, window, n_shared)
        return at.o_proj(out.flatten(-2)), None


class _Rotate(torch.autograd.Function):
    """Rotate the halves of each head (..., heads, head_dim) by angles (..., 1, head_dim)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, -1)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(out, cos, sin.roll(sin.shape[-1] // 2, -1), 1), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    out: torch.Tensor = x * cos
    first, second = x.chunk(2, -1)
    of_first, of_second = sin.chunk(2, -1)
    low, high = out.chunk(2, -1)
    low.addcmul_(second, of_first, value=sign)
    high.addcmul_(first, of_second, value=-sign)
    return out


class _CompiledRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        out: torch.Tensor = compiled(_rotate)(x, cos, sin)
        return out

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        of_x: torch.Tensor = compiled(_rotate_back)(out, *ctx.saved_tensors)
        return of_x, None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    (first, second), (c1, c2), (s1, s2) = (each.chunk(2, -1) for each in (x, cos, sin))
    return torch.cat((first * c1 - second * s1, second * c2 + first * s2), -1)


def _rotate_back(out: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    (first, second), (c1, c2), (s1, s2) = (each.chunk(2, -1) for each in (out, cos, sin))
    return torch.cat((first * c1 + second * s2, second * c2 - first * s1), -1)


def patch_feed_forward(model: nn.Module) -> None:
    """Patch every feed-forward part of a supported class. On other devices than a CPU the original runs."""
    replace_forwards(model, FEED_FORWARDS, _PatchedSwiglu)


class _PatchedSwiglu(KernelPatch):
    """The forward of a feed-forward part."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)"""
        of = self._module
        if x.device.type != "cpu" or of.config.hidden_act != "silu":
            usual: torch.Tensor = self._usual(x)
            return usual
        out: torch.Tensor = of.down_proj(
            _Gate.apply(  # type: ignore[no-untyped-call]
                of.gate_proj(x), of.up_proj(x)
            )
        )
        return out


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        out: torch.Tensor = compiled(_gate_forward)(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grads: tuple[torch.Tensor, torch.Tensor] = compiled(_gate_back)(out, *ctx.saved_tensors)
        return grads


def _gate_forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return functional.silu(gate) * up


def _gate_back(out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, grad = gate.float(), out.float()
    share = torch.sigmoid(x)
    of_gate = grad * up.float() * share * (1 + x * (1 - share))
    return of_gate.to(gate.dtype), (grad * x * share).to(up.dtype)


_MIN_QUERIES, _MAX_BLOCKS = (
    128,
    8,
)  # queries of a block: at least this many, or this part of a row
_MAX_SCORES = 1 << 24  # scores held at once
_QUERY_MULTIPLE = 16  # the queries of a block are a multiple of it


class AttentionWindow(NamedTuple):
    """The numbers of positions before and after it that a token attends to.

    lengths: of the rows, if some are padded. Padding attends only to padding.
    """

    before: int
    after: int
    lengths: tuple[int, ...] = ()


def blockwise_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: AttentionWindow,
    is_fused: bool = False,
) -> torch.Tensor:
    """Attention by matmuls, over (rows, heads, tokens, head_dim); keys may have fewer heads.

    is_fused: the forward pass uses torch's kernel, and the backward pass has all queries in one block.
    """
    out: torch.Tensor = _BlockwiseAttention.apply(  # type: ignore[no-untyped-call]
        q, k, v, scale, window, is_fused
    )
    return out


def fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: AttentionWindow
) -> torch.Tensor:
    """The same by torch's kernel in both directions."""
    n = q.shape[2]
    is_causal = not window.after and window.before >= n - 1 and not window.lengths
    seen = None if is_causal else _visibility(window, 0, n, 0, n)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=None if seen is None else seen.to(q.device), is_causal=is_causal, scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip


class _Block(NamedTuple):
    """Queries, and the keys that any of them attends to."""

    queries: slice
    keys: slice


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        window: AttentionWindow,
        is_fused: bool,
    ) -> torch.Tensor:
        n = q.shape[2]
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.window = scale, window
        ctx.size = n if is_fused else block_size(q.shape[0] * q.shape[1], n)
        if is_fused:
            return fused_attention(q, k, v, scale, window)
        keys, values = _flatten_heads(k), _flatten_heads(v)
        queries = _group_by_keys(q * scale, keys)
        out = torch.empty_like(queries)
        for block in _blocks(n, ctx.size, window):
            probs = _probabilities(queries, keys, block, window)
            out_block = out[:, :, block.queries]
            out_block.copy_(torch.bmm(probs, values[:, block.keys]).view(out_block.shape))
        return out.view(q.shape)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        keys, values = _flatten_heads(k), _flatten_heads(v)
        queries, grad = _group_by_keys(q * ctx.scale, keys), _group_by_keys(out, keys)
        grad_q = torch.empty_like(queries)
        grad_keys, grad_values = _GradientSum(keys, ctx.size), _GradientSum(values, ctx.size)
        for block in _blocks(q.shape[2], ctx.size, ctx.window):
            probs = _probabilities(queries, keys, block, ctx.window)
            grad_out = _queries(grad, block)
            grad_values.add(block, torch.bmm(probs.transpose(1, 2), grad_out))
            grad_probs = torch.bmm(grad_out, values[:, block.keys].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
            grad_q_block = grad_q[:, :, block.queries]
            grad_products = torch.bmm(grad_scores, keys[:, block.keys]).mul_(ctx.scale)
            grad_q_block.copy_(grad_products.view(grad_q_block.shape))
            grad_keys.add(block, torch.bmm(grad_scores.transpose(1, 2), _queries(queries, block)))
        return grad_q.view(q.shape), grad_keys.shaped_as(k), grad_values.shaped_as(v), None, None, None


class _GradientSum:
    """The gradient of keys or values over all blocks; in fp32 if there are several."""

    def __init__(self, like: torch.Tensor, size: int) -> None:
        self._total = None if size >= like.shape[1] else torch.zeros_like(like, dtype=torch.float32)

    def add(self, block: _Block, part: torch.Tensor) -> None:
        """A block's part: (products, keys of the block, head_dim)."""
        if self._total is None:
            self._total = part
        else:
            self._total[:, block.keys] += part

    def shaped_as(self, like: torch.Tensor) -> torch.Tensor:
        """The sum, in the shape of the keys."""
        assert self._total is not None
        return self._total.to(like.dtype).view(like.shape)


def block_size(n_products: int, n: int) -> int:
    """Queries of a block, for rows of `n` tokens. Blocks are equal; the last may be smaller."""
    most = min(max(_MIN_QUERIES, n // _MAX_BLOCKS), max(_QUERY_MULTIPLE, _MAX_SCORES // (n_products * n)))
    each = -(-n // -(-n // most))
    return each + -each % _QUERY_MULTIPLE


def _blocks(n: int, size: int, window: AttentionWindow) -> Iterator[_Block]:
    for first in range(0, n, size):
        stop = min(first + size, n)
        yield _Block(slice(first, stop), slice(max(0, first - window.before), min(n, stop + window.after)))


def _flatten_heads(keys: torch.Tensor) -> torch.Tensor:
    """(rows, heads, tokens, head_dim) -> (products, tokens, head_dim)"""
    return keys.reshape(-1, *keys.shape[2:])


def _group_by_keys(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(rows, heads, tokens, head_dim) -> (products, heads that share keys, tokens, head_dim)"""
    return x.reshape(len(keys), -1, *x.shape[2:])


def _queries(x: torch.Tensor, block: _Block) -> torch.Tensor:
    """(products, queries of all heads that share keys, head_dim)"""
    return x[:, :, block.queries].reshape(len(x), -1, x.shape[3])


def _probabilities(
    queries: torch.Tensor, keys: torch.Tensor, block: _Block, window: AttentionWindow
) -> torch.Tensor:
    """(products, queries of all heads that share keys, keys of the block)"""
    scores = torch.bmm(_queries(queries, block), keys[:, block.keys].transpose(1, 2))
    near = block.keys
    if not window.lengths and not block.keys.start and window.before >= block.queries.stop - 1:
        near = slice(block.queries.start, block.keys.stop)  # all queries see the keys before the block
    shift = 0 if window.lengths else near.start
    unseen = _additive_mask(
        window, *_shift(block.queries, shift), *_shift(near, shift), scores.dtype, scores.device
    )
    if unseen is not None:
        rows = (len(window.lengths) or 1, -1, block.queries.stop - block.queries.start, scores.shape[2])
        scores.view(rows)[..., near.start - block.keys.start :].add_(unseen)
    return torch.softmax(scores, -1)  # in fp32 within, whatever the dtype


def _shift(places: slice, shift: int) -> tuple[int, int]:
    return places.start - shift, places.stop - shift


@lru_cache(maxsize=64)
def _additive_mask(
    window: AttentionWindow,
    first: int,
    stop: int,
    low: int,
    high: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor | None:
    """_visibility as an additive mask: 0 for visible, minus infinity for hidden."""
    seen = _visibility(window, first, stop, low, high)
    if seen is None:
        return None
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf).to(device)


@lru_cache(maxsize=32)
def _visibility(window: AttentionWindow, first: int, stop: int, low: int, high: int) -> torch.Tensor | None:
    """Whether queries `first` to `stop` see keys `low` to `high`: (rows or 1, 1, queries, keys); None: all.

    Padding sees padding, so that no row of a softmax is empty: its gradient would be NaN.
    """
    if stop - 1 - low <= window.before and high - 1 - first <= window.after and not window.lengths:
        return None
    q, k = torch.arange(first, stop), torch.arange(low, high)
    ages = q[:, None] - k
    seen = ((ages <= window.before) & (ages >= -window.after))[None]
    if window.lengths:
        lengths = torch.tensor(window.lengths)[:, None]
        seen = seen & ((q < lengths)[:, :, None] == (k < lengths)[:, None])
    return seen[:, None]


SHORT_ROWS = 192  # tokens; up to here matmuls were measured to be faster in the backward pass
Lengths = tuple[int, ...]
RowAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Lengths], torch.Tensor]
ROW_MULTIPLE = 16  # row lengths are a multiple; every new matmul size costs time and memory to set up
_MIN_LENGTH_RATIO = 0.75  # of a document to the longest one of its group
_ASSUMES_ACCELERATOR = ContextVar("elsewhere", default=False)


def causal_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 (documents are their own masks)
    scaling: float | None = None,
    lengths: tuple[int, ...] = (),
    sliding_window: int | None = None,
    n_shared: int = 0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention, as transformers calls it. n_shared: as of a PackedBatch.

    query: (1, heads, tokens, head_dim); returns (1, tokens, heads, head_dim).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    width = sliding_window if sliding_window is not None else getattr(module, "sliding_window", None)

    def of_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: Lengths) -> torch.Tensor:
        window = AttentionWindow((width or q.shape[2]) - 1, 0)
        if q.shape[2] > SHORT_ROWS and is_fused_kernel_fast(q):
            return fused_attention(q, k, v, scale, window)
        return blockwise_attention(q, k, v, scale, window, is_fused=is_fused_kernel_fast(q))

    return attend_by_rows(query, key, value, lengths, of_rows, n_shared), None


def is_fused_kernel_fast(x: torch.Tensor) -> bool:
    """Whether torch's kernel is fast: on a CPU its bfloat16 path needs AMX."""
    return x.device.type != "cpu" or x.dtype != torch.bfloat16 or _ASSUMES_ACCELERATOR.get() or _has_amx()


@lru_cache(maxsize=1)
def _has_amx() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return probe is None or bool(probe())


def attend_by_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Lengths,
    of_rows: RowAttention,
    n_shared: int = 0,
) -> torch.Tensor:
    """Run `of_rows` on groups of documents of similar length, as padded rows, and pack the result again.

    query: (1, heads, tokens, head_dim); returns (1, tokens, heads, head_dim). of_rows: queries, keys and
    values (rows, heads, longest, head_dim), and the length of each row -> (rows, heads, longest, head_dim).
    The first `n_shared` tokens begin every document.
    """
    groups = row_groups(lengths)
    sizes = [len(group) * longest for group, longest in groups]
    tokens = [x.squeeze(0).transpose(0, 1) for x in (query, key, value)]
    places = row_indices(lengths, query.device, n_shared) if sum(sizes) > len(tokens[0]) else None
    if places:
        tokens = [_ToRows.apply(x, *places) for x in tokens]  # type: ignore[no-untyped-call]
    done: list[torch.Tensor] = []
    for (group, longest), *parts in zip(groups, *(x.split(sizes) for x in tokens), strict=True):
        q, k, v = (x.unflatten(0, (-1, longest)).transpose(1, 2) for x in parts)
        done.append(of_rows(q, k, v, group).transpose(1, 2).flatten(0, 1))
    out = torch.cat(done)
    if places:
        out = _FromRows.apply(out, places.tokens, places.rows)  # type: ignore[no-untyped-call]
    return out.unsqueeze(0)


@lru_cache(maxsize=8)  # the same for every layer
def row_groups(lengths: Lengths) -> tuple[tuple[Lengths, int], ...]:
    """Groups of documents, and the padded row length of each, a multiple of ROW_MULTIPLE."""
    return tuple((group, max(group) + -max(group) % ROW_MULTIPLE) for group in group_by_length_ratio(lengths))


class RowIndices(NamedTuple):
    """How packed tokens and row positions correspond.

    tokens: the token at each row position; at padding one of the same document.
    rows: the row position of each token; for a shared one that in the first document.
    copies: (further documents, shared tokens) row positions.
    """

    tokens: torch.Tensor
    rows: torch.Tensor
    copies: torch.Tensor


@lru_cache(maxsize=8)
def row_indices(lengths: Lengths, device: torch.device, n_shared: int = 0) -> RowIndices:
    """The correspondence of packed tokens and row positions."""
    held = token_places(lengths, n_shared)
    tokens: list[int] = []
    rows: list[int] = []
    copies: list[list[int]] = []
    start = at = 0
    for group, longest in row_groups(lengths):
        for n in group:
            tokens += [*held[start : start + n], *held[start : start + 1] * (longest - n)]
            if start and n_shared:
                copies.append([*range(at, at + n_shared)])
            rows += range(at + (n_shared if start else 0), at + n)
            start, at = start + n, at + longest
    return RowIndices(
        *(torch.tensor(each, dtype=torch.long, device=device) for each in (tokens, rows, copies))
    )


def token_places(lengths: Lengths, n_shared: int) -> list[int]:
    """Where each token of each document is held, if the first `n_shared` of all documents are held once."""
    places: list[int] = []
    at = n_shared
    for n in lengths:
        places += [*range(n_shared), *range(at, at + n - n_shared)]
        at += n - n_shared
    return places


class _ToRows(torch.autograd.Function):
    """(tokens, ...) -> (row positions, ...). Padding positions get no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor, copies: torch.Tensor
    ) -> torch.Tensor:
        ctx.rows, ctx.copies = rows, copies
        return x.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        rows = out.index_select(0, ctx.rows)
        if ctx.copies.numel():
            n_shared = ctx.copies.shape[1]
            copies = out.index_select(0, ctx.copies.flatten()).unflatten(0, (-1, n_shared))
            rows[:n_shared] += copies.sum(0)
        return rows, None, None, None


class _FromRows(torch.autograd.Function):
    """(row positions, ...) -> (tokens, ...), without the padding."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.rows, ctx.n = rows, len(tokens)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        rows = out.new_zeros((ctx.n, *out.shape[1:]))
        return rows.index_copy_(0, ctx.rows, out), None, None


@contextmanager
def assume_accelerator() -> Iterator[None]:
    """Compute as on a device with a fast kernel, for fake tensors. Caches are cleared on entry and exit,
    so that real and fake tensors never mix."""
    token = _ASSUMES_ACCELERATOR.set(True)
    _clear_caches()
    try:
        yield
    finally:
        _ASSUMES_ACCELERATOR.reset(token)
        _clear_caches()


def _clear_caches() -> None:
    row_indices.cache_clear()
    for each in (_additive_mask, _visibility):
        each.cache_clear()


def group_by_length_ratio(lengths: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Neighbours of similar length, in order."""
    group: list[int] = []
    for n in lengths:
        both = (*group, n)
        if group and min(both) < _MIN_LENGTH_RATIO * max(both):
            yield tuple(group)
            group = []
        group.append(n)
    yield tuple(group)


def bidirectional_attention(
    module: Any,  # noqa: ARG001 (transformers gives it)
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 (documents are their own masks)
    scaling: float | None = None,
    lengths: tuple[int, ...] = (),
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Bidirectional attention, as transformers calls it. sliding_window: the first distance that is masked.

    query: (1, heads, tokens, head_dim); returns (1, tokens, heads, head_dim).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling

    def of_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: Lengths) -> torch.Tensor:
        n, width = q.shape[2], sliding_window or q.shape[2]
        window = AttentionWindow(width - 1, width - 1, () if min(group) == n else group)
        if not is_fused_kernel_fast(q):
            return blockwise_attention(q, k, v, scale, window)
        is_cut = width < n  # the kernel then has a mask per row, as rehearsal.py counts
        return fused_attention(q, k, v, scale, window._replace(lengths=group) if is_cut else window)

    return attend_by_rows(query, key, value, lengths, of_rows), None
