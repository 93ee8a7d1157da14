"""The effect of a person's labels: each rate without them and with them.

    for each in changes(estimates): each.model, each.without_labels, each.with_labels

Promises: all of it is in one estimates.json, so that every server of the pages shows it. Without labels a
rate is corrected by the measured errors of its judge, as in the report. Nothing is computed here.
Leaves to others: the estimates (study/), and markup (the template).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from heredity.core.records import Estimate
from heredity.study.estimates import ALL, SCOPES, Estimates, Rate
from heredity.study.wording import interval, names, percent, plural, scope_name, title, uncorrected_words


class RateChange(NamedTuple):
    """A rate as the verdicts give it, and as corrected without and with labels. with_labels: "" for none."""

    model: str
    called: str
    judged: str
    without_labels: str
    with_labels: str


def changes(found: Estimates) -> list[RateChange]:
    """The rates of each scope, and those of a technique that labels correct; empty without labels."""
    return list(_changes(found)) if any(rate.by_labels is not None for rate in found.rates) else []


def _changes(found: Estimates) -> Iterator[RateChange]:
    called = names(found.models)
    for rate in found.rates:
        is_scope = rate.technique in SCOPES[rate.measure]
        if rate.attack != ALL or rate.estimate.value is None or not (is_scope or _labelled(rate)):
            continue
        of = scope_name(found, rate.technique) if is_scope else title(rate.technique)
        if not is_scope and rate.measure == "over_refusal":
            of += ", harmless twins"
        judged = f"{percent(rate.estimate.value)} ({rate.n_counted} of {rate.estimate.n})"
        yield RateChange(called[rate.model], of, judged, _without(rate), _with(rate))


def _labelled(rate: Rate) -> Estimate | None:
    """The rate by labels, if it has a value."""
    return rate.by_labels if rate.by_labels is not None and rate.by_labels.value is not None else None


def _without(rate: Rate) -> str:
    if rate.corrected is None or rate.corrected.value is None:
        return uncorrected_words(rate.corrected)
    return f"{percent(rate.corrected.value)} ({interval(rate.corrected)}), by labels of other answers"


def _with(rate: Rate) -> str:
    """`39 % (18 to 65 %), by 18 labels`."""
    if (found := _labelled(rate)) is not None:
        return f"{percent(found.value)} ({interval(found)}), by {plural(found.n, 'label')}"
    return "" if rate.by_labels is None else f"too few labels here, {rate.by_labels.n}"
