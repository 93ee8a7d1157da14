"""The metrics of a training: its rows, the loss as a drawing, throughput, and what the machine could reach.

Utilization is the share of the machine's matmul speed that a training reaches. The limit is measured at
the model's own shapes, not taken from a data sheet. Source: "model FLOPs utilization" in PaLM (2204.02311,
appendix B).

Leaves to others: counting a model's FLOPs (models/shapes.py) and timing a product (core/host.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core import host
from heredity.core.progress import Progress, Watch
from heredity.core.records import encode
from heredity.train.memory import PRETRAIN_MICROBATCH_TOKENS
from heredity.train.models.shapes import TransformerShape

if TYPE_CHECKING:
    import numpy as np
    import torch

    from heredity.train.loop import StepMetrics

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 280, 56, 30
_MAX_POINTS = 400  # points of the curve
_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def write_metrics(metrics: Sequence[StepMetrics], out: Path) -> None:
    """Write training.jsonl and training.svg."""
    rows = b"".join(encode(metric) + b"\n" for metric in metrics)
    (out / "training.jsonl").write_bytes(rows)
    (out / "training.svg").write_text(draw_loss([m.loss for m in metrics]), encoding="utf-8")


def sparkline(losses: Sequence[float], width: int = 60) -> str:
    """The loss over the steps as a line of block characters, each the mean of its neighbours."""
    n = min(width, len(losses))
    cuts = [i * len(losses) // n for i in range(n + 1)]
    points = [sum(losses[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(points), max(points)
    return "".join(_BLOCKS[round(7 * (value - low) / ((high - low) or 1.0))] for value in points)


def draw_loss(losses: Sequence[float]) -> str:
    """The loss over the steps as SVG; each point is the mean of its neighbours if there are many."""
    size = max(1, len(losses) // _MAX_POINTS)
    points = [sum(losses[i : i + size]) / len(losses[i : i + size]) for i in range(0, len(losses), size)]
    low, high = min(points), max(points)
    span = (high - low) or 1.0
    n = max(1, len(points) - 1)
    inner_width, inner_height = WIDTH - LEFT - 12, HEIGHT - BOTTOM - 12
    path = " ".join(
        f"{LEFT + inner_width * i / n:.1f},{12 + inner_height * (high - value) / span:.1f}"
        for i, value in enumerate(points)
    )
    floor = HEIGHT - BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11" fill="#444"><title>Loss over {len(losses)} steps</title>'
        f'<path d="M{LEFT},12 V{floor} H{WIDTH - 12}" fill="none" stroke="#bbb"/>'
        f'<text x="{LEFT - 6}" y="16" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 6}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 10}">step 0</text>'
        f'<text x="{WIDTH - 12}" y="{HEIGHT - 10}" text-anchor="end">{len(losses) - 1}</text>'
        f'<polyline points="{path}" fill="none" stroke="#2b6cb0" stroke-width="1.5"/></svg>\n'
    )


class ThroughputMeter:
    """Passes the progress of a loop to a display, and keeps the last event."""

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch, self.last = watch, Progress("train", "", 0, 0, unit="tokens")

    def __call__(self, at: Progress) -> None:
        self.last = at
        if self._watch is not None:
            self._watch(at)

    def notes(self, of_token: float, limit: float) -> dict[str, str]:
        """Tokens per second, and their share of a limit, as a note for the model's record.

        of_token: FLOPs per token. limit: FLOP/s. {} if this process ran no step.
        """
        if not self.last.per_second:
            return {}
        used = self.last.per_second * of_token
        return {
            "speed": f"{self.last.per_second:,.0f} tokens/s, {used / limit:.0%} of {limit / 1e9:,.0f} "
            "GFLOP/s that this machine's products reach at these shapes"
        }


def mean_chunk_length(lengths: np.ndarray[tuple[int], np.dtype[np.int64]], context: int) -> float:
    """The mean chunk length over tokens, for documents of these lengths that are cut at the context."""
    whole, rest = lengths // context, lengths % context
    return float((whole * context**2 + rest**2).sum() / lengths.sum())


def matmul_limit(
    shape: TransformerShape,
    dtype: torch.dtype,
    n_rows: int = PRETRAIN_MICROBATCH_TOKENS,
    of_head: float = 1.0,
) -> float:
    """The measured FLOP/s of the model's matmuls, forward and backward. of_head: its share of rows."""
    columns = shape.head * (shape.heads + 2 * shape.kv_heads)
    layer = [(shape.width, columns), (shape.head * shape.heads, shape.width)]
    layer += [(shape.width, (shape.feeds - 1) * shape.wide), (shape.wide, shape.width)]
    products = [(*size, n_rows) for size in layer * shape.layers]
    products.append((shape.width, shape.vocabulary, max(1, round(of_head * n_rows))))
    return host.matmul_flops(products, dtype)


def memory_bandwidth(width: int, dtype: torch.dtype, n_rows: int = PRETRAIN_MICROBATCH_TOKENS) -> float:
    """Bytes/s of the element-wise passes between a step's products."""
    return host.memory_bandwidth(n_rows, width, dtype)
