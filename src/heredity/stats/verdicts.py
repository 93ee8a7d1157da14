"""Is b worse than a? Three answers, in a word and in a sentence.

Promises: not finding a difference is never called "no difference"; what the trials could have shown is said.
Leaves to others: the margin and the level (the study's plan), and Holm's correction (multiple.py).

Sources: Piaggio et al. 2012 (CONSORT for non-inferiority trials), figure 1.
"""

from __future__ import annotations

from typing import Literal

from heredity.core.errors import BadArgument
from heredity.stats.paired import Comparison, tango_bounds
from heredity.stats.power import ALPHA

Word = Literal["worse", "not worse", "not enough evidence"]
MARGIN = 0.05


def upper_bound(comparison: Comparison, alpha: float = ALPHA) -> float:
    """The one-sided 1 - alpha upper bound of b's rate minus a's: the upper end of a 1 - 2 alpha interval, or
    the comparison's own anytime-valid bound."""
    if comparison.table.n == 0:
        return 1.0
    if comparison.uppers is not None:
        return comparison.uppers[0]
    confidence = 1 - 2 * alpha
    return tango_bounds(comparison.table, comparison.worth.at(confidence), confidence).high


def verdict(
    comparison: Comparison, margin: float = MARGIN, alpha: float = ALPHA, p_adjusted: float | None = None
) -> Word:
    """Whether b is worse than a.

    not worse            the one-sided upper bound of the difference lies below `margin`, or b is better
    worse                p < alpha and b broke more often, and the bound does not lie below the margin
    not enough evidence  neither

    Where b broke more often with p < alpha and yet by less than the margin, the margin decides ("not worse",
    and the words say both): it is the size of difference that was declared not to matter, and without this
    rule more trials would turn the same small difference from a pass into a failure. Margin 0 switches that
    off.
    """
    if not 0.0 <= margin < 1.0:
        raise BadArgument(
            f"margin is {margin}; it must lie in [0, 1), e.g. 0.05 for five points", code="out-of-range"
        )
    if upper_bound(comparison, alpha) < margin:
        return "not worse"
    if not _is_shown(comparison, alpha, p_adjusted):
        return "not enough evidence"
    return "worse" if (comparison.difference.value or 0.0) > 0 else "not worse"


def verdict_words(
    name_a: str,
    name_b: str,
    comparison: Comparison,
    margin: float = MARGIN,
    alpha: float = ALPHA,
    p_adjusted: float | None = None,
    verb: str = "broke",
) -> str:
    """The verdict on b against a in plain sentences, with the counts, the interval and the test behind it."""
    table, word = comparison.table, verdict(comparison, margin, alpha, p_adjusted)
    if table.n == 0:
        return f"Not enough evidence: {name_a} and {name_b} share no decided trial."
    counts = (
        f"{name_b} {verb} in {table.both + table.only_b} of {table.n} trials, "
        f"{name_a} in {table.both + table.only_a} of the same {table.n}"
    )
    found = f"{counts}: {_found(comparison, p_adjusted)}."
    if word == "worse":
        return f"{found} {name_b} is worse than {name_a}."
    if word == "not enough evidence":
        asked = f"Not enough evidence to call {name_b} worse or not worse than {name_a}"
        return f"{found} {asked}: {_could(comparison)}."
    bound = f"at most {_points(upper_bound(comparison, alpha))} points, margin {100 * margin:g}"
    direction = (comparison.difference.value or 0.0) if _is_shown(comparison, alpha, p_adjusted) else 0.0
    return f"{found} {_not_worse(name_a, name_b, direction, bound)}"


def _not_worse(name_a: str, name_b: str, direction: float, bound: str) -> str:
    if direction < 0:
        return f"{name_b} is better than {name_a}."
    if direction > 0:
        more = f"{name_b} did so measurably more often than {name_a}, but by less than the margin"
        return f"{more} ({bound}): not worse."
    return f"{name_b} is not worse than {name_a} ({bound})."


def _found(comparison: Comparison, p_adjusted: float | None) -> str:
    found = comparison.difference
    p = f"{comparison.test} p {p_words(comparison.p_value)}"
    if p_adjusted is not None:
        p += f", {p_words(p_adjusted).removeprefix('= ')} after Holm"
    interval = f"{_points(found.low)} to {_points(found.high)}"
    return f"a difference of {_points(found.value)} points ({interval}; {p})"


def _could(comparison: Comparison) -> str:
    n = f"{comparison.table.n} trials"
    if comparison.worth.is_clustered:
        n += f" in {comparison.worth.n_clusters} clusters"
    if comparison.detectable is None:
        return f"{n} could not have shown any difference"
    points = f"{100 * comparison.detectable:.1f} points"
    return f"the smallest difference that {n} could have shown is {points} (80 % power)"


def _is_shown(comparison: Comparison, alpha: float, p_adjusted: float | None) -> bool:
    return (comparison.p_value if p_adjusted is None else p_adjusted) < alpha


def _points(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:+.1f}"


def p_words(p: float) -> str:
    """A p-value for a sentence: "= 0.012", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
