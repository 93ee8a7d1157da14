"""Parameters, FLOPs and activation bytes of a ModernBERT, by part.

The first layer has no norm before its attention. Windowed layers, two of three, also keep a mask of the whole
square, as kernels/attention.py gives it to torch's kernel. The head runs on masked tokens only.

Leaves to others: FLOPs of shorter chunks (architectures/modernbert.py).
"""

from __future__ import annotations

import math

from heredity.train.models.architectures import modernbert
from heredity.train.models.shapes import TransformerShape
from heredity.train.planning.cost_models import CostModel, TowerCosts, decoder, norm_statistics
from heredity.train.planning.workload import Workload
from heredity.train.resources import FP32_BYTES

_SEEN = modernbert.WINDOW // 2  # per side


def cost_model(work: Workload) -> CostModel:
    """The costs of a ModernBERT."""
    shape, size = work.shape, work.bytes
    table, attention, wide = shape.vocabulary * shape.width, 4 * shape.width**2, 3 * shape.width * shape.wide
    each = attention + wide + 2 * shape.width
    mask = size * shape.context if shape.context > _SEEN + 1 else 0
    layer, first_norm = _kept(work), size * shape.width + norm_statistics(work)
    n_windows = shape.layers - _n_whole(shape)
    tower = TowerCosts(
        layers=shape.layers,
        parameters=shape.layers * each - shape.width,
        each=each,
        kept=shape.layers * layer - first_norm + n_windows * mask,
        begin=_kept_by_root(work),
        end=0,
        most=layer + mask * (n_windows > 0),
        entry=size * shape.width,
        back=size * (3 * shape.wide + 2 * shape.width),
    )
    norms = (2 * shape.layers - 1) * shape.width + 3 * shape.width  # embedding, last, head
    return CostModel(
        parameters={
            "embedding": table,
            "attention": shape.layers * attention,
            "feed-forward": shape.layers * wide,
            "norms": norms,
            "head": shape.width**2,
        },
        matrices=shape.layers * (attention + wide) + shape.width**2,
        flops=_flops(work),
        towers=(tower,),
        head=table,
        loose=2 * table + shape.width**2,
        logits=lambda n: decoder.logits_memory(work, math.ceil(work.head_share * n)),
        period=modernbert.EVERY,
    )


def _n_whole(shape: TransformerShape) -> int:
    """Layers that attend to the whole chunk."""
    return -(-shape.layers // modernbert.EVERY)


def _flops(work: Workload) -> dict[str, float]:
    shape, whole = work.shape, _n_whole(work.shape)
    window = min(shape.context, modernbert.WINDOW)
    return {
        "attention": 6.0 * shape.layers * 4 * shape.width**2,
        "attention scores": 12.0 * shape.width * (whole * shape.context + (shape.layers - whole) * window),
        "feed-forward": 6.0 * shape.layers * 3 * shape.width * shape.wide,
        "head": 6.0 * work.head_share * (shape.vocabulary * shape.width + shape.width**2),
    }


def _kept(work: Workload) -> int:
    """Activation bytes per token and layer.

    Inputs and outputs of two norms; queries and keys before and after rotation; values; the attention result
    twice; four tensors of the feed-forward part.
    """
    shape = work.shape
    return (
        work.bytes * (11 * shape.width + 4 * shape.wide)
        + FP32_BYTES * shape.heads
        + 2 * norm_statistics(work)
    )


def _kept_by_root(work: Workload) -> int:
    """Activation bytes per token outside the layers.

    Inputs of two norms, rotary positions of both kinds, the token id; for masked tokens also what the head
    keeps, and its gradient.
    """
    shape, size = work.shape, work.bytes
    n_kinds = 2 if shape.layers > 1 else 1
    token = 2 * (size * shape.width + norm_statistics(work)) + n_kinds * 2 * size * shape.head + 8
    gap = 3 * size * shape.width + norm_statistics(work) + 8 + size * shape.width
    return token + math.ceil(work.head_share * gap)
