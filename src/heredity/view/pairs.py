"""Two models on the same trials: which broke, by trial, so that one can read what only one of them did.

    both = shared(study, board_of(study), a=0, b=1)
    both.n("only-b"), both.places("only-b")

Promises: a trial counts as in the study's own comparison of the two: by its endpoint, and only if it counts
for both models. Places are those within one model's trials, so that the same place is the same trial.
Leaves to others: tests and intervals of the difference (study/comparisons.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity.application.spec import Application
from heredity.core.errors import HeredityError
from heredity.study.comparisons import compare_models
from heredity.study.estimates import Estimates, ModelPair
from heredity.study.outcomes import BROKE, Outcomes, is_part
from heredity.study.plan import Plan
from heredity.study.storage import run_records
from heredity.view.places import OpenStudy
from heredity.view.queries import PAGE, Board, Filters, ShownRate, board_of

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
    technique = None if chosen.technique is None else study.techniques[chosen.technique]
    probes = [
        (probe.kind == "benign") == (chosen.kind == "benign")
        and (not chosen.scope or is_part(probe, chosen.scope))
        and technique in (None, probe.technique)
        for probe in plan.probes
    ]
    under = [chosen.attack in (None, a) for a in range(len(plan.attacks))]
    return shared_of(board.outcomes, a, b, np.array(probes, np.bool_), np.array(under, np.bool_))


def shared_of(
    outcomes: Outcomes, a: int, b: int, probes: NDArray[np.bool_], under: NDArray[np.bool_] | None = None
) -> Shared:
    """Two models of the same outcomes, on the probes (probe,) and the attacks (attack,) that are True."""
    every = list(range(len(outcomes.plan.probes)))
    first, second = (outcomes.scored(outcomes.array[m], every) for m in (a, b))
    counts = outcomes.in_rate(first) & outcomes.in_rate(second) & probes[:, None]  # (attack, probe, sample)
    if under is not None:
        counts &= under[:, None, None]
    broke_a, broke_b = first == BROKE, second == BROKE
    sorts = np.select([broke_a & broke_b, broke_a, broke_b], [3, 1, 2], 4)  # as WHICH is ordered
    return Shared(a, b, np.where(counts, sorts, 0).astype(np.int8).ravel())


def page_of(places: NDArray[np.intp], after: int = -1) -> tuple[list[int], int | None]:
    """The places after one, at most PAGE, and from where the next page starts; None at the end."""
    start = int(np.searchsorted(places, after, side="right"))
    shown = [int(place) for place in places[start : start + PAGE]]
    return shown, shown[-1] if start + PAGE < places.size else None


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


# --- two runs -----------------------------------------------------------------------------------------
# A trial is the same in both if application, probe, attack, sample and planted passages are. If the seed,
# attacker or triggers differ, only direct attempts count. A difference has an interval only if both runs are
# finished and asked all of their plans.


class RunDifference(NamedTuple):
    """A setting that differs between two runs, in words."""

    what: str
    first: str
    second: str


class MatchedModel(NamedTuple):
    """A model that both runs asked, by its places in their plans. is_same: by id; else by name only."""

    a: int
    b: int
    is_same: bool


class RatedTrials(NamedTuple):
    """A technique or scope: the rate of a model in each run, and its trials that count in both."""

    technique: str
    first: ShownRate | None
    second: ShownRate | None
    shared: Shared


class ComparedModel(NamedTuple):
    """A model in two runs. pair: second minus first, None without an interval; why_not: the reason."""

    model: MatchedModel
    main: RatedTrials
    pair: ModelPair | None
    why_not: str
    techniques: list[RatedTrials]


class TwoRuns:
    """Two studies, with their rows as they are now."""

    def __init__(self, first: OpenStudy, second: OpenStudy) -> None:
        self.first, self.second = first, second
        self.boards: tuple[Board, Board] = board_of(first), board_of(second)
        self.models = tuple(_matched(first.plan, second.plan))
        self.outcomes = lru_cache(self._outcomes)

    @property
    def scope(self) -> str:
        """The scope of the first run's verdicts; "" if it asks no breach."""
        return self.boards[0].main_scope

    @cached_property
    def not_comparable(self) -> str:
        """The reason why no trial is the same; "" if some may be."""
        a, b = self.first.plan, self.second.plan
        if self.first.saved.application_digest != self.second.saved.application_digest:
            fields = Application.__struct_fields__
            differing = [f for f in fields if getattr(a.application, f) != getattr(b.application, f)]
            what = ", ".join(differing)
            return f"their applications differ ({what}), and a rate holds in one application only"
        if endpoint_of(a) != endpoint_of(b):
            return "their rates count other trials (endpoint)"
        return ""

    @cached_property
    def _attacks(self) -> dict[int, int]:
        """The attacks whose words are the same, by place in the first plan: the place in the second."""
        a, b = self.first.plan, self.second.plan
        is_same = _writing(a) == _writing(b)
        known = [x for x in a.attacks if x in b.attacks and (is_same or x == "direct")]
        return {a.attacks.index(x): b.attacks.index(x) for x in known}

    @cached_property
    def _probes(self) -> dict[int, int]:
        """The same for probes that are equal in every field."""
        known = {probe.id: (place, probe) for place, probe in enumerate(self.second.plan.probes)}
        both = ((p, known.get(probe.id), probe) for p, probe in enumerate(self.first.plan.probes))
        return {p: held[0] for p, held, probe in both if held is not None and held[1] == probe}

    @cached_property
    def _is_asked_alike(self) -> NDArray[np.bool_]:
        """(attack, probe) of the first plan: whether the second asked the same."""
        plan, mine, theirs = self.first.plan, self.first.grid.planted, self.second.grid.planted
        alike = np.zeros((len(plan.attacks), len(plan.probes)), np.bool_)
        if not self.not_comparable:
            for x, y in self._attacks.items():
                for p, q in self._probes.items():
                    alike[x, p] = mine.overlay(x, p) == theirs.overlay(y, q)
        return alike

    def _outcomes(self, model: MatchedModel) -> Outcomes:
        """The same trials of both runs as those of two models; the other trials have no verdict."""
        plan = msgspec.structs.replace(
            self.first.plan,
            models=(self.first.plan.models[model.a], self.second.plan.models[model.b]),
            edges=None,
        )
        outcomes, n = Outcomes(plan), min(plan.samples, self.second.plan.samples)
        mine = np.ix_(list(self._attacks), list(self._probes), range(n))
        theirs = np.ix_(list(self._attacks.values()), list(self._probes.values()), range(n))
        outcomes.array[0][mine] = self.boards[0].outcomes.array[model.a][mine]
        outcomes.array[1][mine] = self.boards[1].outcomes.array[model.b][theirs]
        outcomes.array[:, ~self._is_asked_alike] = 0
        return outcomes

    def shared(self, model: MatchedModel, technique: str) -> Shared:
        """The trials of a technique or scope that count in both runs, by place in the first plan."""
        wanted = [p.kind == "breach" and is_part(p, technique) for p in self.first.plan.probes]
        return shared_of(self.outcomes(model), 0, 1, np.array(wanted, np.bool_))

    def indices(self, model: MatchedModel, place: int) -> tuple[int, int]:
        """The indices of a same trial in each run. Raises KeyError for a trial that only the first asked."""
        a, b = self.first.plan, self.second.plan
        x, p, sample = (int(i) for i in np.unravel_index(place, a.shape[1:]))
        there = np.ravel_multi_index((model.b, self._attacks[x], self._probes[p], sample), b.shape)
        return model.a * a.n_per_model + place, int(there)

    def compared(self, model: MatchedModel) -> ComparedModel:
        """A model in both runs: its rates, its trials that count in both, and the difference."""
        asked = [p.technique for s in (self.first, self.second) for p in s.plan.probes if p.kind == "breach"]
        main, why = self._rated(model, self.scope), self._why_no_interval()
        if not why and not main.shared.n_all:
            why = "no trial counts in both runs"
        compared = [] if why else compare_models(self.outcomes(model), "breach", [self.scope])
        techniques = [self._rated(model, name) for name in dict.fromkeys(asked)]
        return ComparedModel(model, main, next(iter(compared), None), why, techniques)

    def _rated(self, model: MatchedModel, technique: str) -> RatedTrials:
        places = zip(self.boards, (model.a, model.b), strict=True)
        first, second = (board.rate(place, technique, "breach") for board, place in places)
        return RatedTrials(technique, first, second, self.shared(model, technique))

    def _why_no_interval(self) -> str:
        held = [board.estimates for board in self.boards]
        if self.not_comparable:
            return "the two runs are not comparable"
        if any(each is None for each in held):
            return "a run without current estimates may still change"
        if self.first.plan.stops_early or self.second.plan.stops_early:
            return "the answers of a run that stops early decided the number of its trials"
        if any(each is not None and each.findings.get("same_conversations") for each in held):
            return "behaviours broke in the same conversation"
        return ""

    def differences(self) -> list[RunDifference]:
        """The settings that differ, the application first. Of lists only what the other run lacks."""
        (one, lists), (other, others) = _settings(self.first), _settings(self.second)
        differences = [RunDifference(what, one[what], other[what]) for what in one]
        n, a, b = len(self._probes), len(self.first.plan.probes), len(self.second.plan.probes)
        probes = (f"{each}, {n} of them in both runs" for each in (a, b))
        differences.insert(1, RunDifference("probes", *(probes if n < max(a, b) else ("", ""))))
        for what in lists:
            only = lists[what] - others[what], others[what] - lists[what]
            differences.append(RunDifference(what, *(", ".join(sorted(each)) or "none" for each in only)))
        return [each for each in differences if each.first != each.second]


def _matched(a: Plan, b: Plan) -> Iterator[MatchedModel]:
    """The models of both, by id, or else by a name that one model of each has."""
    ids, shared = {model.id: place for place, model in enumerate(b.models)}, {m.id for m in a.models}
    names = [model.name for model in b.models]
    mine = [model.name for model in a.models]
    for place, model in enumerate(a.models):
        if model.id in ids:
            yield MatchedModel(place, ids[model.id], True)
        elif names.count(model.name) == mine.count(model.name) == 1:
            there = names.index(model.name)
            if b.models[there].id not in shared:
                yield MatchedModel(place, there, False)


def endpoint_of(plan: Plan) -> str:
    """The trials that the rates of a plan count."""
    declared = plan.analysis
    return "decided_trials" if declared is None else declared.endpoint


def _writing(plan: Plan) -> tuple[object, ...]:
    """The settings that decide the words of an attack, besides the probe."""
    declared = plan.analysis
    ends = None if declared is None else declared.ends_at_breach
    return plan.seed, plan.attacker, plan.triggers, plan.has_shared_steps, ends


def _settings(study: OpenStudy) -> tuple[dict[str, str], dict[str, set[str]]]:
    """The settings of a run in words, and those that are lists, by name."""
    plan, estimates = study.plan, study.estimates()
    declared = plan.analysis
    judge = estimates.judge if isinstance(estimates, Estimates) else declared.judge if declared else ""
    versions, engines = set[str](), set[str]()
    with suppress(HeredityError, OSError):  # then they are not known
        for run in run_records(study.folder):
            versions |= {f"{name} {version}" for name, version in run.versions.items()}
            engines.add(run.engine)
    settings = {
        "application": f"{plan.application.name} {study.saved.application_digest[:8]}",
        "samples": str(plan.samples),
        "seed": str(plan.seed),
        "attacker": "none" if plan.attacker is None else plan.attacker.name,
        "endpoint": endpoint_of(plan),
        "stopping": plan.stopping,
        "confidence": f"{plan.confidence:g}",
        "margin": f"{plan.margin:g}",
        "judge": judge or "none",
    }
    models = {f"{model.name} {model.id[:8]}" for model in plan.models}
    only_here = {"models": models, "attacks": set(plan.attacks), "engines": engines, "versions": versions}
    return settings, {f"{what} only here": each for what, each in only_here.items()}
