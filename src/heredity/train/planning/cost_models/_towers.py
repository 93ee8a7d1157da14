"""What the two towers of a model of pictures and captions have in common, by part.

A unit is a pair: all places of its picture and all of its caption. The way back goes through the tower of
captions first, while all that the other keeps is there. Every picture of a step is held against every caption
of it; where devices share a step, a device holds its own pictures against all captions and its own captions
against all pictures.

Leaves to others: where the two kinds differ (clip.py, siglip.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from heredity.train.memory import FP32_BYTES
from heredity.train.models.shapes import DualShape
from heredity.train.planning.cost_models import CostModel, TowerCosts
from heredity.train.planning.workload import Workload

_SCORES = 5  # in fp32 at once: themselves, as they are hidden, a logarithm each way, a gradient
_ALONE = 2  # more of a score: which is a pair, and which is none, one byte each


@dataclass(frozen=True)
class EndCosts:
    """What differs: parameters around the layers by part, FLOPs of the heads.

    begin: bytes that a picture keeps before the layers, its points aside; ends: that a caption and a picture
    keep behind them, the last norm's input and the arrow aside. places: of a picture. seen: places of a
    caption that one sees. active: of the feed-forward part's columns, those that its activation keeps.
    """

    embedding: int
    norms: int
    head: int
    matrices: int  # of the head, that Muon steps
    flops: float
    begin: int
    ends: tuple[int, int]
    places: int
    seen: float
    active: int


def two_tower_costs(work: Workload, around: EndCosts) -> CostModel:
    """Of two towers."""
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
    """Layers keep two norms' inputs and what they give, queries, keys, values and the attention's result;
    behind them stay the last norm's input, and an arrow with its length and what scores are told by."""
    shape, size = work.towers, work.bytes
    wide = (around.active + 1) * shape.wide
    layer = places * (size * (8 * shape.width + wide) + FP32_BYTES * shape.heads + 2 * norm_statistics(work))
    arrow = FP32_BYTES * (shape.width + 2) + FP32_BYTES * (3 * shape.width // 2)
    return TowerCosts(
        layers=shape.layers,
        parameters=shape.layers * each,
        each=each,
        kept=shape.layers * layer,
        begin=begin,
        end=end + places * size * shape.width + arrow,
        most=layer,
        entry=places * size * shape.width,
        back=places * size * (2 * shape.wide + 2 * shape.width),
    )


def _points(work: Workload) -> int:
    """Bytes of a picture, as it is given and as it is multiplied."""
    given = 3 * work.towers.side**2
    return given * (FP32_BYTES if work.bytes == FP32_BYTES else FP32_BYTES + work.bytes)


def _flops(work: Workload, around: EndCosts) -> dict[str, float]:
    """Nothing is told to a picture's points, so that patches go back once."""
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


def norm_statistics(work: Workload) -> int:
    """Bytes of a row's mean and deviation that a norm keeps."""
    return 2 * (work.bytes if work.is_on_cpu else FP32_BYTES)
