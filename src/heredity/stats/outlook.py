"""What a study of this size could show, before any request is sent: a fixed plan beside one that stops early.

Promises: every number follows from what is asked and the generator given; several models mean the level that
Holm's correction leaves for its first step, which is the hardest; over as many comparisons as a study makes.
Leaves to others: the formulas (power.py, sequential_power.py), and saying it (cli/power.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from heredity.core.records import Record
from heredity.stats.intervals import wilson_bounds
from heredity.stats.power import ALPHA, POWER, design_effect, n_for_difference, n_for_margin
from heredity.stats.sequential import rate_sequence
from heredity.stats.sequential_power import Looking, looking_for_difference, looking_for_margin


class Question(NamedTuple):
    """What is to be planned.

    gap          the difference that shall be found; None: none
    margin       the difference that "not worse" may hide; None: nothing of the kind is to be shown
    baseline     the breach rate of the better model
    discordance  share of trials on which the two disagree; None: as if they broke independently
    per_cluster  trials of one behaviour, with `correlation` between them
    scopes       kinds of breaches in which every pair is compared: 2 where a judge decides some of them
    """

    gap: float | None = None
    margin: float | None = None
    baseline: float = 0.2
    discordance: float | None = None
    power: float = POWER
    alpha: float = ALPHA
    models: int = 2
    per_cluster: float = 1.0
    correlation: float = 0.0
    scopes: int = 1


class Need(Record, frozen=True):
    """Trials of each model: by a fixed plan; and by one that stops early, at most (for the same power), on
    average, and in half of all studies. `alpha` is the level of one comparison, after the correction."""

    discordance: float
    alpha: float
    fixed: int
    sequential_most: int
    sequential_mean: float
    sequential_median: int


class Width(Record, frozen=True):
    """How wide the interval of a rate is after n trials of a model: Wilson's, and one that may be looked at
    all the time."""

    n: int
    rate: float
    fixed: float
    anytime: float


class Outlook(Record, frozen=True):
    """The answer; what was not asked is None. `n_pairs` x `scopes` comparisons share the level."""

    gap: float | None
    margin: float | None
    baseline: float
    power: float
    models: int
    n_pairs: int
    scopes: int
    design_effect: float
    difference: Need | None
    not_worse: Need | None
    widths: tuple[Width, ...]


def outlook(asked: Question, rng: np.random.Generator) -> Outlook:
    """Plan it. Raises ValueError, in words, for what cannot be."""
    _check(asked)
    n_pairs = asked.models * (asked.models - 1) // 2
    deff = design_effect(asked.per_cluster, asked.correlation)
    difference = None if asked.gap is None else _difference(asked, asked.gap, n_pairs * asked.scopes, deff)
    not_worse = None if asked.margin is None else _not_worse(asked, asked.margin, deff, rng)
    sizes = {need.fixed for need in (difference, not_worse) if need is not None}
    return Outlook(
        asked.gap,
        asked.margin,
        asked.baseline,
        asked.power,
        asked.models,
        n_pairs,
        asked.scopes,
        deff,
        difference,
        not_worse,
        tuple(_width(n, asked.baseline, deff) for n in sorted(sizes)),
    )


def _check(asked: Question) -> None:
    if asked.gap is None and asked.margin is None:
        raise ValueError("give a gap to find, a margin for 'not worse', or both")
    for name, value in (("gap", asked.gap), ("margin", asked.margin)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name} is {value}; it must lie between 0 and 1, e.g. 0.1 for ten points")
    if not 0 <= asked.baseline + (asked.gap or 0) <= 1 or asked.baseline < 0:
        raise ValueError(f"a baseline of {asked.baseline} and this gap leave the range from 0 to 1")
    if asked.discordance is not None and not (asked.gap or 0) <= asked.discordance <= 1:
        raise ValueError(f"discordant is {asked.discordance}; it must lie between the gap and 1")
    if asked.scopes < 1:
        raise ValueError("breaches of at least 1 kind are compared")
    if asked.models < 2:
        raise ValueError("models are compared in pairs: plan for at least 2")
    if not (0 < asked.power < 1 and 0 < asked.alpha < 0.5):
        raise ValueError("power must lie between 0 and 1, and alpha between 0 and 0.5")
    if asked.per_cluster < 1 or not 0 <= asked.correlation <= 1:
        raise ValueError("a cluster has at least 1 trial, and a correlation between 0 and 1")


def _difference(asked: Question, gap: float, n_tests: int, deff: float) -> Need:
    alpha, found = asked.alpha / n_tests, _discordance(asked, gap)
    fixed = n_for_difference(gap, found, asked.power, alpha, deff)
    return _need(found, alpha, fixed, looking_for_difference(gap, found, asked.power, alpha, deff))


def _not_worse(asked: Question, margin: float, deff: float, rng: np.random.Generator) -> Need:
    # Not corrected for several models: a verdict of "not worse" is each pair's own, as in verdicts.py.
    found = _discordance(asked, 0.0)
    if found == 0:
        raise ValueError(
            "two models that never disagree need no plan: give the discordant share that you fear"
        )
    fixed = n_for_margin(margin, found, asked.power, asked.alpha, deff)
    return _need(
        found, asked.alpha, fixed, looking_for_margin(margin, found, rng, asked.power, asked.alpha, deff)
    )


def _need(discordance: float, alpha: float, fixed: int, looking: Looking) -> Need:
    return Need(discordance, alpha, fixed, looking.n_most, round(looking.n_mean, 1), looking.n_median)


def _discordance(asked: Question, gap: float) -> float:
    if asked.discordance is not None:
        return asked.discordance
    a, b = asked.baseline, asked.baseline + gap
    return a * (1 - b) + b * (1 - a)


def _width(n: int, rate: float, deff: float) -> Width:
    worth = max(1, math.floor(n / deff))
    low, high = wilson_bounds(rate, worth)
    found = rate_sequence(round(rate * worth), worth)
    return Width(n, rate, high - low, (found.high or 0.0) - (found.low or 0.0))
