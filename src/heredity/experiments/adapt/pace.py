"""The optimizer steps that fit into some minutes, from the pace of a few steps whose result is thrown away.

Promises: loading does not count. The number is at least 1.
Leaves to others: keeping it, so that a resumed run trains as long (run.py).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from heredity.core.errors import Unavailable
from heredity.core.progress import Progress
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes import ComputingRecipe, recipe
from heredity.train.data.chat import Data

_PILOT = 4  # steps, of which the first is not measured: it may compile and allocate


def steps_in(
    minutes: float, kind: str, settings: Mapping[str, object], data: Data, parent: Grown, store: Store
) -> int:
    """The steps of a recipe that take about this many minutes on this machine.

    Raises the errors of the recipe, and Unavailable if it reports no step.
    """
    ticks: list[float] = []

    def watch(progress: Progress) -> None:
        if progress.step == "train":
            ticks.append(time.monotonic())

    made = recipe(kind, data=data, watch=watch, **{**settings, "steps": _PILOT})
    if isinstance(made, ComputingRecipe):
        made = made.on(store.device())
    with tempfile.TemporaryDirectory(prefix="heredity-pace-") as folder:
        (out := Path(folder) / "files").mkdir()
        made.apply([store.whole(parent)], out)
    if len(ticks) < 2:
        raise Unavailable(f"'{kind}' reports no steps, so give `steps` in [budget].", code="pace-unknown")
    per_step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    return max(1, int(60 * minutes / max(per_step, 1e-6)))
