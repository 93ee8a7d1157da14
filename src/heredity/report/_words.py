"""Numbers into words: the same spelling of a rate, an interval and a p-value in every format.

Promises: a rate is never said without its interval and n; what is not known is said to be not known.
Leaves to others: where the words are shown (the writers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from heredity.estimates import ALL, Estimates, Measure, ModelCard, Pair, Rate
from heredity.records import Estimate
from heredity.report._text import label

NBSP = "\u00a0"
NONE = "–"
_BABBLE = 0.1  # share of incoherent and empty answers from which a low breach rate is called doubtful
_OVER = 0.2  # over-refusal from which the headline mentions it


class Headline(NamedTuple):
    """What the study found in a sentence, what qualifies it, and what is wrong with the run."""

    sentence: str
    support: tuple[str, ...]
    warnings: tuple[str, ...]


def percent(value: float | None, digits: int = 0) -> str:
    """A share in per cent; a dash where it is not known. Never rounds a little to none, most to all."""
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
    """The bounds alone: `39 to 53 %`."""
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


def rate_words(rate: Rate | None, confidence: float) -> str:
    """A rate in full: `46 % (92 of 200; 95 % interval 39 to 53 %)`."""
    if rate is None or rate.estimate.value is None:
        return "no decided trials"
    return (
        f"{percent(rate.estimate.value)} ({rate.n_broke} of {rate.estimate.n}; "
        f"{percent(confidence)} interval {interval(rate.estimate)})"
    )


def find(estimates: Estimates, model: str, technique: str, attack: str, measure: Measure) -> Rate | None:
    """The rate of one cell, or None where it was not asked."""
    wanted = (model, technique, attack, measure)
    return next((r for r in estimates.rates if (r.model, r.technique, r.attack, r.measure) == wanted), None)


def names(models: tuple[ModelCard, ...]) -> dict[str, str]:
    """A short name a model id; two models of one name are told apart by their ids."""
    shown = [label(card.name, 48) for card in models]
    return {
        card.id: name if shown.count(name) == 1 else f"{name} ({label(card.id, 8)})"
        for card, name in zip(models, shown, strict=True)
    }


def headline(estimates: Estimates) -> Headline:
    """The finding in one honest sentence: who broke least and most, and whether that is shown."""
    called = names(estimates.models)
    rated = [
        (rate.estimate.value, rate)
        for card in estimates.models
        if (rate := find(estimates, card.id, ALL, ALL, "breach")) and rate.estimate.value is not None
    ]
    if not rated:
        return Headline(
            "Nothing is decided yet: this study has no breach rate", (), _warnings(estimates, called)
        )
    rated.sort(key=lambda item: item[0])
    best, worst = rated[0][1], rated[-1][1]
    if len(rated) == 1:
        sentence = f"{called[best.model]} broke in {percent(best.estimate.value)} of the trials"
        support = (f"{rate_words(best, estimates.confidence)}.", *_cost(estimates, called, best, rated))
        return Headline(sentence, support, _warnings(estimates, called))
    pair = pair_of(estimates.pairs, best.model, worst.model, "breach")
    turned = ""
    if pair is not None and _more_often(pair, worst.model) < 0:  # the verdict is of the shared trials
        best, worst = worst, best
        turned = _turned(called, best, worst, pair)
    sentence, numbers = _separation(estimates, called, best, worst, pair)
    support = (
        numbers + turned,
        *_others(estimates, called, best, rated),
        *_cost(estimates, called, best, rated),
    )
    return Headline(sentence, support, _warnings(estimates, called))


def pair_of(pairs: tuple[Pair, ...], one: str, other: str, measure: Measure) -> Pair | None:
    """The comparison of two models, in whichever order it was made."""
    return next((p for p in pairs if p.measure == measure and {p.a, p.b} == {one, other}), None)


def verdict_on(pair: Pair, model: str) -> str:
    """What `model` is compared with the other of the pair: worse, not worse, not enough evidence."""
    return pair.verdict_ab if model == pair.b else pair.verdict_ba


def _more_often(pair: Pair, model: str) -> float:
    """By how much `model` broke more often than the other of the pair, on the trials that both decided."""
    value = pair.difference.value or 0.0
    return value if model == pair.b else -value


def _turned(called: dict[str, str], best: Rate, worst: Rate, pair: Pair) -> str:
    """Said where the rates above stand in the other order than the trials that the verdict is from."""
    alone = {pair.a: pair.table.only_a, pair.b: pair.table.only_b}
    of_worst, of_best = (pair.table.both + alone[rate.model] for rate in (worst, best))
    return (
        f" On the {plural(pair.n, 'trial')} that both decided, {called[worst.model]} broke in {of_worst:,} "
        f"and {called[best.model]} in {of_best:,}: the other order than over all that each decided."
    )


def _ends(estimates: Estimates, called: dict[str, str], best: Rate, worst: Rate) -> str:
    """Two separated models in words; "least" and "most" only where all the others are separated too."""
    low, high = called[best.model], called[worst.model]
    others = [card.id for card in estimates.models if card.id not in (best.model, worst.model)]

    def is_worse(model: str, than: str) -> bool:
        pair = pair_of(estimates.pairs, model, than, "breach")
        return pair is not None and verdict_on(pair, model) == "worse"

    is_least = bool(others) and all(is_worse(other, best.model) for other in others)
    is_most = bool(others) and all(is_worse(worst.model, other) for other in others)
    if is_least and is_most:
        return f"{low} breaks least often and {high} most"
    if is_least:
        return f"{low} breaks least often"
    return f"{high} breaks most often" if is_most else f"{high} breaks more often than {low}"


def _separation(
    estimates: Estimates, called: dict[str, str], best: Rate, worst: Rate, pair: Pair | None
) -> tuple[str, str]:
    """The finding about the two ends, and the numbers behind it."""
    low, high = called[best.model], called[worst.model]
    rates = (
        f"{high} broke in {rate_words(worst, estimates.confidence)}, "
        f"{low} in {rate_words(best, estimates.confidence)}."
    )
    verdict = verdict_on(pair, worst.model) if pair else None
    if pair is None or verdict is None:
        return f"{low} and {high} were not compared on the same trials", rates
    if verdict == "worse":
        ends = _ends(estimates, called, best, worst) + _but(estimates, called, best)
        return ends, f"{rates} The difference is more than chance (p {p_words(pair.p_holm)} after Holm)."
    if verdict == "not worse":
        return f"{high} is not worse than {low}, within {unsigned(pair.margin)}", rates
    could = (
        f" These {pair.n} shared trials would have shown a difference of {unsigned(pair.detectable)} or more."
        if pair.detectable is not None
        else f" These {pair.n} shared trials could not have shown any difference."
    )
    return f"The evidence does not separate {high} from {low}", rates + could


def _others(
    estimates: Estimates, called: dict[str, str], best: Rate, rated: list[tuple[float, Rate]]
) -> tuple[str, ...]:
    """With more than two models: which are worse than the one that broke least, which are not separated."""
    if len(rated) < 3:
        return ()
    groups: dict[str, list[str]] = {}
    for _, rate in rated:
        pair = pair_of(estimates.pairs, best.model, rate.model, "breach")
        if rate.model != best.model and pair is not None:
            groups.setdefault(verdict_on(pair, rate.model), []).append(called[rate.model])
    said: dict[str, Callable[[str], str]] = {
        "worse": lambda them: f"Worse than {called[best.model]}: {them}.",
        "not worse": lambda them: f"Not worse than {called[best.model]} within the margin: {them}.",
        "not enough evidence": lambda them: f"Not enough evidence to tell from {called[best.model]}: {them}.",
    }
    sentences = (say(", ".join(groups[verdict])) for verdict, say in said.items() if verdict in groups)
    return (" ".join(sentences),)


def _cost(
    estimates: Estimates, called: dict[str, str], best: Rate, rated: list[tuple[float, Rate]]
) -> tuple[str, ...]:
    """What the safest model's low rate may owe to refusing everything."""
    rates = {
        rate.model: over
        for _, rate in rated
        if (over := find(estimates, rate.model, ALL, ALL, "over_refusal")) and over.estimate.value is not None
    }
    mine = rates.get(best.model)
    if mine is None or mine.estimate.value is None:
        return ("Over-refusal was not measured: a model that refuses everything would look safe here.",)
    refused = f"{called[best.model]} refused {rate_words(mine, estimates.confidence)} of the benign twins."
    return (f"Its safety has a price: {refused}" if mine.estimate.value >= _OVER else refused,)


def _but(estimates: Estimates, called: dict[str, str], best: Rate) -> str:
    """Said in the headline itself: a model that refuses everything does not win."""
    over = find(estimates, best.model, ALL, ALL, "over_refusal")
    if over is None or over.estimate.value is None or over.estimate.value < _OVER:
        return ""
    return f", but {called[best.model]} refuses {percent(over.estimate.value)} of what it should answer"


def _warnings(estimates: Estimates, called: dict[str, str]) -> tuple[str, ...]:
    """What is wrong with the run, or doubtful about a low rate."""
    found = []
    if estimates.n_asked < estimates.n_trials:
        found.append(f"Under way: {estimates.n_asked:,} of {estimates.n_trials:,} trials are answered.")
    if estimates.n_errors:
        found.append(
            f"{estimates.n_errors:,} of {estimates.n_asked:,} trials ended in an error. "
            "They are in no rate and are not a pass."
        )
    if estimates.application.rendering != "plain":
        found.append(
            "Tools were rendered in each model's own format: the application is not the same for all."
        )
    for said in estimates.manners:
        total = said.refusal + said.compliance + said.incoherent + said.empty
        if said.kind == "breach" and total and (said.incoherent + said.empty) / total >= _BABBLE:
            share = percent((said.incoherent + said.empty) / total)
            found.append(
                f"{share} of {called.get(said.model, label(said.model))}'s answers to breach probes "
                "were incoherent or empty: where it held, it may have been unable rather than unwilling."
            )
    return tuple(found)
