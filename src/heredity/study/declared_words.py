"""The declared analysis of a study and the course of one that stops early, in words.

    for title, words in declared_lines(estimates): print(title, words)

Promises: a stopping rule is named with its interim analyses and levels. Trials not asked are counted.
Leaves to others: numbers into words (wording.py), and the place of the words (the writers).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from heredity.core.sanitize import label
from heredity.study.estimates import Estimates, StoppedModel
from heredity.study.plan import Analysis, ComparisonFamily
from heredity.study.wording import attack_name, names, percent, plural, unsigned

_REPEATED = 0.1  # above this share of repeated conversations, the report warns of them
_ENDPOINTS = {
    "all_trials": "breaches over all answered trials; an unclear answer counts as none",
    "decided_trials": "breaches over decided trials; unclear answers are left out",
}
_STOPPING = {
    "fixed": "every trial of the plan is asked",
    "until_decided": "interim analyses stop a model once all of its pairs are decided",
    "group_sequential": "a model is asked no more once all of its pairs are decided",
}


def declared_lines(estimates: Estimates) -> list[tuple[str, str]]:
    """The declared analysis as titles and words; [] if none was declared."""
    declared = estimates.analysis
    if declared is None:
        return []
    families = "; ".join(map(_family, declared.families)) or "none, because nothing is compared"
    return [
        ("Endpoint", _ENDPOINTS[declared.endpoint]),
        ("Primary comparison", "none" if declared.primary is None else _family(declared.primary)),
        ("Families", f"Holm's correction over {families}. Claims about one technique are exploratory"),
        ("Level, margin", f"{estimates.alpha:g}, and {unsigned(estimates.margin)} do not matter"),
        ("Unclear answers", f'"worse" must survive that {percent(declared.unclear_share)} were breaches'),
        *(
            [("Errors", f'"worse" must survive that {percent(declared.errors)} favour a model')]
            if declared.errors
            else []
        ),
        ("Stopping", _STOPPING[declared.stopping] + _planned_analyses(declared)),
        ("Judge", declared.judge or "none"),
    ]


def _planned_analyses(declared: Analysis) -> str:
    """The planned interim analyses: ` at 50 %, 75 % and 100 % of the behaviours` and their levels; or ""."""
    if isinstance(declared.interim, msgspec.UnsetType):
        return ""
    *shares, last = (percent(analysis.information) for analysis in declared.interim)
    levels = ", ".join(f"{analysis.level:.2g}" for analysis in declared.interim)
    at = f"{', '.join(shares)} and {last}" if shares else last
    return f" at {at} of the behaviours, with levels of {levels} (O'Brien-Fleming spending)"


def _family(family: ComparisonFamily) -> str:
    kinds = [scope.replace("_", "-") for scope in family.scopes]
    scopes = f" ({', '.join(kinds)})" if family.measure == "breach" else ""
    between = "pairs of models" if family.between == "pairs" else "parents and children"
    return f"{plural(family.n, 'comparison')} of {between} by {family.measure.replace('_', '-')}{scopes}"


def stopping_words(found: Estimates) -> str:
    """The course of a study that stops early, in sentences; "" for any other study."""
    course = found.sequential
    if course is None:
        return ""
    n_decided = sum(pair.interim is not None for pair in course.decisions)
    n_pairs = plural(len(course.decisions), "pair")
    is_planned = found.analysis is not None and found.analysis.stopping == "group_sequential"
    analyses = "planned interim analyses" if is_planned else "interim analyses"
    rule = "Group-sequential" if is_planned else "Asked until decided"
    words = (
        f"{rule}: {n_decided} of {n_pairs} after {course.n_interim} of {course.n_interim_planned} {analyses}."
    )
    if course.stopped:
        words += f" {_spared_words(found, course.stopped, is_planned=is_planned)}"
    if not is_planned:
        return f"{words} Intervals and p-values are valid under any stopping rule."
    rest = " Their answers are kept: --stopping fixed in another folder asks only the rest."
    why = "Each interval is a repeated one, valid at every analysis, and wider than in a fixed plan."
    return f"{words}{rest if course.stopped else ''} {why}"


def _spared_words(found: Estimates, stopped: Sequence[StoppedModel], *, is_planned: bool) -> str:
    called, n_out = names(found.models), sum(s.n_out_of_scope for s in stopped)
    each = ", ".join(
        f"{called[s.model]} {s.n - s.n_out_of_scope:,} after analysis {s.interim}" for s in stopped
    )
    n = f"{found.n_not_needed - n_out:,} of {found.n_trials - n_out - found.n_skipped:,}"
    drawn = " of each technique" if is_planned else ""
    why = f"because {stopped[0].why} ({each}), at random among the behaviours{drawn}"
    return f"{n} trials were not asked, {why}."


def same_conversations_words(estimates: Estimates, called: dict[str, str]) -> Iterator[str]:
    """Breaches of several behaviours that are one conversation, if they are more than a few."""
    for each in estimates.same_conversations:
        if each.n_same - each.n_distinct > _REPEATED * each.n:
            attack = label(attack_name(each.attack, estimates.attacks))
            who = called.get(each.model, label(each.model))
            distinct = plural(each.n - each.n_same + each.n_distinct, "conversation")
            yield (
                f"{label(each.technique)} under {attack}: {each.n_same:,} of {each.n:,} behaviours broke in"
                f" the same conversation of {who} as another behaviour, word for word. The {each.n:,} are"
                f" only {distinct}, so the interval of this rate is too narrow."
            )
