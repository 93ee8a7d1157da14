"""Two models on the same trials: which broke, by trial, so that one can read what only one of them did.

    found = shared(study, board_of(study), a=0, b=1)
    found.n("only-b"), found.places("only-b")

Promises: a trial counts as in the study's own comparison of the two: by its endpoint, and only if it counts
for both models. Places are those within one model's trials, so that the same place is the same trial.
Leaves to others: tests and intervals of the difference (study/comparisons.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from heredity.study.outcomes import BROKE, Outcomes, is_part
from heredity.view.places import OpenStudy
from heredity.view.queries import PAGE, Filters
from heredity.view.rates import Board

Which = Literal["only-a", "only-b", "both", "neither"]
WHICH: tuple[Which, ...] = get_args(Which)


class Shared(NamedTuple):
    """The trials that count for both of two models. `sorts`: at each place 1 + that in WHICH; 0: none."""

    a: int
    b: int
    sorts: NDArray[np.int8]

    def n(self, which: Which) -> int:
        """How many there are of one sort."""
        return int(np.count_nonzero(self.sorts == WHICH.index(which) + 1))

    @property
    def n_all(self) -> int:
        """All trials that count for both."""
        return int(np.count_nonzero(self.sorts))

    def places(self, which: Which) -> NDArray[np.intp]:
        """The places of one sort, in the plan's order."""
        return np.flatnonzero(self.sorts == WHICH.index(which) + 1)


def shared(study: OpenStudy, board: Board, a: int, b: int, filters: Filters | None = None) -> Shared:
    """Two models on the same trials: of the breach probes, or of the twins where the filters say so.

    Of the filters the technique, the attack, the kind and the scope hold.
    """
    chosen, plan = filters or Filters(), study.plan
    probes = [_is_wanted(study, p, chosen) for p in range(len(plan.probes))]
    under = [chosen.attack in (None, a) for a in range(len(plan.attacks))]
    return shared_of(board.outcomes, a, b, np.array(probes, np.bool_), np.array(under, np.bool_))


def shared_of(
    found: Outcomes, a: int, b: int, probes: NDArray[np.bool_], under: NDArray[np.bool_] | None = None
) -> Shared:
    """Two models of the same outcomes, on the probes (probe,) and the attacks (attack,) that are True."""
    every = list(range(len(found.plan.probes)))
    first, second = (found.scored(found.array[m], every) for m in (a, b))
    counts = found.in_rate(first) & found.in_rate(second) & probes[:, None]  # (attack, probe, sample)
    if under is not None:
        counts &= under[:, None, None]
    broke_a, broke_b = first == BROKE, second == BROKE
    sorts = np.select([broke_a & broke_b, broke_a, broke_b], [3, 1, 2], 4)  # as WHICH is ordered
    return Shared(a, b, np.where(counts, sorts, 0).astype(np.int8).ravel())


def _is_wanted(study: OpenStudy, p: int, filters: Filters) -> bool:
    probe = study.plan.probes[p]
    if (probe.kind == "benign") != (filters.kind == "benign"):
        return False
    if filters.scope and not is_part(probe, filters.scope):
        return False
    return filters.technique is None or probe.technique == study.techniques[filters.technique]


def page_of(places: NDArray[np.intp], after: int = -1) -> tuple[list[int], int | None]:
    """The places after one, at most PAGE, and from where the next page starts; None at the end."""
    start = int(np.searchsorted(places, after, side="right"))
    found = [int(place) for place in places[start : start + PAGE]]
    return found, found[-1] if start + PAGE < places.size else None


def beside(places: NDArray[np.intp], place: int) -> tuple[int | None, int | None]:
    """The places before and after one in a list; None at an end."""
    low, high = np.searchsorted(places, place, side="left"), np.searchsorted(places, place, side="right")
    before = int(places[low - 1]) if low > 0 else None
    return before, int(places[high]) if high < places.size else None


def pairs(study: OpenStudy) -> Iterator[tuple[int, int]]:
    """Every two models: parents with their children first, each once, the parent in front."""
    edges = () if study.plan.edges is None else study.plan.edges
    done = set[frozenset[int]]()
    for edge in edges:
        if edge.parent in study.places and edge.child in study.places:
            pair = study.places[edge.parent], study.places[edge.child]
            if frozenset(pair) not in done and pair[0] != pair[1]:
                done.add(frozenset(pair))
                yield pair
    n = len(study.plan.models)
    for a in range(n):
        for b in range(a + 1, n):
            if frozenset((a, b)) not in done:
                yield a, b


def is_edge(study: OpenStudy, a: int, b: int) -> bool:
    """Whether b is a child of a."""
    edges = () if study.plan.edges is None else study.plan.edges
    ids = study.plan.models[a].id, study.plan.models[b].id
    return any((edge.parent, edge.child) == ids for edge in edges)


def is_guard(study: OpenStudy, a: int, b: int) -> bool:
    """Whether b is a behind guards."""
    first, second = study.plan.models[a], study.plan.models[b]
    return is_edge(study, a, b) and second.guards is not None and first.guards is None
