"""The order of the probes in a study that stops early, and after which of them an interim analysis runs.

Promises: the order is random and follows from the seed, so that analyses are valid. A behaviour is
asked whole, with its twins. The same probes have the same order with every version of every library.
Leaves to others: the levels of the analyses (stats/alpha_spending.py), and the rest of a plan (spec.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from heredity.core.errors import UsageError
from heredity.core.records import Model, Probe, digest
from heredity.study.estimates import SCOPES
from heredity.study.outcomes import is_part

MAX_INTERIM = 12  # interim analyses of one study; each may load every model again
STAGES = (0.5, 0.75, 1.0)  # of a group-sequential study, as shares of the behaviours of each technique


def refuse_undecidable(asked: Sequence[Probe], models: Sequence[Model]) -> None:
    """Raise UsageError for a study that stops early and has nothing to decide."""
    if len(models) < 2 or all(probe.kind == "benign" or probe.is_baseline for probe in asked):
        raise UsageError(
            "A study that stops early compares models by their breaches: give two models or more, and probes "
            "that can break.",
            code="nothing-to-decide",
        )


def _shuffled(asked: Sequence[Probe], seed: int) -> dict[tuple[str, str], list[Probe]]:
    """The probes by behaviour, with each behaviour's twins, in a random order of behaviours.

    Interim analyses are valid only if the order is independent of the answers.
    """
    behaviours: dict[tuple[str, str], list[Probe]] = {}
    for probe in asked:
        behaviours.setdefault((probe.technique, probe.cluster), []).append(probe)
    # By digest, not by a generator: the order is the same with every version of every library.
    order = sorted(behaviours, key=lambda key: digest([seed, *key]))
    return {key: behaviours[key] for key in order}


def in_blocks(asked: Sequence[Probe], seed: int) -> tuple[tuple[Probe, ...], tuple[int, ...]]:
    """The probes in a random order of behaviours, and the ends of up to MAX_INTERIM blocks."""
    behaviours = _shuffled(asked, seed)
    order = list(behaviours)
    sizes = [len(behaviours[key]) for key in order]
    step = -(-len(order) // MAX_INTERIM)
    ends = tuple(sum(sizes[: i + step]) for i in range(0, len(order), step))
    return tuple(probe for key in order for probe in behaviours[key]), ends


def in_stages(asked: Sequence[Probe], seed: int) -> tuple[tuple[Probe, ...], tuple[int, ...]]:
    """The probes in a random order of behaviours, and the ends of the STAGES.

    Each block has the same share of every technique, so that rates at an analysis are of the same mixture.
    """
    behaviours, places = _shuffled(asked, seed), Counter[str]()
    sizes = Counter(technique for technique, _ in behaviours)
    blocks: list[list[Probe]] = [[] for _ in STAGES]
    for key, probes_of in behaviours.items():
        technique = key[0]
        places[technique] += 1
        ends = [math.floor(sizes[technique] * share + 0.5) for share in STAGES]
        blocks[next(i for i, end in enumerate(ends) if places[technique] <= end)] += probes_of
    order = tuple(probe for block in blocks for probe in block)
    # Analyses of the same behaviours are one analysis, the last of them.
    by_information = {
        n_behaviours(order[:end], asked): end
        for end in (sum(map(len, blocks[: i + 1])) for i in range(len(blocks)))
    }
    return order, tuple(end for n, end in by_information.items() if n)


def n_behaviours(some: Sequence[Probe], asked: Sequence[Probe]) -> int:
    """The behaviours among `some` of the scope that decides in a study that asks all of `asked`."""
    scope = next(scope for scope in SCOPES["breach"] if _behaviours(asked, scope))
    return len(_behaviours(some, scope))


def _behaviours(probes: Sequence[Probe], scope: str) -> set[tuple[str, str]]:
    return {(p.technique, p.cluster) for p in probes if p.kind == "breach" and is_part(p, scope)}
