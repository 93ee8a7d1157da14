"""The result of a lineage in five sentences, computed from its verdicts.

Promises: the sentences are about the primary battery. A verdict against expectation is named. A child
without a verdict is named as such.
Leaves to others: the verdicts (findings.py) and the page (page.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.experiments.inheritance.findings import EdgeFinding, LineageResult, Verdict
from heredity.study.wording import plural, points, points_interval

N_SENTENCES = 5
_NAMED = 4  # children that a list of names holds
_DOES: dict[Verdict, str] = {
    "lost": "lost refusals",
    "kept": "kept them within the margin",
    "not enough evidence": "left the question open",
    "differs by seed": "differed between seeds",
}


def sentences(found: LineageResult) -> list[str]:
    """The summary, a sentence for each group or child, then expectation and noise; at most five."""
    edges = [edge for edge in found.edges if not edge.is_noise]
    middle = [_group(name, mine) for name, mine in _groups(edges).items()]
    if not middle:
        middle = [_child(edge) for edge in edges]
    last = [_expectation(edges), *_noise(found)]
    room = N_SENTENCES - 1 - len(last)
    return [_summary(edges, found), *middle[:room], *last]


def counts(edge: EdgeFinding) -> str:
    """Kept and lost of the parent's refusals, seed by seed: `16 of 44, 18 of 44`."""
    return ", ".join(f"{s.edge.kept} of {s.edge.kept + s.edge.lost}" for s in edge.seeds)


def difference(found: Estimate) -> str:
    """A difference with its interval: `+24.4 points (+11.6 to +36.8 points)`."""
    return f"{points(found.value)} ({points_interval(found)})"


def _summary(edges: Sequence[EdgeFinding], found: LineageResult) -> str:
    n = {verdict: sum(edge.verdict == verdict for edge in edges) for verdict in _DOES}
    n_open = n["not enough evidence"] + n["differs by seed"]
    children = "child" if len(edges) == 1 else "children"
    return (
        f"Of {len(edges)} {children} {n['lost']} lost refusals of the parent, {n['kept']} kept them within "
        f"{100 * found.margin:g} points, and {n_open} left the question open."
    )


def _groups(edges: Sequence[EdgeFinding]) -> dict[str, list[EdgeFinding]]:
    found: dict[str, list[EdgeFinding]] = {}
    for edge in edges:
        if edge.group:
            found.setdefault(edge.group, []).append(edge)
    return found


def _group(name: str, edges: Sequence[EdgeFinding]) -> str:
    parts = []
    for verdict, does in _DOES.items():
        mine = [edge for edge in edges if edge.verdict == verdict]
        if mine:
            parts.append(f"{_names(mine)} {does}")
    return f"{label(name, 60)}: {'; '.join(parts)}.".capitalize()


def _child(edge: EdgeFinding) -> str:
    name = label(edge.child, 48)
    if edge.why_no_claim:
        return f"Nothing is claimed of {name}: {edge.why_no_claim}."
    change = difference(edge.difference)
    return f"{name} kept {counts(edge)} refusals of its parent; breaches changed by {change}."


def _names(edges: Sequence[EdgeFinding]) -> str:
    shown = [f"{label(edge.child, 32)} ({counts(edge)} kept)" for edge in edges[:_NAMED]]
    more = [f"{len(edges) - _NAMED} more"] if len(edges) > _NAMED else []
    named = [*shown, *more]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _expectation(edges: Sequence[EdgeFinding]) -> str:
    decided = [edge for edge in edges if edge.is_as_expected is not None]
    against = [edge for edge in decided if not edge.is_as_expected]
    if not decided:
        return "No verdict that was expected in advance was reached."
    if not against:
        return f"All of {plural(len(decided), 'verdict')} with an expectation came out as expected."
    names = " and ".join(f"{label(edge.child, 32)} ({edge.verdict})" for edge in against[:_NAMED])
    return f"Against expectation: {names}; {len(decided) - len(against)} of {len(decided)} were as expected."


def _noise(found: LineageResult) -> list[str]:
    return [
        f"The noise floor is {difference(edge.difference)}: {label(edge.child, 32)} kept {counts(edge)}."
        for edge in found.edges
        if edge.is_noise and edge.seeds
    ][:1]
