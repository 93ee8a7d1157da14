"""The common costs of the two towers of a dual encoder, by part.

A unit is a pair: all positions of its image and of its caption. The backward pass goes through the text tower
first, while all activations of the image tower are held. Every image of a step is compared with every
caption. If devices share a step, each compares its images with all captions and its captions with all images.

Leaves to others: the differences between architectures (clip.py, siglip.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from heredity.train.models.shapes import DualShape
from heredity.train.planning.cost_models import CostModel, TowerCosts, norm_statistics
from heredity.train.planning.workload import Workload
from heredity.train.resources import FP32_BYTES

_SCORES = 5  # fp32 copies of a score: itself, masked, two log-softmaxes, a gradient
_ALONE = 2  # further bytes per score: two masks


@dataclass(frozen=True)
class EndCosts:
    """The costs that differ: parameters outside the layers by part, and FLOPs of the heads.

    begin: activation bytes of an image before the layers, without its pixels.
    ends: activation bytes of a caption and an image after the layers, without last norm and embedding.
    places: positions of an image. seen: positions of a caption that one attends to.
    active: tensors that the activation of the feed-forward part keeps.
    """

    embedding: int
    norms: int
    head: int
    matrices: int  # of the head, for Muon
    flops: float
    begin: int
    ends: tuple[int, int]
    places: int
    seen: float
    active: int


def two_tower_costs(work: Workload, around: EndCosts) -> CostModel:
    """The costs of a dual encoder."""
    shape = work.towers
    attention, wide = 4 * shape.width * (shape.width + 1), _feed_forward(shape)
    each = attention + wide + 4 * shape.width
    n = 2 * shape.layers
    return CostModel(
        parameters={
            "embedding": around.embedding + shape.vocabulary * shape.width,
            "attention": n * attention,
            "feed-forward": n * wide,
            "norms": n * 4 * shape.width + around.norms,
            "head": around.head,
        },
        matrices=n * (4 * shape.width**2 + 2 * shape.width * shape.wide) + around.matrices,
        flops=_flops(work, around),
        towers=(
            _tower(work, around, each, shape.context, 8 * shape.context, around.ends[0]),
            _tower(work, around, each, around.places, _points(work) + around.begin, around.ends[1]),
        ),
        head=0,
        loose=shape.vocabulary * shape.width,
        logits=lambda pairs: pairs * work.batch * (FP32_BYTES * _SCORES + _ALONE),
    )


def _feed_forward(shape: DualShape) -> int:
    return 2 * shape.width * shape.wide + shape.wide + shape.width


def _tower(work: Workload, around: EndCosts, each: int, places: int, begin: int, end: int) -> TowerCosts:
    """The costs of one tower.

    Layers keep inputs and outputs of two norms, queries, keys, values and the attention result. After them
    stay the input of the last norm, and the embedding with its norm.
    """
    shape, size = work.towers, work.bytes
    wide = (around.active + 1) * shape.wide
    layer = places * (size * (8 * shape.width + wide) + FP32_BYTES * shape.heads + 2 * norm_statistics(work))
    embedding = FP32_BYTES * (shape.width + 2) + FP32_BYTES * (3 * shape.width // 2)
    return TowerCosts(
        layers=shape.layers,
        parameters=shape.layers * each,
        each=each,
        kept=shape.layers * layer,
        begin=begin,
        end=end + places * size * shape.width + embedding,
        most=layer,
        entry=places * size * shape.width,
        back=places * size * (2 * shape.wide + 2 * shape.width),
    )


def _points(work: Workload) -> int:
    """Bytes of an image, as input and in the matmul's dtype."""
    given = 3 * work.towers.side**2
    return given * (FP32_BYTES if work.bytes == FP32_BYTES else FP32_BYTES + work.bytes)


def _flops(work: Workload, around: EndCosts) -> dict[str, float]:
    """Pixels need no gradient, so the patch embedding has one backward matmul."""
    shape, places = work.towers, around.places + work.towers.context
    seen = around.places**2 + shape.context * around.seen
    return {
        "patches": 4.0 * 3 * shape.patch**2 * shape.width * shape.patches,
        "attention": 6.0 * shape.layers * 4 * shape.width**2 * places,
        "attention scores": 12.0 * shape.layers * shape.width * seen,
        "feed-forward": 6.0 * shape.layers * 2 * shape.width * shape.wide * places,
        "head": around.flops,
        "contrast": 6.0 * work.batch * shape.width,
    }
