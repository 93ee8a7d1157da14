"""The breach rates of models over several studies that asked the same in the same application."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from markupsafe import Markup

from heredity.core.errors import HeredityError
from heredity.core.records import digest
from heredity.core.sanitize import plural
from heredity.study.estimates import ALL, Estimates, Rate
from heredity.study.plan import Plan
from heredity.study.wording import find, names, percent
from heredity.view.pages.studies import planned_at
from heredity.view.places import OpenStudy
from heredity.view.site import Asked, Page, Site, trend


class TrendLine(NamedTuple):
    """A model in one study. rate: of its judge-free breaches, or of the judged ones without such."""

    study: OpenStudy
    at: str
    model: str
    rate: Rate


class TrendGroup(NamedTuple):
    """Studies of the same questions in the same application: their rates belong next to each other.

    lines: by the name of the model, the oldest study first. questions: what was asked, in words and a digest.
    """

    application: str
    digest: str
    questions: str
    scope: str
    n_studies: int
    lines: list[TrendLine]


def render(site: Site, asked: Asked) -> str:
    """The groups, those of most studies first. A study without estimates of its own is in none."""
    by_question: dict[tuple[str, str], list[OpenStudy]] = defaultdict(list)
    n_without = 0
    for folder in site.place.studies():
        try:
            study = site.place.open(folder.key)
        except (HeredityError, OSError):
            n_without += 1
            continue
        if _estimates(study) is None:
            n_without += 1
        else:
            by_question[_question(study)].append(study)
    groups = sorted(
        (_group(studies, asked_for) for (_, asked_for), studies in by_question.items()),
        key=lambda group: -group.n_studies,
    )
    return site.html("trend.html.jinja", asked, groups=groups, n_without=n_without, drawn=_drawn)


def _drawn(model: str, lines: list[TrendLine]) -> Markup:
    """The rates of a model, the oldest study first, as a line; "" for one study."""
    rates = [line.rate.estimate for line in lines]
    words = "; ".join(f"{line.at[:16]} {percent(line.rate.estimate.value)}" for line in lines[:20])
    words = f"Breach rate of {model}, {plural(len(lines), 'study')}: {words}"
    return trend(rates, lines[0].at[:16], lines[-1].at[:16], words)


def _question(study: OpenStudy) -> tuple[str, str]:
    """The application and the questions: studies that share both have rates of the same thing."""
    plan = study.plan
    asked = [plan.probes, plan.attacks, plan.samples, _endpoint(study)]
    return study.saved.application_digest, digest(asked)


def _endpoint(study: OpenStudy) -> str:
    estimates = _estimates(study)
    return "" if estimates is None or estimates.analysis is None else estimates.analysis.endpoint


def _estimates(study: OpenStudy) -> Estimates | None:
    estimates = study.estimates()
    return estimates if isinstance(estimates, Estimates) and estimates.study == study.saved.study else None


def _questions(plan: Plan, endpoint: str, asked: str) -> str:
    """The questions of a group. Two groups with the same counts have other probes, and so another digest."""
    attacks = "" if list(plan.attacks) == ["direct"] else f", {plural(len(plan.attacks), 'attack')}"
    samples = f", {plan.samples} samples" if plan.samples > 1 else ""
    rate = {"decided_trials": ", rates of decided trials", "not_refused": ", rates of answers not refused"}
    size = plural(len(plan.probes), "probe")
    return f"{size}{attacks}{samples}{rate.get(endpoint, '')}; questions {asked[:8]}"


def _group(studies: list[OpenStudy], asked: str) -> TrendGroup:
    lines, scope = list[TrendLine](), ""
    for study in studies:
        estimates = _estimates(study)
        if estimates is None:
            continue
        scope = estimates.main_scope()
        for model, name in names(estimates.models).items():
            rate = find(estimates, model, scope, ALL, "breach")
            if rate is not None and rate.estimate.value is not None:
                lines.append(TrendLine(study, planned_at(study), name, rate))
    lines.sort(key=lambda line: (line.model, line.at))
    first = studies[0]
    questions = _questions(first.plan, _endpoint(first), asked)
    name, application = first.plan.application.name, first.saved.application_digest
    return TrendGroup(name, application, questions, scope, len(studies), lines)


PAGES = (Page("/trend", render, menu="2 Trend", is_exported=True),)
