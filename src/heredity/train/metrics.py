"""The metrics of a training beside the model they made: rows, and the loss as a drawing (SVG)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core.records import encode

if TYPE_CHECKING:
    from heredity.train.loop import StepMetrics

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 280, 56, 30
_MOST = 400  # points of the line
_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def write(metrics: Sequence[StepMetrics], out: Path) -> None:
    """training.jsonl and training.svg."""
    rows = b"".join(encode(metric) + b"\n" for metric in metrics)
    (out / "training.jsonl").write_bytes(rows)
    (out / "training.svg").write_text(draw([m.loss for m in metrics]), encoding="utf-8")


def spark(losses: Sequence[float], width: int = 60) -> str:
    """The loss over the steps as a line of blocks, each the mean of its neighbours."""
    n = min(width, len(losses))
    cuts = [i * len(losses) // n for i in range(n + 1)]
    points = [sum(losses[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(points), max(points)
    return "".join(_BLOCKS[round(7 * (value - low) / ((high - low) or 1.0))] for value in points)


def draw(losses: Sequence[float]) -> str:
    """The loss over the steps, each point the mean of its neighbours where there are many."""
    size = max(1, len(losses) // _MOST)
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
