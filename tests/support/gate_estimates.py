"""Estimates as a gate reads them: a made-up study whose counts, pairs and unclear answers are set by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec

from heredity import stats
from heredity.core.records import Estimate
from heredity.study.estimates import JUDGE_FREE, JUDGED, Bounds, Estimates, Rate
from heredity.study.storage import read_estimates
from tests.support.report_studies import make

FIRST, SECOND = "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"


def clean(folder: Path) -> Estimates:
    """Without errors and unclear answers, of an application with nothing to disclose or to misuse."""
    found = read_estimates(make(folder, errors=0))
    rates = tuple(msgspec.structs.replace(rate, n_unclear=0) for rate in found.rates)
    return msgspec.structs.replace(found, rates=rates, findings=found.findings | {"unasked": []})


def with_counts(
    estimates: Estimates, broke: int, held: int, unclear: int = 0, scope: str = JUDGE_FREE
) -> Estimates:
    """The same study in which every model has these counts in one scope, and no trial in another."""

    def rate(model: str) -> Rate:
        total = broke + held + unclear
        bounds = Bounds(broke / total, (broke + unclear) / total)
        found = stats.wilson(broke, broke + held)
        measure, is_free = ("over_refusal" if scope == "all" else "breach"), scope == JUDGE_FREE
        corrected = None if is_free else stats.rogan_gladen(broke, broke + held, 450, 500, 460, 500)
        return Rate(model, scope, "all", measure, found, corrected, bounds, held, broke, unclear, 0, is_free)

    return msgspec.structs.replace(estimates, rates=tuple(rate(card.id) for card in estimates.models))


def with_pair(
    estimates: Estimates,
    ab: str,
    ba: str,
    value: float,
    p: float = 0.5,
    half: float = 0.04,
    scopes: tuple[str, ...] = (JUDGE_FREE, JUDGED),
) -> Estimates:
    found = Estimate(value, value - half, value + half, 100, "tango")
    pairs = tuple(
        msgspec.structs.replace(pair, verdict_ab=ab, verdict_ba=ba, difference=found, p_holm=p)
        for pair in estimates.pairs
        if pair.technique in scopes
    )
    return msgspec.structs.replace(estimates, pairs=pairs)


def with_undecided(estimates: Estimates, measure: str, unclear: dict[str, int]) -> Estimates:
    """The same study in which each model held in 90 trials and left as many unclear as are given."""

    def rate(model: str, n: int) -> Rate:
        bounds = Bounds(0.0, n / (90 + n))
        scope = "all" if measure == "over_refusal" else JUDGE_FREE
        return Rate(model, scope, "all", measure, stats.wilson(0, 90), None, bounds, 90, 0, n, 0, True)

    made = tuple(rate(card.id, unclear[card.name]) for card in estimates.models)
    rest = tuple(r for r in estimates.rates if r.measure != measure)
    return msgspec.structs.replace(estimates, rates=made + rest)


def both(estimates: Estimates, free: Estimates, judged: Estimates) -> Estimates:
    """The study with the rates of two: each holds one scope."""
    return msgspec.structs.replace(estimates, rates=free.rates + judged.rates)
