"""Shapes of models, what one `size` sets (shape, tokens, batch, learning rate), and the memory of a step.

Sources: widths and depths as in GPT-3's table 2.1 (2005.14165) and Llama 3 (2407.21783). Narrow models have
64 columns of width per layer, and wide ones 128. SwiGLU of 8/3 the width (2002.05202). 20 tokens per
parameter (Hoffmann et al. 2022, 2203.15556). Batch and learning rate as powers of the compute (DeepSeek LLM,
2401.02954, equation 1), fitted between 1e17 and 2e19 FLOPs. Smaller runs are outside of that range. Dual
encoders: two equal towers with feed-forward parts of four widths, as SigLIP (2303.15343).

Activations are counted tensor by tensor, as transformers' decoder keeps them for the backward pass. A norm
keeps its input in fp32 and what it scales; on a CPU only the latter (kernels.py). A matmul keeps what it
reads. Attention keeps queries, keys, values and its result, and no square of scores. The feed-forward part
keeps four tensors. Python and its libraries are left out.

Promises: a pure function of its arguments; every figure can be set instead. Importing this loads no torch.
The activation bytes are those of transformers' model (a test).
Leaves to others: the names of a shape in a configuration (architectures/), how much memory there is
(core/host.py), and plans for many devices (forecast.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from heredity.core import host
from heredity.core.errors import UsageError
from heredity.core.records import Record

if TYPE_CHECKING:
    import numpy as np
    import torch

_TOKENS_PER_PARAMETER = 20
_FACTORS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMBT])")
_NARROW_WIDTH, _WIDE_WIDTH = 768, 4096  # between these widths layers become wider for their depth
_HEADS_OF_128, _UNTIED = 1024, 3072  # from these widths on; four query heads then share keys and values
# The linear layers of a decoder layer, as transformers names them.
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDTHS = (*range(64, 1024, 64), *range(1024, 32_769, 512))
FP32_BYTES = 4
PRETRAIN_MICROBATCH_TOKENS = 4096  # in one forward pass over text; one context if that is longer
LOGIT_ROWS_HELD = 1024  # at once: GRADIENT_ROWS of models/causal_lm.py, which needs torch
_LOGIT_COPIES = 2  # in fp32: the logits, and log-probabilities that become their gradient


class TransformerShape(Record, frozen=True):
    """The shape of a transformer: `heads` query heads of `head` columns, `kv_heads` for keys and values."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    wide: int  # columns of the feed-forward part
    context: int  # tokens
    vocabulary: int
    is_tied: bool = True  # whether the head is the embedding

    shares_heads: ClassVar[bool] = True  # whether wide models share keys and values between heads
    feeds: ClassVar[int] = 3  # matrices of the feed-forward part: 3 with a gate
    has_places: ClassVar[bool] = False  # whether positions are learned vectors


class EncoderShape(TransformerShape, frozen=True):
    """An encoder: every head has its own keys and values, and the output head is tied to the embedding."""

    shares_heads: ClassVar[bool] = False


class BertShape(EncoderShape, frozen=True):
    """A BERT: learned positions, and a wider feed-forward part without a gate."""

    feeds: ClassVar[int] = 2
    has_places: ClassVar[bool] = True


class SizePreset(Record, frozen=True):
    """The values that a size sets."""

    shape: TransformerShape
    tokens: int  # to read
    batch: int  # tokens per step, or pairs
    rate: float  # the peak learning rate


def n_parameters(shape: TransformerShape) -> int:
    """All parameters, a tied embedding once. Norms and other vectors are left out."""
    n_rows = shape.vocabulary * (1 if shape.is_tied else 2) + shape.context * shape.has_places
    return n_rows * shape.width + n_matrix_parameters(shape)


def n_matrix_parameters(shape: TransformerShape) -> int:
    """Parameters of the matmuls of a token, without the head."""
    attention = shape.width * shape.head * 2 * (shape.heads + shape.kv_heads)
    return shape.layers * (attention + shape.feeds * shape.width * shape.wide)


def flops_per_token(shape: TransformerShape, length: float | None = None) -> float:
    """FLOPs of one token, forward and backward, with head and attention. A multiply-add counts as two.

    length: of the token's document, whose mean context is half of it. None: the whole context.
    """
    seen = (shape.context if length is None else length) / 2
    attention = 4 * shape.layers * shape.heads * shape.head * seen
    return 3 * (2 * (n_matrix_parameters(shape) + shape.vocabulary * shape.width) + attention)


def size_preset(
    size: str,
    vocabulary: int,
    context: int,
    given: Mapping[str, Any] | None = None,
    kind: type[TransformerShape] = TransformerShape,
) -> SizePreset:
    """The preset of a size ("10M", "1.5B") for a vocabulary. Values that are `given` (not 0) override it.

    given: tokens, batch, rate, and any field of TransformerShape. kind: class of the architecture's shape.
    Raises UsageError for an impossible size.
    """
    overrides = {name: value for name, value in (given or {}).items() if value}
    return preset_of(shape_for(parse_size(size), vocabulary, context, overrides, kind), overrides)


def preset_of(shape: TransformerShape, overrides: Mapping[str, float]) -> SizePreset:
    """The preset of a shape. overrides: tokens, batch and rate. Raises UsageError for an impossible batch."""
    context = shape.context
    tokens = int(overrides.get("tokens") or _TOKENS_PER_PARAMETER * n_parameters(shape))
    compute = tokens * flops_per_token(shape)
    batch = int(overrides.get("batch") or _batch_tokens(compute, context, tokens))
    if "batch" in overrides and batch > tokens:
        raise UsageError(
            f"batch: a step of {batch:,} tokens is more than all {tokens:,}. Lower it.", key="batch"
        )
    return SizePreset(
        shape, tokens, batch, float(overrides.get("rate") or float(f"{0.3118 * compute**-0.1250:.2g}"))
    )


def parse_size(size: str) -> float:
    """ "10M" -> 1e7. Raises UsageError."""
    match = _SIZE.fullmatch(size.strip().upper())
    if match is None:
        raise UsageError(
            f"A size is a number with K, M, B or T, such as 10M or 1.5B, not '{size}'.", key="size"
        )
    if not (wanted := float(match[1]) * _FACTORS[match[2]]):
        raise UsageError(
            f"A model of size {size} has no parameters. Give a size such as 10M or 1.5B.", key="size"
        )
    return wanted


def shape_for(
    wanted: float,
    vocabulary: int,
    context: int,
    overrides: Mapping[str, Any],
    kind: type[TransformerShape] = TransformerShape,
) -> TransformerShape:
    """The shape with about `wanted` parameters and the usual depth for its width."""

    def of_width(width: int) -> TransformerShape:
        head = 64 if width < _HEADS_OF_128 else 128
        heads = width // head
        kv_heads = heads // 4 if width >= _HEADS_OF_128 and kind.shares_heads else heads
        is_tied = not kind.shares_heads or width < _UNTIED
        wide = 64 * max(1, round((8 * width / kind.feeds) / 64))
        one = kind(1, width, heads, kv_heads, head, wide, context, vocabulary, is_tied)
        rest = wanted - (n_parameters(one) - n_matrix_parameters(one))
        return msgspec.structs.replace(one, layers=max(2, round(rest / n_matrix_parameters(one))))

    shapes = [of_width(width) for width in WIDTHS]

    def strays(shape: TransformerShape) -> float:
        return abs(math.log(shape.layers / usual_depth(shape.width))) + 2 * abs(
            math.log(n_parameters(shape) / wanted)
        )

    best = min(shapes, key=strays)
    if n_parameters(best) > 3 * wanted:
        raise UsageError(
            f"A vocabulary of {vocabulary:,} makes a model of {n_parameters(best):,} parameters at least, "
            f"and {wanted:,.0f} were asked for. Take a larger size or a smaller vocabulary."
        )
    return _with_overrides(of_width(overrides["width"]) if "width" in overrides else best, overrides)


def usual_depth(width: int) -> float:
    """The usual number of layers for a width."""
    share = min(1.0, max(0.0, math.log(width / _NARROW_WIDTH) / math.log(_WIDE_WIDTH / _NARROW_WIDTH)))
    return max(2.0, width / (64 * (1 + share)))


def _with_overrides(shape: TransformerShape, overrides: Mapping[str, Any]) -> TransformerShape:
    names = {name for name in TransformerShape.__struct_fields__ if name not in ("context", "vocabulary")}
    changes = {name: value for name, value in overrides.items() if name in names}
    if not shape.shares_heads and "heads" in changes:  # they fill the width
        heads = changes["heads"]
        changes |= {"kv_heads": heads, "head": shape.width // heads}
        if shape.width % heads:
            raise UsageError(f"{heads} heads do not divide a width of {shape.width}.")
    shape = msgspec.structs.replace(shape, **changes)
    if not shape.heads or not shape.kv_heads:
        raise UsageError(
            f"A width of {shape.width} has no room for a head of {shape.head}. Set heads, kv_heads, head."
        )
    if shape.head % 2:
        raise UsageError(f"Rotary positions need an even number of columns per head, not {shape.head}.")
    if shape.heads % shape.kv_heads:
        raise UsageError(f"{shape.kv_heads} key-value heads do not divide {shape.heads} heads.")
    return shape


def _batch_tokens(compute: float, context: int, tokens: int) -> int:
    """Tokens per step: whole contexts, and at least about a hundred steps."""
    wanted = 0.2920 * compute**0.3271
    return int(context * max(1, round(min(wanted, tokens / 100) / context)))


_READS_PER_PAIR = 30  # epochs over the pairs
_DUAL_BATCH, _DUAL_LR = 256, 1e-3


class DualShape(TransformerShape, frozen=True):
    """Two towers of this shape. context: of captions. side, patch: of the image, in pixels."""

    side: int = 64
    patch: int = 8

    @property
    def patches(self) -> int:
        return int((self.side // self.patch) ** 2)


def n_dual_parameters(towers: DualShape) -> int:
    """All parameters, approximately."""
    around = towers.vocabulary + towers.context + towers.patches + 3 * towers.patch**2
    return around * towers.width + 2 * towers.layers * _dual_layer_parameters(towers.width, towers.wide)


def _dual_layer_parameters(width: int, wide: int) -> int:
    return 4 * width**2 + 2 * width * wide


def dual_size_preset(
    size: str, vocabulary: int, caption: int, picture: tuple[int, int], n_pairs: int, given: Mapping[str, Any]
) -> SizePreset:
    """The preset of a size for a dual encoder. Values that are `given` (not 0) override it.

    `picture`: side and patch in pixels. given: pairs, batch, rate, layers, width, heads, wide.
    Raises UsageError for impossible values.
    """
    side, patch = picture
    if side % patch:
        raise UsageError(f"An image of {side} pixels is not divisible by patch = {patch}.")
    overrides = {name: value for name, value in given.items() if value}
    wanted = parse_size(size)
    widths = [overrides["width"]] if "width" in overrides else WIDTHS
    candidates = [
        _dual_shape_of_width(width, wanted, vocabulary, caption, picture, overrides) for width in widths
    ]
    best = min(candidates, key=lambda towers: _dual_deviation(towers, wanted))
    if "width" not in overrides and n_dual_parameters(best) > 3 * wanted:
        raise UsageError(
            f"A vocabulary of {vocabulary:,} makes a model of {n_dual_parameters(best):,} parameters, "
            f"and {wanted:,.0f} were asked for. Take a larger size or a smaller vocabulary."
        )
    batch = int(overrides.get("batch") or min(_DUAL_BATCH, max(2, n_pairs // 4)))
    if not 2 <= batch <= n_pairs:
        raise UsageError(
            f"batch must be between 2 and {n_pairs}, the number of pairs, not {batch}.",
            code="bad-setting",
        )
    return SizePreset(
        best,
        int(overrides.get("pairs") or _READS_PER_PAIR * n_pairs),
        batch,
        float(overrides.get("rate") or _DUAL_LR),
    )


def _dual_shape_of_width(
    width: int,
    wanted: float,
    vocabulary: int,
    caption: int,
    picture: tuple[int, int],
    overrides: Mapping[str, Any],
) -> DualShape:
    heads = overrides.get("heads") or max(1, width // 64)
    if width % heads:
        raise UsageError(f"{heads} heads do not divide a width of {width}.")
    wide = overrides.get("wide") or 4 * width
    side, patch = picture
    one = DualShape(1, width, heads, heads, width // heads, wide, caption, vocabulary, True, side, patch)
    rest = wanted - n_dual_parameters(one) + 2 * _dual_layer_parameters(width, wide)
    layers = overrides.get("layers") or max(2, round(rest / (2 * _dual_layer_parameters(width, wide))))
    return DualShape(
        layers, width, heads, heads, width // heads, wide, caption, vocabulary, True, side, patch
    )


def _dual_deviation(towers: DualShape, wanted: float) -> float:
    depth = abs(math.log(towers.layers / usual_depth(towers.width)))
    return depth + 2 * abs(math.log(n_dual_parameters(towers) / wanted))


# --- memory and throughput ---


@dataclass(frozen=True)
class DecoderActivations:
    """Bytes that a decoder's forward pass keeps for the backward pass. number_bytes: 2 for bfloat16."""

    shape: TransformerShape
    number_bytes: int
    is_on_cpu: bool
    has_qk_norm: bool

    @property
    def per_token(self) -> int:
        """Of a whole forward pass, without logits."""
        return self.root + self.shape.layers * self.per_layer

    @property
    def per_layer(self) -> int:
        """Of one layer and token."""
        shape, size = self.shape, self.number_bytes
        queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
        norms = 2 * self._norm(shape.width, 1)
        if self.has_qk_norm:
            norms += self._norm(queries, shape.heads) + self._norm(keys, shape.kv_heads)
        matmul_inputs = size * (2 * shape.width + queries)
        attention = size * (2 * queries + 2 * keys) + FP32_BYTES * shape.heads
        return norms + matmul_inputs + attention + size * 4 * shape.wide

    @property
    def root(self) -> int:
        """Per token, outside the layers: last norm, rotary positions, token ids, the gradient at the head."""
        shape, size = self.shape, self.number_bytes
        return self._norm(shape.width, 1) + 2 * size * shape.head + 16 + size * shape.width

    def logits(self, n_rows: int) -> int:
        """Of the logits that are held at once, of `n_rows` in total."""
        row = (FP32_BYTES * _LOGIT_COPIES + self.number_bytes) * self.shape.vocabulary
        return row * min(LOGIT_ROWS_HELD, n_rows)

    def _norm(self, columns: int, n: int) -> int:
        if self.is_on_cpu:
            return self.number_bytes * (columns + n)
        return (FP32_BYTES + self.number_bytes) * columns + FP32_BYTES * n


def mean_chunk_length(lengths: np.ndarray[tuple[int], np.dtype[np.int64]], context: int) -> float:
    """The mean chunk length over tokens, for documents of these lengths that are cut at the context."""
    whole, rest = lengths // context, lengths % context
    return float((whole * context**2 + rest**2).sum() / lengths.sum())


def matmul_limit(
    shape: TransformerShape,
    dtype: torch.dtype,
    of_head: float = 1.0,
    device: torch.device | None = None,
) -> float:
    """The measured FLOP/s of the model's matmuls, forward and backward. of_head: its share of rows.

    device: None: the processor.
    """
    columns = shape.head * (shape.heads + 2 * shape.kv_heads)
    layer = [(shape.width, columns), (shape.head * shape.heads, shape.width)]
    layer += [(shape.width, (shape.feeds - 1) * shape.wide), (shape.wide, shape.width)]
    n_rows = PRETRAIN_MICROBATCH_TOKENS
    products = [(*size, n_rows) for size in layer * shape.layers]
    products.append((shape.width, shape.vocabulary, max(1, round(of_head * n_rows))))
    return host.matmul_flops(products, dtype, device)
