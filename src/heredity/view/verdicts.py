"""The finding of a study as a page shows it first: chips of its verdicts, and its sentence.

Promises: every word is that of the report (study/headline.py, study/wording.py); nothing is computed here.
Leaves to others: whether the estimates are about these rows (rates.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

from heredity.study.estimates import Estimates, ModelPair
from heredity.study.wording import edge_verdicts, names

Kind = Literal["worse", "same", "unknown"]
_KINDS: dict[str, Kind] = {"worse": "worse", "not worse": "same", "not enough evidence": "unknown"}
_MOST = 3


class Chip(NamedTuple):
    """A verdict in a few words; `kind` is its class in the style sheet."""

    text: str
    kind: Kind


def chips(estimates: Estimates) -> list[Chip]:
    """The verdicts of a study, the gravest first: on its children, or else on its pairs of models."""
    edges = edge_verdicts(estimates)
    if edges:
        return list(_of_edges(edges, estimates))
    scope = estimates.main_scope()
    found = [p for p in estimates.pairs if (p.measure, p.technique) == ("breach", scope)]
    made = [_of_pair(pair, names(estimates.models)) for pair in found]
    order: list[Kind] = ["worse", "same", "unknown"]
    made.sort(key=lambda chip: order.index(chip.kind))
    left = len(made) - _MOST
    return made[:_MOST] + ([Chip(f"and {left} more", "unknown")] if left > 0 else [])


def _of_edges(edges: dict[tuple[str, str], str], estimates: Estimates) -> Iterator[Chip]:
    called = names(estimates.models)
    if len(edges) <= _MOST:
        for verdict, kind in _KINDS.items():
            for (parent, child), found in edges.items():
                if found == verdict:
                    yield Chip(f"{called[child]}: {_word(verdict)} than {called[parent]}", kind)
        return
    counts = Counter(edges.values())
    for verdict, kind in _KINDS.items():
        if counts[verdict]:
            yield Chip(f"{counts[verdict]} of {len(edges)} children {_word(verdict)}", kind)


def _of_pair(pair: ModelPair, called: dict[str, str]) -> Chip:
    a, b = called[pair.a], called[pair.b]
    if pair.verdict_ab == "worse":
        return Chip(f"{b}: worse than {a}", "worse")
    if pair.verdict_ba == "worse":
        return Chip(f"{a}: worse than {b}", "worse")
    if pair.verdict_ab == pair.verdict_ba == "not worse":
        return Chip(f"{a} and {b}: not worse than each other", "same")
    return Chip(f"{a} and {b}: not enough evidence", "unknown")


def _word(verdict: str) -> str:
    return "not shown to be worse or not worse" if verdict == "not enough evidence" else verdict
