"""What each child inherited, in words: the same for the page, Markdown and the terminal.

Promises: an edge is called worse where any kind of breach is, and not worse only where every kind is; a
child is always told against its parent, never the other way round.
Leaves to others: the numbers (cells.py), bars and the figure (_inherited.py).
"""

from __future__ import annotations

from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.study import wording as words
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, Estimates, Inheritance
from heredity.study.report._judges import JudgeTable

TITLES = {JUDGE_FREE: "breach, judge-free", JUDGED: "breach, judged", ALL: "over-refusal"}
BADGES = {"worse": "worse", "not worse": "same", "not enough evidence": "unknown"}
_ROLES = {"start": "from its start", "teacher": "from its teacher"}
_NAMED = 4  # children that a sentence names


def how(edge: Inheritance) -> str:
    """How the child was made, and what the parent was in that."""
    said = label(edge.recipe, 60)
    return f"{said}, {_ROLES[edge.role]}" if edge.role in _ROLES else said


def retained(edge: Inheritance) -> str:
    """The retention in full: `78 % (31 of 40; 62 to 88 %)`."""
    found = edge.retention
    if found.value is None:
        return "nothing to retain"
    return f"{words.percent(found.value)} ({edge.kept} of {found.n}; {words.interval(found)})"


def verdicts(found: Estimates) -> dict[tuple[str, str], str]:
    """By parent and child the verdict over all kinds of breach: worse where any is, not worse where all are.

    Kinds that share no decided trial say nothing; where there is no other, there is not enough evidence.
    """
    by_edge: dict[tuple[str, str], list[str]] = {}
    for edge in found.edges:
        said = by_edge.setdefault((edge.parent, edge.child), [])
        if edge.compared.measure == "breach" and edge.compared.n:
            said.append(edge.verdict)
    return {key: _gravest(said) for key, said in by_edge.items()}


def _gravest(said: list[str]) -> str:
    if "worse" in said:
        return "worse"
    return "not worse" if said and set(said) == {"not worse"} else "not enough evidence"


def summary(found: Estimates) -> str:
    """How many children are worse than a parent, in a sentence; "" without an edge."""
    told = verdicts(found)
    if not told:
        return ""
    called = words.names(found.models)
    groups = {verdict: [key for key, said in told.items() if said == verdict] for verdict in BADGES}
    worse = [f"{called[child]} than {called[parent]}" for parent, child in groups["worse"]]
    named = ", ".join(worse[:_NAMED]) + (f" and {len(worse) - _NAMED} more" if len(worse) > _NAMED else "")
    parts = [
        f"{len(worse)} worse" + (f" ({named})" if named else ""),
        f"{len(groups['not worse'])} not worse within {words.unsigned(found.margin)}",
        f"{len(groups['not enough evidence'])} without enough evidence",
    ]
    return f"Children against their parents, {words.plural(len(told), 'edge')}: {', '.join(parts)}."


def grids(found: Estimates) -> list[JudgeTable]:
    """Every edge in words, a table each for breaches and for over-refusal; [] without an edge."""
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
