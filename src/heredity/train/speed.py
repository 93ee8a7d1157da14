"""How fast a training is, and which share that is of the machine's matrix products at the model's own shapes.

Source of the share, "model FLOPs utilization": PaLM (2204.02311, appendix B); the limit here is measured, not
a data sheet's.

Promises: the least time of several tries, each product forward and backward with as many rows as a step has.
Leaves to others: counting a model's FLOPs (sizes.py).
"""

from __future__ import annotations

import numpy as np
import torch

from heredity.core import host
from heredity.core.progress import Progress, Watch
from heredity.train.models.shapes import TransformerShape
from heredity.train.planning.flops import PRODUCT


class ThroughputMeter:
    """Passes what the loop shows on to a display, and keeps the last of it."""

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch, self.last = watch, Progress("train", "", 0, 0, unit="tokens")

    def __call__(self, at: Progress) -> None:
        self.last = at
        if self._watch is not None:
            self._watch(at)

    def notes(self, of_token: float, limit: float) -> dict[str, str]:
        """Tokens a second of so many FLOPs each, and their share of a limit (FLOP/s).

        {} where no step was done in this process.
        """
        if not self.last.per_second:
            return {}
        used = self.last.per_second * of_token
        return {
            "speed": f"{self.last.per_second:,.0f} tokens/s, {used / limit:.0%} of {limit / 1e9:,.0f} "
            "GFLOP/s that this machine's products reach at these shapes"
        }


def piece_length(lengths: np.ndarray[tuple[int], np.dtype[np.int64]], context: int) -> float:
    """How long the piece is that a token stands in, on average: (documents,) lengths cut at the context."""
    whole, rest = lengths // context, lengths % context
    return float((whole * context**2 + rest**2).sum() / lengths.sum())


def product_limit(
    shape: TransformerShape, dtype: torch.dtype, n_rows: int = PRODUCT, of_head: float = 1.0
) -> float:
    """FLOP/s of the model's products, forward and backward: layers, and the head on a share of the rows."""
    columns = shape.head * (shape.heads + 2 * shape.kv_heads)
    layer = [(shape.width, columns), (shape.head * shape.heads, shape.width)]
    layer += [(shape.width, (shape.feeds - 1) * shape.wide), (shape.wide, shape.width)]
    products = [(*size, n_rows) for size in layer * shape.layers]
    products.append((shape.width, shape.vocabulary, max(1, round(of_head * n_rows))))
    return host.matmul_flops(products, dtype)


def pass_rate(width: int, dtype: torch.dtype, n_rows: int = PRODUCT) -> float:
    """Bytes/s of the element-wise passes between a step's products."""
    return host.memory_bandwidth(n_rows, width, dtype)
