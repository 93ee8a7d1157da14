"""Scaling laws: the loss as a function of its inputs, and its extrapolation beyond the measured runs.

    loss = floor + sum over inputs of  factor * input ** -power

With one input, compute, this is L = E + A C^-a; with parameters and tokens it is Chinchilla's L = E + A N^-a
+ B D^-b. Fitted as in Hoffmann et al. 2022 (2203.15556, section 3.3 and appendix D.3). The objective
is Huber's loss (delta 0.001) of the residuals of log loss. It is minimized from many starts. E, A and B are
fitted as logarithms, so that none is negative.

The interval is a residual bootstrap: it draws residuals over the same inputs. Resampling whole runs would
leave too few different ones. Residuals are widened by `sqrt(n / (n - parameters))`, because a fit is close
to its own runs. They are widened by Student's t over the normal quantile, too: few runs estimate their
scatter badly. The interval covers the law's value, not a single run, which scatters around it.

Promises: numbers and a generator in, numbers out; a law with as many parameters as runs is refused.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import norm, t

from heredity.core.errors import BadArgument
from heredity.stats.intervals import Interval

Numbers = NDArray[np.float64]
DELTA = 1e-3
_POWERS = (0.05, 0.2, 0.5, 1.0)  # that fits start from
_FLOORS = (0.2, 0.6, 0.95)  # of the lowest loss


class Law(NamedTuple):
    """factors and powers: (inputs,). `error`: root mean square of the residuals of log loss."""

    floor: float
    factors: tuple[float, ...]
    powers: tuple[float, ...]
    error: float

    def at(self, *inputs: float) -> float:
        """The loss at these inputs."""
        parts = zip(self.factors, self.powers, inputs, strict=True)
        return self.floor + float(sum(factor * x**-power for factor, power, x in parts))


class Extrapolation(NamedTuple):
    """A law, its loss at the requested inputs, and the interval of that loss."""

    law: Law
    loss: float
    interval: Interval
    n: int
    draws: int


def fit(inputs: Numbers, losses: Numbers) -> Law:
    """inputs: (inputs, runs), losses: (runs,), all above 0. Raises ValueError."""
    logs, centre, log_losses = _checked(inputs, losses)
    return _law(logs, centre, log_losses, _best(logs, log_losses, _starts(logs, log_losses)))


def extrapolate(
    inputs: Numbers, losses: Numbers, at: Numbers, rng: np.random.Generator, draws: int = 500,
    level: float = 0.95,
) -> Extrapolation:  # fmt: skip
    """The law's loss at `at`: (inputs,), with its interval. Raises ValueError."""
    logs, centre, log_losses = _checked(inputs, losses)
    best = _best(logs, log_losses, _starts(logs, log_losses))
    law = _law(logs, centre, log_losses, best)
    value = _value(best, logs)
    n_free, end = len(log_losses) - len(best), (1 + level) / 2
    residuals = (
        (log_losses - value) * np.sqrt(len(log_losses) / n_free) * (t.ppf(end, n_free) / norm.ppf(end))
    )
    residuals = residuals - residuals.mean()
    target = np.log(at)[:, None] - centre
    predictions = []
    for _ in range(draws):
        again = value + rng.choice(residuals, len(residuals))
        predictions.append(float(np.exp(_value(_best(logs, again, [best]), target)[0])))
    low, high = np.quantile(predictions, [1 - end, end])
    return Extrapolation(
        law, law.at(*map(float, at)), Interval(float(low), float(high)), len(log_losses), draws
    )


def _checked(inputs: Numbers, losses: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Logarithms of inputs about their centre, so that factors and powers depend less on each other."""
    n_inputs, n = inputs.shape
    n_parameters = 1 + 2 * n_inputs
    if n <= n_parameters:
        raise BadArgument(f"a law of {n_parameters} parameters needs more than {n} runs")
    if not (
        np.isfinite(inputs).all() and np.isfinite(losses).all() and (inputs > 0).all() and (losses > 0).all()
    ):
        raise BadArgument("inputs and losses must be numbers above 0")
    if any(len(np.unique(each)) < 3 for each in inputs):
        raise BadArgument("an input needs three different values at least")
    logs = np.log(inputs)
    centre = logs.mean(axis=1, keepdims=True)
    return logs - centre, centre, np.log(losses)


def _starts(logs: Numbers, log_losses: Numbers) -> list[Numbers]:
    """(log floor, then log factor and power of each input)."""
    lowest = np.exp(log_losses.min())
    starts = []
    for share, *powers in itertools.product(_FLOORS, *[_POWERS] * len(logs)):
        rest = float(np.log(lowest * (1 - share) / len(logs)))
        pairs = [number for power in powers for number in (rest, power)]
        starts.append(np.array([np.log(lowest * share), *pairs]))
    return starts


def _value(law: Numbers, logs: Numbers) -> Numbers:
    """(runs,) log loss."""
    parts = _parts(law, logs)
    most = parts.max(axis=0)
    numbers: Numbers = most + np.log(np.exp(parts - most).sum(axis=0))
    return numbers


def _parts(law: Numbers, logs: Numbers) -> Numbers:
    """(1 + inputs, runs) logarithms of what is summed."""
    rest = law[1::2, None] - law[2::2, None] * logs
    return np.concatenate([np.full((1, logs.shape[1]), law[0]), rest])


def _best(logs: Numbers, log_losses: Numbers, starts: list[Numbers]) -> Numbers:
    """Least squares first, then Huber's loss with a shrinking delta: its gradient vanishes far away."""
    near = min((_descend(logs, log_losses, start, None) for start in starts), key=lambda result: result.cost)
    numbers: Numbers = near.x
    for delta in (100 * DELTA, 10 * DELTA, DELTA):
        numbers = _descend(logs, log_losses, numbers, delta).x
    return numbers


def _descend(logs: Numbers, log_losses: Numbers, start: Numbers, delta: float | None) -> Any:
    def residuals(law: Numbers) -> Numbers:
        return _value(law, logs) - log_losses

    def slopes(law: Numbers) -> Numbers:
        parts = _parts(law, logs)
        share = np.exp(parts - parts.max(axis=0))
        share /= share.sum(axis=0)
        columns = [share[0]]
        for part, x in zip(share[1:], logs, strict=True):
            columns += [part, -part * x]
        return np.stack(columns, axis=1)

    low = np.full(len(start), -np.inf)
    low[2::2] = 0.0  # more input is never worse
    low[0] = np.log(1e-9)  # of a floor of none, whose logarithm would run away
    return least_squares(
        residuals,
        np.maximum(start, low + 1e-9),
        jac=slopes,
        bounds=(low, np.inf),
        loss="huber" if delta else "linear",
        f_scale=delta or 1.0,
        x_scale="jac",
        max_nfev=500,
    )


def _law(logs: Numbers, centre: Numbers, log_losses: Numbers, best: Numbers) -> Law:
    error = float(np.sqrt(np.mean((_value(best, logs) - log_losses) ** 2)))
    powers = best[2::2]
    factors = np.exp(best[1::2] + powers * centre[:, 0])
    return Law(float(np.exp(best[0])), tuple(map(float, factors)), tuple(map(float, powers)), error)
