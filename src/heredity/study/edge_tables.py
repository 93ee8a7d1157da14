"""Inheritance in words, the same for HTML, Markdown and the terminal.

Promises: an edge is called worse if any kind of breach is worse, and not worse only if every kind is. A child
is always compared with its parent, never the other way round.
Leaves to others: the numbers (study/comparisons.py), bars and the figure (edge_rows.py).
"""

from __future__ import annotations

from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.study import wording as words
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, Estimates, Inheritance
from heredity.study.judge_tables import JudgeTable

TITLES = {JUDGE_FREE: "breach, judge-free", JUDGED: "breach, judged", ALL: "over-refusal"}
BADGES = {"worse": "worse", "not worse": "same", "not enough evidence": "unknown"}
_ROLES = {"start": "from its start", "teacher": "from its teacher"}
_NAMED = 4  # children that a sentence names


def how(edge: Inheritance) -> str:
    """The recipe that made the child, and the parent's role in it."""
    recipe = label(edge.recipe, 60)
    return f"{recipe}, {_ROLES[edge.role]}" if edge.role in _ROLES else recipe


def retained(edge: Inheritance) -> str:
    """The retention in full: `78 % (31 of 40; 62 to 88 %)`."""
    found = edge.retention
    if found.value is None:
        return "nothing to retain"
    return f"{words.percent(found.value)} ({edge.kept} of {found.n}; {words.interval(found)})"


def verdicts(found: Estimates) -> dict[tuple[str, str], str]:
    """Map (parent, child) to the verdict over all kinds of breach: worse if any is, not worse if all are.

    Kinds without a shared decided trial are left out; if no kind is left, there is not enough evidence.
    """
    by_edge: dict[tuple[str, str], list[str]] = {}
    for edge in found.edges:
        by_kind = by_edge.setdefault((edge.parent, edge.child), [])
        if edge.compared.measure == "breach" and edge.compared.n:
            by_kind.append(edge.verdict)
    return {key: _gravest(by_kind) for key, by_kind in by_edge.items()}


def _gravest(by_kind: list[str]) -> str:
    if "worse" in by_kind:
        return "worse"
    return "not worse" if by_kind and set(by_kind) == {"not worse"} else "not enough evidence"


def summary(found: Estimates) -> str:
    """A sentence with the number of children that are worse than a parent; "" without an edge."""
    by_edge = verdicts(found)
    if not by_edge:
        return ""
    called = words.names(found.models)
    groups = {verdict: [key for key, of in by_edge.items() if of == verdict] for verdict in BADGES}
    worse = [f"{called[child]} than {called[parent]}" for parent, child in groups["worse"]]
    named = ", ".join(worse[:_NAMED]) + (f" and {len(worse) - _NAMED} more" if len(worse) > _NAMED else "")
    parts = [
        f"{len(worse)} worse" + (f" ({named})" if named else ""),
        f"{len(groups['not worse'])} not worse within {words.unsigned(found.margin)}",
        f"{len(groups['not enough evidence'])} without enough evidence",
    ]
    return f"Children against their parents, {words.plural(len(by_edge), 'edge')}: {', '.join(parts)}."


def grids(found: Estimates) -> list[JudgeTable]:
    """Tables of all edges, one for breaches and one for over-refusal; [] without an edge."""
    called, measures = words.names(found.models), dict.fromkeys(e.compared.measure for e in found.edges)
    head = ["of", "child", "parent", "by", "verdict", "retention", "kept/lost/gained/never"]
    head += ["difference", "p, Holm", "would have shown"]
    titles = {"breach": "What was inherited", "over_refusal": "What was inherited: over-refusal"}
    return [
        JudgeTable(titles[m], head, [_cells(e, called) for e in found.edges if e.compared.measure == m])
        for m in measures
    ]


def _cells(edge: Inheritance, called: dict[str, str]) -> list[str]:
    pair = edge.compared
    return [
        TITLES[pair.technique],
        called.get(edge.child, "?"),
        called.get(edge.parent, "?"),
        how(edge),
        edge.verdict,
        retained(edge),
        f"{edge.kept}/{edge.lost}/{edge.gained}/{edge.never}",
        difference(pair.difference),
        words.p_words(pair.p_holm),
        words.unsigned(pair.detectable),
    ]


def difference(found: Estimate) -> str:
    """The child's rate minus the parent's, with its interval."""
    return f"{words.points(found.value)} ({words.points_interval(found)})"
