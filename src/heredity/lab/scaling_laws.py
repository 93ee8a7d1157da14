"""Fit scaling laws to pretraining runs in the store, and extrapolate their loss to more compute.

Each run is a model that `heredity pretrain` made. A fit uses its parameters, training tokens, FLOPs, and
final bits per byte of held-out text.

Promises: runs on different text, or of different kinds, are rejected: their losses are not comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import Damaged, NotComparable, UsageError
from heredity.core.records import Record
from heredity.lineage.types import Grown
from heredity.stats import scaling
from heredity.train.forecast import cost_of_run

FEWEST = 5
_LOSS = "bits per byte"
_CURVE = "training.jsonl"


class ScalingRun(Record, frozen=True):
    """The parameters, tokens, FLOPs and final loss of a run."""

    name: str
    parameters: int
    tokens: int
    flops: float
    loss: float  # bits per byte


class Scaled(Record, frozen=True):
    """The fitted laws. `compute`: the loss extrapolated to `at` FLOPs. `both`: a law of parameters and
    tokens; None if the runs cannot separate them."""

    runs: list[ScalingRun]
    at: float
    compute: scaling.Extrapolation
    both: scaling.Law | None


class _RunRow(msgspec.Struct):
    n_tokens: int
    terms: dict[str, float]


def scaled(models: Sequence[Grown], compute: float = 0.0, seed: int = 0) -> Scaled:
    """Fit laws to at least five runs and extrapolate to `compute` FLOPs; 0 means 100 times the largest run.

    Raises UsageError, NotComparable.
    """
    runs = sorted(map(run_of, models), key=lambda run: run.flops)
    if (n := len({model.record.id for model in models})) < FEWEST:
        raise UsageError(f"A scaling law needs at least {FEWEST} different runs, not {n}.")
    for name in ("corpus", "objective", "architecture", "held_out"):
        values = {str(_settings(model).get(name)) for model in models}
        if len(values) > 1:
            raise NotComparable(
                f"Cannot fit one scaling law: the runs differ in {name} ({', '.join(sorted(values))})."
            )
    at = compute or 100 * runs[-1].flops
    losses = np.array([run.loss for run in runs])
    flops = np.array([[run.flops for run in runs]])
    rng = np.random.default_rng(seed)
    try:
        extrapolation = scaling.extrapolate(flops, losses, np.array([at]), rng)
    except ValueError as error:
        raise UsageError(f"Cannot fit a scaling law to these runs: {error}.") from None
    return Scaled(runs, at, extrapolation, _both(runs, losses))


def run_of(model: Grown) -> ScalingRun:
    """Read a run from the store. Raises UsageError for a model that was not pretrained here."""
    settings = _settings(model)
    rows = _rows(model.folder / _CURVE)
    looks = [row.terms[_LOSS] for row in rows if _LOSS in row.terms]
    if not looks:
        raise UsageError(
            f"'{model.record.name}' was never evaluated on held-out text, so it has no loss to fit."
        )
    tokens = sum(row.n_tokens for row in rows)
    if (cost := cost_of_run(settings, tokens)) is None:
        raise _not_of_text(model)
    return ScalingRun(model.record.name, cost.n_parameters, tokens, cost.flops, looks[-1])


def _both(runs: Sequence[ScalingRun], losses: NDArray[np.float64]) -> scaling.Law | None:
    """Fit parameters and tokens jointly; None if the two are correlated or there are too few runs."""
    inputs = np.array([[run.parameters for run in runs], [run.tokens for run in runs]], dtype=np.float64)
    if any(len(set(each)) < 3 for each in inputs.tolist()) or abs(np.corrcoef(np.log(inputs))[0, 1]) > 0.95:
        return None
    try:
        return scaling.fit(inputs, losses)
    except ValueError:
        return None


def _settings(model: Grown) -> dict[str, Any]:
    if model.record.recipe.kind != "pretrain":
        raise _not_of_text(model)
    return model.record.recipe.settings


def _not_of_text(model: Grown) -> UsageError:
    return UsageError(
        f"'{model.record.name}' was made by '{model.record.recipe.kind}'; a scaling law needs text models "
        "that `heredity pretrain` made."
    )


def _rows(path: Path) -> list[_RunRow]:
    try:
        return [msgspec.json.decode(line, type=_RunRow) for line in path.read_bytes().splitlines()]
    except (OSError, msgspec.DecodeError) as error:
        raise Damaged(f"{path}: {error}. Run `heredity verify`.") from None
