"""The result of a lineage in at most five sentences, computed from its verdicts.

Promises: the sentences are about the primary battery, and short. A verdict against expectation is named. A
child without a verdict is named as such, and so are the children that no sentence is about.
Leaves to others: the verdicts (findings.py) and the page (page.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from heredity.core.records import Estimate
from heredity.core.sanitize import label, plural
from heredity.lab.inherit import EdgeFinding, LineageResult, Verdict
from heredity.study.wording import bare, capital, points, points_interval

N_SENTENCES, MAX_WORDS = 5, 25
QUICK = "This was a quick run, with few steps and few questions, to see it work. Its verdicts show nothing."
_NAMED, _MOST_NAMED = 6, 12  # children that a list of names holds in a sentence, and behind them
_OTHERS = "others"  # the group of children without one, next to groups
_ENDS: dict[Verdict, str] = {
    "lost": "it lost refusals",
    "kept": "within the margin",
    "not enough evidence": "not enough evidence",
    "differs by seed": "the seeds differ",
}


class _Told(NamedTuple):
    """A sentence, and the children that it is about."""

    sentence: str
    edges: list[EdgeFinding]


def sentences(found: LineageResult) -> list[str]:
    """The summary, a sentence for each group or child, then the expectation; at most five."""
    edges, middle = _edges(found), _middle(_edges(found))
    summary = [_summary(edges, found)] if len(edges) > 1 else []
    return [*summary, *(told.sentence for told in middle[: _room(edges)]), *_expectation(edges)]


def gist(found: LineageResult) -> list[str]:
    """Those of the sentences that a table of the children does not say: the summary and the expectation."""
    return [*sentences(found)[:1], *_expectation(_edges(found))]


def rest(found: LineageResult) -> str:
    """The children that no sentence is about, with their verdicts: `a (lost) and b (kept)`; "" for none."""
    edges = _edges(found)
    left = [edge for told in _middle(edges)[_room(edges) :] for edge in told.edges]
    names = [f"{label(edge.child, 32)} ({edge.word})" for edge in left[:_MOST_NAMED]]
    more = len(left) - len(names)
    return _listed([*names, *([f"{more} more"] if more else [])]) if left else ""


def caution(found: LineageResult) -> str:
    """The caution that a quick run needs; "" for any other."""
    return QUICK if found.primary.plan.is_quick else ""


def noise_floor(found: LineageResult) -> str:
    """The difference of a child that differs by rounding only; "" without one."""
    for edge in found.edges:
        if edge.is_noise and edge.seeds:
            by = difference(edge.difference)
            return (
                f"Noise floor, from rounding only: {label(edge.child, 32)} {_kept(edge)}, a change of {by}."
            )
    return ""


def counts(edge: EdgeFinding, by_seed: bool = True) -> str:
    """Kept of the parent's refusals, seed by seed or over all: `16 of 44, 18 of 44`, `34 of 88`."""
    if edge.seeds and not by_seed:
        return f"{edge.inherited.kept} of {edge.inherited.kept + edge.inherited.lost}"
    return ", ".join(f"{s.edge.kept} of {s.edge.kept + s.edge.lost}" for s in edge.seeds)


def difference(found: Estimate) -> str:
    """A difference with its interval: `+24.4 points (+11.6 to +36.8)`."""
    return f"{points(found.value)} ({bare(points_interval(found))})"


def open_claims(edges: Sequence[EdgeFinding]) -> list[str]:
    """Why there is no claim about some children, a line for each reason."""
    by_reason: dict[str, list[EdgeFinding]] = {}
    for edge in edges:
        if edge.why_no_claim:
            by_reason.setdefault(edge.why_no_claim, []).append(edge)
    return [
        f"No claim about {_listed([label(edge.child, 48) for edge in mine])}: {why}."
        for why, mine in by_reason.items()
    ]


def _edges(found: LineageResult) -> list[EdgeFinding]:
    return [edge for edge in found.edges if not edge.is_noise]


def _room(edges: Sequence[EdgeFinding]) -> int:
    """The number of sentences between the summary and the expectation."""
    return N_SENTENCES - (len(edges) > 1) - len(_expectation(edges))


def _middle(edges: Sequence[EdgeFinding]) -> list[_Told]:
    """A sentence for each group, those without one together; without groups, a sentence for each child."""
    groups = _groups(edges)
    if list(groups) == [_OTHERS]:
        return [_Told(_child(edge), [edge]) for edge in edges]
    return [_Told(_group(name, mine), mine) for name, mine in groups.items()]


def _summary(edges: Sequence[EdgeFinding], found: LineageResult) -> str:
    n = Counter(edge.claim for edge in edges)
    n_open = n["not enough evidence"] + n["differs by seed"]
    parts = [f"{n_open} {_are(n_open)} undecided"] if n_open else []
    parts += [f"{n['no claim']} {'has' if n['no claim'] == 1 else 'have'} no claim"] if n["no claim"] else []
    counts = [
        f"Of {plural(len(edges), 'child')}, {n['lost']} lost refusals of their parent",
        f"{n['kept']} kept their rate within {100 * found.margin:g} points",
    ]
    return f"{_listed([*counts, *parts])}."


def _groups(edges: Sequence[EdgeFinding]) -> dict[str, list[EdgeFinding]]:
    """The children by their group; last those without one."""
    found: dict[str, list[EdgeFinding]] = {edge.group: [] for edge in edges if edge.group}
    for edge in edges:
        found.setdefault(edge.group or _OTHERS, []).append(edge)
    return found


def _group(name: str, edges: Sequence[EdgeFinding]) -> str:
    """The verdicts of a group; with the lost refusals, unless that makes the sentence too long."""
    full = _verdicts(name, edges, _lost)
    return full if len(full.split()) <= MAX_WORDS else _verdicts(name, edges, _named)


def _verdicts(name: str, edges: Sequence[EdgeFinding], lost: Callable[[Sequence[EdgeFinding]], str]) -> str:
    by_verdict: dict[Verdict, list[EdgeFinding]] = {verdict: [] for verdict in _ENDS}
    unclaimed = [edge for edge in edges if edge.why_no_claim]
    for edge in edges:
        if not edge.why_no_claim:
            by_verdict[edge.verdict].append(edge)
    parts = [lost(by_verdict["lost"])] if by_verdict["lost"] else []
    if mine := by_verdict["kept"]:
        whose = "theirs" if parts else "their refusals" if len(mine) > 1 else "its refusals"
        parts.append(f"{_names(mine, marks_weak=True)} kept {whose} within the margin")
    if mine := by_verdict["not enough evidence"]:
        parts.append(f"{_names(mine)} {_are(len(mine))} undecided")
    if mine := by_verdict["differs by seed"]:
        parts.append(f"{_names(mine)} {'differs' if len(mine) == 1 else 'differ'} by seed")
    if unclaimed:
        has = "has" if len(unclaimed) == 1 else "have"
        parts.append(f"{_names(unclaimed)} {has} no claim{_why(unclaimed)}")
    return f"{capital(label(name, 60))}: {'; '.join(parts)}."


def _why(edges: Sequence[EdgeFinding]) -> str:
    """The reason that no claim is made of these children, if they share one."""
    first, *others = {edge.why_no_claim for edge in edges}
    return "" if others else f", since {first}"


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _lost(edges: Sequence[EdgeFinding]) -> str:
    """`a lost 28 of 44 refusals, b 40 of 88`, over all seeds."""
    parts: list[str] = []
    for edge in edges[:_NAMED]:
        lost, n = edge.inherited.lost, edge.inherited.lost + edge.inherited.kept
        verb, noun = ("", "") if parts else ("lost ", " refusals")
        parts.append(f"{label(edge.child, 32)} {verb}{lost} of {n}{noun}")
    return ", ".join([*parts, *_more(edges)])


def _named(edges: Sequence[EdgeFinding]) -> str:
    return f"{_names(edges)} lost refusals"


def _child(edge: EdgeFinding) -> str:
    name = label(edge.child, 48)
    if edge.why_no_claim:
        return f"No claim about {name}: {edge.why_no_claim}."
    by = difference(edge.difference)
    ending = _ENDS[edge.verdict]
    what = "requests not refused" if edge.counts_refusals else "breaches"
    return f"{name} {_kept(edge)}; {what} changed by {by}: {ending}."


def _kept(edge: EdgeFinding) -> str:
    if not any(seed.edge.kept + seed.edge.lost for seed in edge.seeds):
        return "had no refusals of its parent to keep"
    return f"kept {counts(edge)} refusals of its parent"


def _names(edges: Sequence[EdgeFinding], marks_weak: bool = False) -> str:
    """`a, b (weak) and c`. marks_weak: for a verdict that weak children might get for another reason."""
    named = [
        f"{label(edge.child, 32)}{' (weak)' if marks_weak and edge.is_weak else ''}"
        for edge in edges[:_NAMED]
    ]
    return _listed([*named, *_more(edges)])


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _more(edges: Sequence[EdgeFinding]) -> list[str]:
    return [f"{len(edges) - _NAMED} more"] if len(edges) > _NAMED else []


def _expectation(edges: Sequence[EdgeFinding]) -> list[str]:
    """The sentence about the verdicts that were expected in advance; [] without any."""
    expected = [edge for edge in edges if edge.expected]
    decided = [edge for edge in expected if edge.is_as_expected is not None]
    against = [edge for edge in decided if not edge.is_as_expected]
    n_open = len(expected) - len(decided)
    more = f"; {n_open} {_are(n_open)} undecided" if n_open else ""
    if not expected:
        return []
    if not decided:
        return ["No verdict that was expected in advance was reached."]
    if not against:
        which = f"All {len(decided)} verdicts" if len(decided) > 1 else "The one verdict"
        return [f"{which} with an expectation came out as expected{more}."]
    names = [f"{label(e.child, 32)} ({e.verdict})" for e in against[:_NAMED]]
    as_expected = f"{len(decided) - len(against)} of {len(decided)} verdicts were as expected"
    return [f"Against expectation: {_listed([*names, *_more(against)])}; {as_expected}{more}."]
