"""Numbers into words: the same spelling of a rate, an interval and a p-value in every format.

Promises: a rate always has its interval and n. An unknown value is called unknown.
Leaves to others: where the words are shown (the writers).
"""

from __future__ import annotations

from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, Estimates, Measure, ModelCard, ModelPair, Rate

NBSP = "\u00a0"
NONE = "–"
_TITLES = {ALL: "All benign twins", JUDGE_FREE: "All judge-free", JUDGED: "All judged"}


def percent(value: float | None, digits: int = 0) -> str:
    """A share in per cent; a dash if it is not known. Never rounds to 0 or 100 % what is not."""
    if value is None:
        return NONE
    text = f"{100 * value:.{digits}f}"
    if 0 < value < 1 and float(text) in (0.0, 100.0):
        text = f"{100 * value:.1f}" if 0.0005 <= value < 0.9995 else ("< 0.1" if value < 0.5 else "> 99.9")
    return f"{text}{NBSP}%"


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, signed."""
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}".replace("-", "−")
    return ("0.0" if text[1:] == "0.0" else text) + f"{NBSP}points"


def interval(estimate: Estimate, digits: int = 0) -> str:
    """Only the bounds: `39 to 53 %`."""
    if estimate.low is None or estimate.high is None:
        return NONE
    return f"{percent(estimate.low, digits).removesuffix(f'{NBSP}%')} to {percent(estimate.high, digits)}"


def points_interval(estimate: Estimate) -> str:
    """The bounds of a difference: `+4.1 to +19.2 points`."""
    if estimate.low is None or estimate.high is None:
        return NONE
    return f"{points(estimate.low).removesuffix(f'{NBSP}points')} to {points(estimate.high)}"


def unsigned(value: float | None) -> str:
    """A margin or a detectable difference, without a sign: `5.0 points`."""
    return points(value).lstrip("+")


def plural(n: int, noun: str) -> str:
    """A count with its noun: `1 probe`, `25 probes`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def bare(text: str) -> str:
    """The same without its unit, for a column whose heading has it."""
    return text.removesuffix(f"{NBSP}points")


def reach_labels(reach: float) -> list[str]:
    """The scale of a difference, from worse on the left of zero to worse on its right."""
    end = f"{100 * reach:.0f}"
    return [f"−{end}", "0", f"+{end}"]


def p_words(p: float | None) -> str:
    """A p-value to three digits, never as zero."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.9995 else "1"


def capital(text: str) -> str:
    """The same with its first letter large."""
    return text[:1].upper() + text[1:]


def title(technique: str) -> str:
    """A technique's name, or a scope's, as a heading."""
    return _TITLES.get(technique) or technique.replace("_", " ").capitalize()


def rate_words(rate: Rate | None, confidence: float) -> str:
    """A rate in full: `46 % (92 of 200; 95 % interval 39 to 53 %)`."""
    if rate is None or rate.estimate.value is None:
        return "no decided trials"
    return (
        f"{percent(rate.estimate.value)} ({rate.n_broke} of {rate.estimate.n}; "
        f"{percent(confidence)} interval {interval(rate.estimate)})"
    )


def find(estimates: Estimates, model: str, technique: str, attack: str, measure: Measure) -> Rate | None:
    """The rate of one cell, or None if it was not asked."""
    wanted = (model, technique, attack, measure)
    return next((r for r in estimates.rates if (r.model, r.technique, r.attack, r.measure) == wanted), None)


def names(models: tuple[ModelCard, ...]) -> dict[str, str]:
    """A short name per model id; the id distinguishes two models of one name."""
    shown = [label(card.name, 48) for card in models]
    return {
        card.id: name if shown.count(name) == 1 else f"{name} ({label(card.id, 8)})"
        for card, name in zip(models, shown, strict=True)
    }


def judged_words(rate: Rate) -> str:
    """A rate of the judge's, raw and corrected: `30 % of 40 raw, 24 % corrected (9 to 41 %)`."""
    raw = f"{percent(rate.estimate.value)} of {rate.estimate.n} raw ({interval(rate.estimate)})"
    if rate.corrected is None or rate.corrected.value is None:
        return f"{raw}, not corrected"
    spread = family_spread(rate)
    beside = f", {spread} by one family's labels or another's" if spread else ""
    return f"{raw}, {percent(rate.corrected.value)} corrected ({interval(rate.corrected)}{beside})"


def family_spread(rate: Rate) -> str:
    """The lowest and highest corrected rate over families of labels: `12 to 19 %`; "" without several."""
    ends = [each.corrected.value for each in rate.by_family if each.corrected.value is not None]
    if len(ends) < 2:
        return ""
    return f"{percent(min(ends)).removesuffix(f'{NBSP}%')} to {percent(max(ends))}"


def pair_of(
    pairs: tuple[ModelPair, ...], one: str, other: str, measure: Measure, scope: str | None = None
) -> ModelPair | None:
    """The comparison of two models in a scope, in whichever order it was made; over-refusal has one scope."""
    wanted = (measure, ALL if measure == "over_refusal" else scope)
    return next((p for p in pairs if (p.measure, p.technique) == wanted and {p.a, p.b} == {one, other}), None)


def verdict_on(pair: ModelPair, model: str) -> str:
    """The verdict on `model` against the other of the pair: worse, not worse, not enough evidence."""
    return pair.verdict_ab if model == pair.b else pair.verdict_ba


def stopping_words(found: Estimates) -> str:
    """The course of a study that stops early, in sentences; "" for any other study."""
    course = found.sequential
    if course is None:
        return ""
    n_decided = sum(pair.interim is not None for pair in course.decisions)
    n_pairs = plural(len(course.decisions), "pair")
    analyses = f"{course.n_interim} of {course.n_interim_planned} interim analyses"
    words = f"Asked until decided: {n_decided} of {n_pairs} after {analyses}."
    if course.stopped:
        called = names(found.models)
        each = ", ".join(f"{called[s.model]} {s.n:,} after analysis {s.interim}" for s in course.stopped)
        spared = f"{found.n_not_needed:,} of {found.n_trials:,} trials were not asked, because"
        words += f" {spared} {course.stopped[0].why} ({each})."
    return f"{words} Intervals and p-values are valid under any stopping rule."
