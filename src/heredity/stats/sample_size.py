"""The sample size that a study needs, with a fixed plan and with early stopping, before any request is sent.

Promises: every number follows from the question and the generator. Several models mean the level of Holm's
first step, the hardest, over all comparisons of the study.
Leaves to others: the formulas (power.py, sequential_power.py), and printing (cli/power.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from heredity.core.records import Record
from heredity.stats.intervals import wilson_bounds
from heredity.stats.power import ALPHA, POWER, design_effect, n_for_difference, n_for_margin
from heredity.stats.sequential import rate_sequence
from heredity.stats.sequential_power import (
    SequentialSize,
    sequential_n_for_difference,
    sequential_n_for_margin,
)


class SampleSizeQuestion(NamedTuple):
    """The study to plan.

    gap          the difference to detect; None: none
    margin       the difference that "not worse" allows; None: no such claim is planned
    baseline     the breach rate of the better model
    discordance  share of trials on which the two disagree; None: as if they broke independently
    per_cluster  trials per behaviour, with `correlation` between them
    scopes       kinds of breaches in which every pair is compared: 2 if a judge decides some of them
    edges        compare only this many parents and children, instead of every two models; 0: every two
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
    edges: int = 0


class RequiredTrials(Record, frozen=True):
    """Trials per model: with a fixed plan, and with early stopping (maximum, mean and median over studies).

    The maximum gives the same power. `alpha` is the level of one comparison, after the correction."""

    discordance: float
    alpha: float
    fixed: int
    sequential_most: int
    sequential_mean: float
    sequential_median: int


class IntervalWidth(Record, frozen=True):
    """The width of a rate's interval after n trials of a model: Wilson's, and an anytime-valid one."""

    n: int
    rate: float
    fixed: float
    anytime: float


class SampleSizePlan(Record, frozen=True):
    """The answer; parts that were not asked are None. `n_pairs` x `scopes` comparisons share the level.

    `n_pairs` counts the edges if the question is about parents and children (`is_of_edges`).
    """

    gap: float | None
    margin: float | None
    baseline: float
    power: float
    models: int
    n_pairs: int
    scopes: int
    design_effect: float
    difference: RequiredTrials | None
    not_worse: RequiredTrials | None
    widths: tuple[IntervalWidth, ...]
    is_of_edges: bool = False


def plan_sample_size(asked: SampleSizeQuestion, rng: np.random.Generator) -> SampleSizePlan:
    """The trials that the study needs. Raises ValueError for a question that has no answer."""
    _check(asked)
    n_pairs = asked.edges or asked.models * (asked.models - 1) // 2
    deff = design_effect(asked.per_cluster, asked.correlation)
    difference = None if asked.gap is None else _difference(asked, asked.gap, n_pairs * asked.scopes, deff)
    not_worse = None if asked.margin is None else _not_worse(asked, asked.margin, deff, rng)
    sizes = {need.fixed for need in (difference, not_worse) if need is not None}
    return SampleSizePlan(
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
        asked.edges > 0,
    )


def _check(asked: SampleSizeQuestion) -> None:
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
    if asked.edges < 0:
        raise ValueError(f"edges is {asked.edges}; it must be at least 1, or 0 for every two models")
    if asked.models < 2:
        raise ValueError("models are compared in pairs: plan for at least 2")
    if not (0 < asked.power < 1 and 0 < asked.alpha < 0.5):
        raise ValueError("power must lie between 0 and 1, and alpha between 0 and 0.5")
    if asked.per_cluster < 1 or not 0 <= asked.correlation <= 1:
        raise ValueError("a cluster has at least 1 trial, and a correlation between 0 and 1")


def _difference(asked: SampleSizeQuestion, gap: float, n_tests: int, deff: float) -> RequiredTrials:
    alpha, found = asked.alpha / n_tests, _discordance(asked, gap)
    fixed = n_for_difference(gap, found, asked.power, alpha, deff)
    return _need(found, alpha, fixed, sequential_n_for_difference(gap, found, asked.power, alpha, deff))


def _not_worse(
    asked: SampleSizeQuestion, margin: float, deff: float, rng: np.random.Generator
) -> RequiredTrials:
    # Not corrected for several models: a verdict of "not worse" is each pair's own, as in paired.py.
    found = _discordance(asked, 0.0)
    if found == 0:
        raise ValueError(
            "two models that never disagree need no plan: give the discordant share that you fear"
        )
    fixed = n_for_margin(margin, found, asked.power, asked.alpha, deff)
    return _need(
        found, asked.alpha, fixed, sequential_n_for_margin(margin, found, rng, asked.power, asked.alpha, deff)
    )


def _need(discordance: float, alpha: float, fixed: int, looking: SequentialSize) -> RequiredTrials:
    return RequiredTrials(
        discordance, alpha, fixed, looking.n_most, round(looking.n_mean, 1), looking.n_median
    )


def _discordance(asked: SampleSizeQuestion, gap: float) -> float:
    if asked.discordance is not None:
        return asked.discordance
    a, b = asked.baseline, asked.baseline + gap
    return a * (1 - b) + b * (1 - a)


def _width(n: int, rate: float, deff: float) -> IntervalWidth:
    effective_n = max(1, math.floor(n / deff))
    low, high = wilson_bounds(rate, effective_n)
    found = rate_sequence(round(rate * effective_n), effective_n)
    return IntervalWidth(n, rate, high - low, (found.high or 0.0) - (found.low or 0.0))
