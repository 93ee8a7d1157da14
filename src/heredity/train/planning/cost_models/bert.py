"""Parameters, FLOPs and activation bytes of a BERT, by part.

Every layer attends to the whole chunk, and every matmul has a bias. The head runs on masked tokens only.

Leaves to others: FLOPs of shorter chunks (architectures/bert.py).
"""

from __future__ import annotations

import math

from heredity.train.models.architectures import bert
from heredity.train.planning.cost_models import CostModel, TowerCosts, decoder, norm_statistics
from heredity.train.planning.workload import Workload
from heredity.train.resources import FP32_BYTES


def cost_model(work: Workload) -> CostModel:
    """Of an encoder for masked text."""
    shape, size = work.shape, work.bytes
    width, table = shape.width, shape.vocabulary * shape.width
    attention, wide = 4 * width * (width + 1), 2 * width * shape.wide + shape.wide + width
    each = attention + wide + 4 * width
    places = (shape.context + bert.TYPES) * width
    tower = TowerCosts(
        layers=shape.layers,
        parameters=shape.layers * each,
        each=each,
        kept=shape.layers * _kept(work),
        begin=_kept_by_root(work),
        end=0,
        most=_kept(work),
        entry=size * width,
        back=size * (2 * shape.wide + 2 * width),
    )
    return CostModel(
        parameters={
            "embedding": table + places,
            "attention": shape.layers * attention,
            "feed-forward": shape.layers * wide,
            "norms": 4 * width * (shape.layers + 1),  # two a layer; of the embedding, of the head
            "head": width * (width + 1) + shape.vocabulary,
        },
        matrices=shape.layers * (4 * width**2 + 2 * width * shape.wide) + width**2,
        flops=_flops(work),
        towers=(tower,),
        head=table + shape.vocabulary,
        loose=2 * table + places + width**2 + shape.vocabulary,
        logits=lambda n: decoder.logits_memory(work, math.ceil(work.head_share * n)),
    )


def _flops(work: Workload) -> dict[str, float]:
    shape = work.shape
    return {
        "attention": 6.0 * shape.layers * 4 * shape.width**2,
        "attention scores": 12.0 * shape.layers * shape.width * shape.context,
        "feed-forward": 6.0 * shape.layers * 2 * shape.width * shape.wide,
        "head": 6.0 * work.head_share * (shape.vocabulary * shape.width + shape.width**2),
    }


def _kept(work: Workload) -> int:
    """Activation bytes per token and layer.

    The input; queries, keys and values; the attention result twice; inputs of two norms, and the output of
    the first one. Two tensors are of the feed-forward part.
    """
    shape = work.shape
    return (
        work.bytes * (9 * shape.width + 2 * shape.wide) + FP32_BYTES * shape.heads + 2 * norm_statistics(work)
    )


def _kept_by_root(work: Workload) -> int:
    """Activation bytes per token outside the layers.

    The input of a norm, and ids of token, position and type; for masked tokens also the activations of the
    head, and its gradient.
    """
    shape, size = work.shape, work.bytes
    gap = 3 * size * shape.width + norm_statistics(work) + 8 + size * shape.width
    return size * shape.width + norm_statistics(work) + 3 * 8 + math.ceil(work.head_share * gap)
