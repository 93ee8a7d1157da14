"""Which pairs of models are decided, so that no more is asked of a model than its open pairs need.

Promises: a look uses the answers of the blocks up to it and nothing else, so a study that was killed and goes
on decides the same; what is decided stays decided; over all looks and pairs together a false difference is
claimed with a chance of at most alpha (Holm on e-values).
Leaves to others: the order and the blocks (plan.py), asking and judging (study.py), the evidence (stats/).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from heredity.stats import holm
from heredity.stats.looks import Looks
from heredity.stats.sequential import cluster_means
from heredity.study.estimates import JUDGE_FREE, SCOPES, Decision, Estimates, Sequential, Stopped, is_part
from heredity.study.plan import Plan

HELD, BROKE = 1, 2  # codes of decided answers; 0 is no answer, anything above is neither (unclear, error)
CODES = {"held": HELD, "answered": HELD, "broke": BROKE, "refused": BROKE, "unclear": 3, None: 4}

WHY = "every pair of their model was decided"


class Rule:
    """The state of a study that asks until its pairs are decided.

    outcomes  one code a trial, in the plan's order: an array that `note` fills, or one that is given
    """

    def __init__(self, plan: Plan, outcomes: NDArray[np.int8] | None = None) -> None:
        self._plan, self._alpha = plan, round(1 - plan.confidence, 12)
        self.outcomes = np.zeros(plan.n_trials, np.int8) if outcomes is None else outcomes
        shape = (len(plan.models), len(plan.attacks), len(plan.probes), plan.samples)
        self._box = self.outcomes.reshape(shape)
        self._codes = memoryview(self.outcomes.data)
        behaviours = [f"{probe.technique}\0{probe.cluster}" for probe in plan.probes]
        _, self._clusters = np.unique(behaviours, return_inverse=True)
        scopes = [scope for scope in SCOPES["breach"] if any(self._is_part(scope))]
        self.scope = (
            scopes[0] if scopes else JUDGE_FREE
        )  # the one that decides: judge-free where there is any
        self._pairs = list(combinations(range(len(plan.models)), 2))
        n_most = int(self._clusters.max()) + 1
        self._looks = {(pair, scope): Looks(self._alpha, n_most) for scope in scopes for pair in self._pairs}
        self._decided: dict[tuple[int, int], tuple[int, int]] = {}  # pair -> look, trials of both by then
        self._stopped: dict[int, int] = {}  # model -> look after which it is asked no more
        self.n_looks = 0

    def note(self, index: int, outcome: str | None) -> None:
        """The verdict on one trial."""
        self._codes[index] = CODES[outcome]

    @property
    def open_models(self) -> list[int]:
        """Models that some open pair needs, by their place in the plan."""
        return [m for m in range(len(self._plan.models)) if m not in self._stopped]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to ask: every block was looked at, or every pair is decided."""
        return self.n_looks == len(self._plan.ends) or not self.open_models

    @property
    def n_spared(self) -> int:
        """Trials that are not to be asked."""
        return sum(self._unasked(m) for m in self._stopped)

    def _unasked(self, m: int) -> int:
        return int(np.count_nonzero(self._box[m] == 0))

    def block(self) -> tuple[int, int]:
        """The places of the probes of the next block: from the first up to, but not including, the second."""
        ends = self._plan.ends
        return (ends[self.n_looks - 1] if self.n_looks else 0), ends[self.n_looks]

    def look(self) -> None:
        """Take the next block into account, and see which pairs are decided."""
        low, high = self.block()
        self.n_looks += 1
        for (pair, scope), looks in self._looks.items():
            looks.look(self._differences(pair, scope, low, high))
        self._decide(high)
        needed = {m for pair in self._pairs if pair not in self._decided for m in pair}
        for m in self.open_models:
            if m not in needed:
                self._stopped[m] = self.n_looks

    def replay(self) -> Rule:
        """Look at every block that is answered as far as its models were still needed."""
        while not self.is_over and self._is_answered():
            self.look()
        return self

    def _is_answered(self) -> bool:
        low, high = self.block()
        return bool(self._box[self.open_models, :, low:high].all())

    def _differences(self, pair: tuple[int, int], scope: str, low: int, high: int) -> NDArray[np.float64]:
        """The mean difference in each behaviour of the block, over trials that both models decided."""
        here = [i for i in range(low, high) if is_part(self._plan.probes[i], scope)]
        a, b = (self._box[m][:, here] for m in pair)
        both = ((a == HELD) | (a == BROKE)) & ((b == HELD) | (b == BROKE))
        clusters = np.broadcast_to(self._clusters[here][None, :, None], a.shape)
        d = (b[both] == BROKE).astype(np.int64) - (a[both] == BROKE)
        return cluster_means(d, clusters[both])

    def _decide(self, n_probes: int) -> None:
        adjusted = dict(zip(self._looks, holm([x.p_value for x in self._looks.values()]), strict=True))
        for pair in self._pairs:
            key = (pair, self.scope)
            if pair in self._decided or key not in self._looks:
                continue
            if self._looks[key].is_decided(self._plan.margin, adjusted[key]):
                self._decided[pair] = (self.n_looks, self._n_both(pair, n_probes))

    def _n_both(self, pair: tuple[int, int], n_probes: int) -> int:
        a, b = (self._box[m][:, :n_probes] for m in pair)
        return int(np.count_nonzero((a > 0) & (b > 0)))

    def _is_part(self, scope: str) -> Iterator[bool]:
        return (is_part(probe, scope) for probe in self._plan.probes)

    def record(self) -> Sequential:
        """What estimates.json says of it."""
        models = [model.id for model in self._plan.models]
        return Sequential(
            scope=self.scope,
            n_looks=self.n_looks,
            n_looks_planned=len(self._plan.ends),
            decisions=tuple(
                Decision(models[a], models[b], *self._decided.get((a, b), (None, None)))
                for a, b in self._pairs
            ),
            stopped=tuple(
                Stopped(models[m], look, n, WHY)
                for m, look in sorted(self._stopped.items())
                if (n := self._unasked(m))
            ),
        )


def stopping(found: Estimates, called: Mapping[str, str]) -> str:
    """How a study until decided went, in plain sentences; "" for any other. `called` names models by id."""
    went = found.sequential
    if went is None:
        return ""
    n_decided = sum(pair.look is not None for pair in went.decisions)
    n_pairs = f"{len(went.decisions)} pair{'s' if len(went.decisions) > 1 else ''}"
    looks = f"{went.n_looks} of {went.n_looks_planned} looks"
    said = f"Asked until decided: {n_decided} of {n_pairs} after {looks}."
    if went.stopped:
        each = ", ".join(f"{called[s.model]} {s.n:,} after look {s.look}" for s in went.stopped)
        spared = f"{found.n_not_needed:,} of {found.n_trials:,} trials were not asked, since {WHY}"
        said += f" {spared} ({each})."
    return f"{said} Intervals and p-values hold whenever one stops."
