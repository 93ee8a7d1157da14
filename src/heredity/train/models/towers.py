"""One dial, `size`, for a model of pictures and captions: two transformers of the same width and depth.

Sources: both towers alike, and four widths in the feed-forward part, as SigLIP (2303.15343); as many columns
a layer as sizes.py.

Promises: a pure function of its arguments; every figure can be given instead.
Leaves to others: what a shape is called in a configuration (architectures/).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from heredity.core.errors import UsageError
from heredity.train.models import shapes
from heredity.train.models.shapes import Dial, TransformerShape

_PAIRS = 30  # times that each pair is read
_BATCH, _RATE = 256, 1e-3


class Towers(TransformerShape, frozen=True):
    """Two transformers of this shape; `context` is a caption's. side and patch: of the picture, in points."""

    side: int = 64
    patch: int = 8

    @property
    def patches(self) -> int:
        return int((self.side // self.patch) ** 2)


def n_weights(towers: Towers) -> int:
    """All parameters, about."""
    around = towers.vocabulary + towers.context + towers.patches + 3 * towers.patch**2
    return around * towers.width + 2 * towers.layers * _layer(towers.width, towers.wide)


def _layer(width: int, wide: int) -> int:
    return 4 * width**2 + 2 * width * wide


def dial(
    size: str, vocabulary: int, caption: int, picture: tuple[int, int], n_pairs: int, given: Mapping[str, Any]
) -> Dial:
    """What a size sets; what is `given` (not 0) stands instead. picture: side and patch, in points.

    given: pairs, batch, rate, layers, width, heads, wide. Raises UsageError for what cannot be.
    """
    side, patch = picture
    if side % patch:
        raise UsageError(
            f"A picture of {side} points is not cut evenly by patch = {patch}.", code="patch-does-not-divide"
        )
    said = {name: value for name, value in given.items() if value}
    wanted = shapes.weights_of(size)
    widths = [said["width"]] if "width" in said else shapes.WIDTHS
    found = [_of_width(width, wanted, vocabulary, caption, picture, said) for width in widths]
    best = min(found, key=lambda towers: _strays(towers, wanted))
    if "width" not in said and n_weights(best) > 3 * wanted:
        raise UsageError(
            f"A vocabulary of {vocabulary:,} makes a model of {n_weights(best):,} parameters at least, and "
            f"{wanted:,.0f} were asked for. Take a larger size or a smaller vocabulary."
        )
    batch = int(said.get("batch") or min(_BATCH, max(2, n_pairs // 4)))
    if not 2 <= batch <= n_pairs:
        raise UsageError(
            f"A step of {batch} pairs cannot be of {n_pairs}: batch lies between 2 and that.",
            code="bad-setting",
        )
    return Dial(best, int(said.get("pairs") or _PAIRS * n_pairs), batch, float(said.get("rate") or _RATE))


def _of_width(
    width: int,
    wanted: float,
    vocabulary: int,
    caption: int,
    picture: tuple[int, int],
    said: Mapping[str, Any],
) -> Towers:
    heads = said.get("heads") or max(1, width // 64)
    if width % heads:
        raise UsageError(f"{heads} heads do not share a width of {width} evenly.")
    wide = said.get("wide") or 4 * width
    side, patch = picture
    one = Towers(1, width, heads, heads, width // heads, wide, caption, vocabulary, True, side, patch)
    rest = wanted - n_weights(one) + 2 * _layer(width, wide)
    layers = said.get("layers") or max(2, round(rest / (2 * _layer(width, wide))))
    return Towers(layers, width, heads, heads, width // heads, wide, caption, vocabulary, True, side, patch)


def _strays(towers: Towers, wanted: float) -> float:
    depth = abs(math.log(towers.layers / shapes.depth(towers.width)))
    return depth + 2 * abs(math.log(n_weights(towers) / wanted))
