"""The changes of a new estimate: rates before and after a person's labels, and verdicts.

    found = changes(before, after)
    found.rates, found.verdicts

Promises: a rate is corrected by the labels on these answers if there are enough. Else it is corrected by the
measured errors of its judge, as in the report. Nothing is computed here.
Leaves to others: the estimates (study/), and markup (the template).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from heredity.core.records import Estimate
from heredity.study.estimates import ALL, SCOPES, Estimates, Rate
from heredity.study.wording import (
    find,
    interval,
    names,
    percent,
    plural,
    scope_name,
    title,
    uncorrected_words,
)


class RateChange(NamedTuple):
    """A rate as the verdicts give it, and as corrected before and after."""

    model: str
    called: str
    judged: str
    before: str
    after: str


class VerdictChange(NamedTuple):
    """A comparison whose verdict is another one now."""

    called: str
    before: str
    after: str


class Changes(NamedTuple):
    """The differences between two estimates of one study."""

    rates: list[RateChange]
    verdicts: list[VerdictChange]


def changes(before: Estimates, after: Estimates) -> Changes:
    """The rates of each scope, those of a technique that labels correct, and the verdicts that differ."""
    return Changes(list(_rates(before, after)), list(_verdicts(before, after)))


def _rates(before: Estimates, after: Estimates) -> Iterator[RateChange]:
    called = names(after.models)
    for rate in after.rates:
        is_scope = rate.technique in SCOPES[rate.measure]
        if rate.attack != ALL or rate.estimate.value is None or not (is_scope or _labelled(rate)):
            continue
        of = scope_name(after, rate.technique) if is_scope else title(rate.technique)
        if not is_scope and rate.measure == "over_refusal":
            of += ", harmless twins"
        earlier = find(before, rate.model, rate.technique, ALL, rate.measure)
        judged = f"{percent(rate.estimate.value)} ({rate.n_counted} of {rate.estimate.n})"
        yield RateChange(called[rate.model], of, judged, _corrected(earlier), _corrected(rate))


def _labelled(rate: Rate) -> Estimate | None:
    """The rate by labels, if it has a value."""
    return rate.by_labels if rate.by_labels is not None and rate.by_labels.value is not None else None


def _corrected(rate: Rate | None) -> str:
    """`39 % (18 to 65 %), by 18 labels`; without enough labels the correction by the judge's errors."""
    if rate is None:
        return "not there"
    if (found := _labelled(rate)) is not None:
        return f"{percent(found.value)} ({interval(found)}), by {plural(found.n, 'label')}"
    few = "" if rate.by_labels is None else f"; too few labels here, {rate.by_labels.n}"
    if rate.corrected is None or rate.corrected.value is None:
        return uncorrected_words(rate.corrected) + few
    return f"{percent(rate.corrected.value)} ({interval(rate.corrected)}), by labels of other answers{few}"


def _verdicts(before: Estimates, after: Estimates) -> Iterator[VerdictChange]:
    then, now = _verdicts_of(before), _verdicts_of(after)
    for called, verdict in now.items():
        earlier = then.get(called, "not compared")
        if earlier != verdict:
            yield VerdictChange(called, earlier, verdict)


def _verdicts_of(found: Estimates) -> dict[str, str]:
    """The verdict of each comparison, by its words."""
    called, made = names(found.models), dict[str, str]()
    for pair in found.pairs:
        scope = scope_name(found, pair.technique)
        made[f"{called[pair.b]} against {called[pair.a]}, {scope}"] = pair.verdict_ab
        made[f"{called[pair.a]} against {called[pair.b]}, {scope}"] = pair.verdict_ba
    for edge in found.edges:
        scope = scope_name(found, edge.compared.technique)
        made[f"{called[edge.child]}, child of {called[edge.parent]}, {scope}"] = edge.verdict
    return made
