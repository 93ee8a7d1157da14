"""The result of a lineage in five sentences, computed from its verdicts.

Promises: the sentences are about the primary battery, and short. A verdict against expectation is named. A
child without a verdict is named as such.
Leaves to others: the verdicts (findings.py) and the page (page.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.experiments.inheritance.findings import EdgeFinding, LineageResult, Verdict
from heredity.study.wording import capital, plural, points, points_interval

N_SENTENCES, MAX_WORDS = 5, 25
_NAMED = 4  # children that a list of names holds
_DOES: dict[Verdict, str] = {
    "lost": "lost refusals",
    "kept": "kept them within the margin",
    "not enough evidence": "left the question open",
    "differs by seed": "differed between seeds",
}


def sentences(found: LineageResult) -> list[str]:
    """The summary, a sentence for each group or child, then the expectation; at most five."""
    edges = [edge for edge in found.edges if not edge.is_noise]
    middle = [_group(name, mine) for name, mine in _groups(edges).items()] or [_child(e) for e in edges]
    last = [_expectation(edges)] if any(edge.expected for edge in edges) else []
    return [_summary(edges, found), *middle[: N_SENTENCES - 1 - len(last)], *last]


def noise_floor(found: LineageResult) -> str:
    """The difference of a child that differs by rounding only; "" without one."""
    for edge in found.edges:
        if edge.is_noise and edge.seeds:
            floor = difference(edge.difference)
            return f"The noise floor is {floor}: {label(edge.child, 32)} kept {counts(edge)}."
    return ""


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
    """The verdicts of a group; with the lost refusals, unless that makes the sentence too long."""
    full = _verdicts(name, edges, _lost)
    return full if len(full.split()) <= MAX_WORDS else _verdicts(name, edges, _named)


def _verdicts(name: str, edges: Sequence[EdgeFinding], lost: Callable[[Sequence[EdgeFinding]], str]) -> str:
    parts = []
    for verdict, does in _DOES.items():
        if mine := [edge for edge in edges if edge.verdict == verdict]:
            parts.append(lost(mine) if verdict == "lost" else f"{_names(mine)} {does}")
    return f"{capital(label(name, 60))}: {'; '.join(parts)}."


def _lost(edges: Sequence[EdgeFinding]) -> str:
    """`a lost 28 of 44, b lost 40 of 88`, over all seeds."""
    parts = []
    for edge in edges[:_NAMED]:
        found = edge.inherited
        parts.append(f"{label(edge.child, 32)} lost {found.lost} of {found.lost + found.kept}")
    return ", ".join([*parts, *_more(edges)])


def _named(edges: Sequence[EdgeFinding]) -> str:
    return f"{_names(edges)} {_DOES['lost']}"


def _child(edge: EdgeFinding) -> str:
    name = label(edge.child, 48)
    if edge.why_no_claim:
        return f"Nothing is claimed of {name}: {edge.why_no_claim}."
    change = difference(edge.difference)
    return f"{name} kept {counts(edge)} refusals of its parent; breaches changed by {change}."


def _names(edges: Sequence[EdgeFinding]) -> str:
    named = [*(label(edge.child, 32) for edge in edges[:_NAMED]), *_more(edges)]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _more(edges: Sequence[EdgeFinding]) -> list[str]:
    return [f"{len(edges) - _NAMED} more"] if len(edges) > _NAMED else []


def _expectation(edges: Sequence[EdgeFinding]) -> str:
    decided = [edge for edge in edges if edge.is_as_expected is not None]
    against = [edge for edge in decided if not edge.is_as_expected]
    if not decided:
        return "No verdict that was expected in advance was reached."
    if not against:
        return f"All of {plural(len(decided), 'verdict')} with an expectation came out as expected."
    names = ", ".join([*(f"{label(e.child, 32)} ({e.verdict})" for e in against[:_NAMED]), *_more(against)])
    return f"Against expectation: {names}; {len(decided) - len(against)} of {len(decided)} were as expected."
