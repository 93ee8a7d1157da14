"""The whole analysis of a study, by simulation: type I error, coverage and power.

    python bench/pipeline.py            200 studies a line, under three minutes on one core
    python bench/pipeline.py --n 2000   steadier figures
    python bench/pipeline.py --stopping two models as in `make study`, under each stopping rule

Each study has three models, techniques of varied rates, behaviours that all models find hard, and a model's
own luck with a behaviour. Answers turn unclear, and checks or a judge err. Their verdicts go through the code
of a study: outcomes, Holm's family of pairs, verdicts, intervals and corrections.

    false worse      any model called worse than one of the same rate (level 0.05)
    left out         the same in plans without a declared analysis, which leave unclear answers out
    wrong pass       a model that is worse by the margin or more, called not worse (level 0.05)
    shown worse      a model with a higher rate, called worse: power
    shown not worse  a model of the same rate, called not worse: power
    raw, corrected   95 % intervals of one model's rate that hold the true one
    two-way          false worse by the test of behaviours crossed with attacks (stats/paired.py)
    asked            share of the trials that were asked before every pair was decided

Models have "the same rate" over endless behaviours and attacks. On the few attacks of one study they may
truly differ, and a claim about these attacks only is another claim.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from _commit import commit
from heredity.application.spec import Application
from heredity.core.records import Check, Estimate, Probe
from heredity.lineage.store import scripted
from heredity.stats import holm
from heredity.stats.intervals import clopper_pearson
from heredity.stats.judge_error import FEWEST, PredictedShare, predict_share
from heredity.stats.paired import crossed_difference
from heredity.study.comparisons import StoppingRule, compare_models
from heredity.study.estimates import ALL, SCOPES
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, HELD, UNCLEAR, Outcomes
from heredity.study.plan import Analysis, Plan, PlannedModel
from heredity.study.resolve import resolve_plan
from heredity.study.spec import STOPPINGS, StudySpec

N, SEED, MARGIN = 200, 17, 0.05
N_MODELS, N_TECHNIQUES = 3, 7
LOGITS = np.linspace(-3.2, 0.2, N_TECHNIQUES)  # of the techniques: rates of 7 to 53 %
OF_BEHAVIOUR, OF_MODEL = (
    1.0,
    0.5,
)  # deviations on the logit scale: shared by all models, and of each by itself
N_FAMILIES, N_READINGS = 5, 80  # labelled answers of each kind and family
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class World:
    """One line of the table.

    gap             the third model's rate minus that of the two others; in `gap_in` techniques only
    unclear         of the first model: the shares of its breaches and of its holds that turn unclear
    unclear_of_all  the same of every other model
    sens, spec      of what decides; `family` is the deviation of both between models and labelled families
    is_judged       a judge decides, and not checks
    behaviours, attacks, samples   the size: per technique, per study, per cell
    attack          deviation of what an attack does to one model, on the logit scale
    of_behaviour, of_model   the same of a behaviour, shared by all models, and of each model's own luck
    error_share     of verdicts, as the plan declares it
    read            unclear answers of each model that a person reads, without an error
    models          of a study under a stopping rule: the last one is the worse one
    """

    name: str
    gap: float = 0.0
    gap_in: int = N_TECHNIQUES
    unclear: tuple[float, float] = (0.0, 0.0)
    unclear_of_all: tuple[float, float] = (0.0, 0.0)
    sens: float = 1.0
    spec: float = 1.0
    family: float = 0.0
    is_judged: bool = False
    behaviours: int = 30
    attacks: int = 1
    samples: int = 1
    attack: float = 0.0
    of_behaviour: float = OF_BEHAVIOUR
    of_model: float = OF_MODEL
    models: int = 2
    error_share: float = 0.0
    read: int = 0

    @property
    def scope(self) -> str:
        return SCOPES["breach"][1 if self.is_judged else 0]

    @property
    def has_errors(self) -> bool:
        return self.sens < 1 or self.spec < 1


WORLDS = (
    World("equal rates, every answer clear, no errors"),
    World("equal, 10 behaviours a technique", behaviours=10),
    World("equal, 3 samples", samples=3),
    World("equal; a: unclear 10 % of breaches, 40 % of holds", unclear=(0.1, 0.4)),
    World("equal; a: unclear 10 % of breaches, 60 % of holds", unclear=(0.1, 0.6)),
    World("equal; a: unclear 40 % of breaches, 10 % of holds", unclear=(0.4, 0.1)),
    World("the same, 40 unclear answers of each model read", unclear=(0.4, 0.1), read=40),
    World("equal; unclear 20 % of everything", unclear=(0.2, 0.2), unclear_of_all=(0.2, 0.2)),
    World("equal; checks find 90 %, 2 % false alarms", sens=0.9, spec=0.98),
    World("equal; the same, and errors differ by model (sd 4 points)", sens=0.9, spec=0.96, family=0.04),
    World("the same, declared: 5 % of verdicts may favour a model", sens=0.9, spec=0.96, family=0.04,
          error_share=0.05),
    World("equal; a judge: 85 %, 10 % false alarms, sd 4 points", sens=0.85, spec=0.9, family=0.04,
          is_judged=True),
    World("the same judge, declared: 5 % of verdicts may favour a model", sens=0.85, spec=0.9, family=0.04,
          is_judged=True, error_share=0.05),
    World("equal; 3 attacks that work alike", attacks=3, behaviours=10),
    World("equal over all attacks; 3 of them, sd 0.7 between models", attacks=3, attack=0.7, behaviours=10),
    World("equal over all attacks; 5 of them, sd 0.7 between models", attacks=5, attack=0.7, behaviours=10),
    World("c worse by the margin, 5 points", gap=0.05),
    World("c worse by 10 points", gap=0.10),
    World("c worse by 15 points", gap=0.15),
    World("c worse by 10 points, all of it in 2 of 7 techniques", gap=0.10, gap_in=2),
    World("c worse by 15; checks find 90 %, 2 % false alarms", gap=0.15, sens=0.9, spec=0.98),
    World("the same, declared: 5 % of verdicts may favour a model", gap=0.15, sens=0.9, spec=0.98,
          error_share=0.05),
    World("c worse by 25; the same checks, the same declared", gap=0.25, sens=0.9, spec=0.98,
          error_share=0.05),
    World("c worse by 15; unclear 20 % of everything", gap=0.15, unclear=(0.2, 0.2),
          unclear_of_all=(0.2, 0.2)),
)  # fmt: skip


# --- one study -------------------------------------------------------------------------------------


def plan_of(world: World) -> Plan:
    """The plan: one probe a behaviour, three models, the declared analysis."""
    models = tuple(PlannedModel(name * 32, name, "family", "mit", "scripted") for name in "abc"[:N_MODELS])
    check = Check("refusal") if world.is_judged else Check("marker", text="zorq")
    probes = tuple(
        Probe(f"t{t}/{i}", f"t{t}", "breach", ("Say it.",), check, f"t{t}-{i}")
        for t in range(N_TECHNIQUES)
        for i in range(world.behaviours)
    )
    attacks = tuple(f"attack-{i}" for i in range(world.attacks))
    desk = Application("desk", "You help.")
    return Plan(
        models,
        desk,
        attacks,
        probes,
        world.samples,
        0,
        MARGIN,
        0.95,
        (),
        analysis=Analysis(error_share=world.error_share or None),
    )


def shifts_of(world: World) -> Floats:
    """(model, technique) logits; the third model's are moved until its mean rate is higher by the gap."""
    spread = math.sqrt(world.of_behaviour**2 + world.of_model**2 + world.attack**2)

    def gap_at(shift: float) -> float:
        moved = np.where(np.arange(N_TECHNIQUES) >= N_TECHNIQUES - world.gap_in, LOGITS + shift, LOGITS)
        return float((_rates(moved, spread) - _rates(LOGITS, spread)).mean())

    shift = optimize.brentq(lambda x: gap_at(x) - world.gap, 0.0, 12.0) if world.gap else 0.0
    logits = np.tile(LOGITS, (N_MODELS, 1))
    logits[-1, N_TECHNIQUES - world.gap_in :] += shift
    return logits


def _rates(logits: Floats, spread: float) -> Floats:
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    return np.asarray(special.expit(logits[:, None] + spread * nodes) @ weights / weights.sum())


def true_rate(world: World) -> float:
    """Of the first model."""
    return float(
        _rates(LOGITS, math.sqrt(world.of_behaviour**2 + world.of_model**2 + world.attack**2)).mean()
    )


def answers(world: World, logits: Floats, rng: np.random.Generator) -> Bools:
    """(model, attack, probe, sample) which answers are breaches."""
    n = N_TECHNIQUES * world.behaviours
    shape = N_MODELS, world.attacks, n, world.samples
    each = np.repeat(logits, world.behaviours, axis=1)[:, None, :, None] + np.zeros(shape)
    each += world.of_behaviour * rng.normal(size=n)[:, None]
    each += world.of_model * rng.normal(size=(N_MODELS, 1, n, 1))
    each += world.attack * rng.normal(size=(N_MODELS, world.attacks, 1, 1))
    return np.asarray(rng.random(shape) < special.expit(each))


def verdicts(world: World, broke: Bools, errors: Floats, rng: np.random.Generator) -> NDArray[np.int8]:
    """The part that the study sees. `errors`: (model, 2) sensitivity and specificity."""
    sens, spec = (errors[:, i].reshape(-1, 1, 1, 1) for i in (0, 1))
    found = np.where(broke, rng.random(broke.shape) < sens, rng.random(broke.shape) >= spec)
    codes = np.where(found, BROKE, HELD).astype(np.int8)
    for m in range(N_MODELS):
        of_breaches, of_holds = world.unclear if m == 0 else world.unclear_of_all
        is_unclear = rng.random(broke[m].shape) < np.where(broke[m], of_breaches, of_holds)
        codes[m][is_unclear] = UNCLEAR
    return codes


def family_errors(world: World, n: int, rng: np.random.Generator) -> Floats:
    """(family, 2) sensitivities and specificities."""
    means = np.array([world.sens, world.spec])
    if not world.family:
        return np.tile(means, (n, 1))
    size = np.maximum(means * (1 - means) / world.family**2 - 1, 1.0)
    return np.asarray(rng.beta(means * size, (1 - means) * size, (n, 2)))


def measured(world: World, rng: np.random.Generator) -> list[PredictedShare]:
    """Sensitivity and specificity as labelled families of other models show them."""
    right = rng.binomial(N_READINGS, family_errors(world, N_FAMILIES, rng))
    return [predict_share(right[:, i].tolist(), [N_READINGS] * N_FAMILIES) for i in (0, 1)]


def read_shares(
    world: World, broke: Bools, codes: NDArray[np.int8], rng: np.random.Generator
) -> dict[tuple[int, bool], Estimate]:
    """The share of breaches among the unclear answers of each model, from those that a person reads."""
    shares = {}
    for m in range(N_MODELS) if world.read else ():
        unclear = rng.permutation(broke[m][codes[m] == UNCLEAR])[: world.read]
        if (n := unclear.size) >= FEWEST:
            k = int(unclear.sum())
            shares[m, world.is_judged] = Estimate(k / n, *clopper_pearson(k, n), n, "clopper-pearson")
    return shares


# --- many studies ----------------------------------------------------------------------------------


@dataclass
class Line:
    """Sums over the studies of one world."""

    n: int = 0
    false_worse: int = 0
    false_left_out: int = 0
    wrong_pass: int = 0
    shown_worse: float = 0.0
    shown_not_worse: float = 0.0
    raw: int = 0
    corrected: int = 0
    two_way: int = 0


def simulate(world: World, n: int, seed: int = SEED) -> Line:
    """Run `n` studies of a world through the study's own code."""
    rng, plan, logits, line = np.random.default_rng(seed), plan_of(world), shifts_of(world), Line(n)
    undeclared = msgspec.structs.replace(plan, analysis=None)
    truth = true_rate(world)
    for _ in range(n):
        broke = answers(world, logits, rng)
        codes = verdicts(world, broke, family_errors(world, N_MODELS, rng), rng).ravel()
        outcomes = Outcomes(plan, codes)
        outcomes.unclear_shares = read_shares(world, broke, codes.reshape(broke.shape), rng)
        _count_verdicts(line, world, outcomes)
        old = _words(Outcomes(undeclared, codes), world)
        line.false_left_out += any(old[pair] == "worse" for pair in _equal(world))
        _count_rates(line, world, outcomes, truth, rng)
        if world.attacks > 1:
            line.two_way += _is_called_worse_by_attacks(world, outcomes, rng)
    return line


def _words(outcomes: Outcomes, world: World) -> dict[tuple[str, str], str]:
    """The verdict on the second of each two models against the first, both ways."""
    found = {}
    for pair in compare_models(outcomes, "breach", SCOPES["breach"]):
        assert pair.technique == world.scope
        found[pair.a[0], pair.b[0]], found[pair.b[0], pair.a[0]] = pair.verdict_ab, pair.verdict_ba
    return found


def _equal(world: World) -> list[tuple[str, str]]:
    names = "ab" if world.gap else "abc"
    return [(x, y) for x in names for y in names if x != y]


def _count_verdicts(line: Line, world: World, outcomes: Outcomes) -> None:
    words, equal = _words(outcomes, world), _equal(world)
    line.false_worse += any(words[pair] == "worse" for pair in equal)
    line.shown_not_worse += float(np.mean([words[pair] == "not worse" for pair in equal]))
    if world.gap:
        against = [words[x, "c"] for x in "ab"]
        line.shown_worse += float(np.mean([word == "worse" for word in against]))
        line.wrong_pass += any(word == "not worse" for word in against)


def _count_rates(
    line: Line, world: World, outcomes: Outcomes, truth: float, rng: np.random.Generator
) -> None:
    intervals, probes = Intervals.of(outcomes.plan), outcomes.probes(world.scope, "breach")
    codes, clusters = outcomes.codes_of(0, ALL, probes), outcomes.clusters_of(ALL, probes)
    counted = outcomes.in_rate(codes)
    broke, of = codes[counted] == BROKE, clusters[counted]
    raw = intervals.rate(broke, of)
    line.raw += raw.low <= truth <= raw.high
    if world.has_errors:
        found = intervals.corrected_for_family(broke, of, raw, *measured(world, rng))
        line.corrected += found.value is not None and found.low <= truth <= found.high


def _is_called_worse_by_attacks(world: World, outcomes: Outcomes, rng: np.random.Generator) -> bool:
    """Whether any two models of one rate differ, with Holm over the pairs, by behaviours and attacks."""
    probes = outcomes.probes(world.scope, "breach")
    rows = outcomes.clusters_of(ALL, probes)
    columns = np.repeat(np.arange(world.attacks), rows.size // world.attacks)
    broke = [outcomes.codes_of(m, ALL, probes) == BROKE for m in range(N_MODELS)]
    pairs = combinations(broke, 2)
    found = [crossed_difference(x, y, rows, columns, rng).p_value for x, y in pairs]
    return min(holm(found)) < Intervals.of(outcomes.plan).alpha


# --- stopping rules --------------------------------------------------------------------------------

STOPPED_WORLDS = (
    World("equal rates"),
    World("equal; every model fails on the same behaviours", of_behaviour=2.5, of_model=0.1),
    World("equal; 3 samples", samples=3),
    World("equal; a: unclear 10 % of breaches, 40 % of holds", unclear=(0.1, 0.4)),
    World("equal; a: unclear 10 % of breaches, 60 % of holds", unclear=(0.1, 0.6)),
    World("three equal models", models=3),
    World("c worse by the margin, 10 points", gap=0.10),
    World("c worse by 15 points", gap=0.15),
    World("c worse by 20 points", gap=0.20),
    World("c worse by 32 points", gap=0.32),
    World("c worse by 20; unclear 20 % of everything", gap=0.20, unclear=(0.2, 0.2),
          unclear_of_all=(0.2, 0.2)),
)  # fmt: skip
MARGIN_OF_STUDY = 0.10  # of `make study`


@dataclass
class StoppedLine:
    """Sums over the studies of one world under one stopping rule."""

    worse: int = 0  # a later model called worse than an earlier one
    better: int = 0
    not_worse: int = 0  # the last model called not worse than the one before
    difference: int = 0  # intervals of it that hold the truth
    rate: int = 0  # the same of the last model's rate
    asked: float = 0.0


def planned_study(world: World, stopping: str) -> Plan:
    """The models under one stopping rule, resolved as a user's settings are."""
    base = plan_of(world)
    models = [scripted(f"scripted:mixed/{name}").record for name in "abc"[: world.models]]
    return resolve_plan(
        StudySpec(
            models, base.application, probes=base.probes, samples=world.samples, margin=MARGIN_OF_STUDY,
            stopping=stopping,
        )
    )  # fmt: skip


def simulate_stopped(world: World, n: int, stopping: str, seed: int = SEED) -> StoppedLine:
    """Run `n` studies of the last models of a world, asked block by block."""
    rng, plan, logits, line = (
        np.random.default_rng(seed),
        planned_study(world, stopping),
        shifts_of(world),
        StoppedLine(),
    )
    places = {probe.id: i for i, probe in enumerate(plan_of(world).probes)}
    order = [places[probe.id] for probe in plan.probes]
    truth = true_rate(world) + world.gap
    for _ in range(n):
        codes = verdicts(world, answers(world, logits, rng), family_errors(world, N_MODELS, rng), rng)
        codes = codes if world.models == N_MODELS else codes[[0, -1]]
        outcomes = asked_in_blocks(plan, codes[:, :, order])
        pairs = compare_models(outcomes, "breach", [world.scope])
        pair = pairs[-1]
        found, low, high = pair.difference, pair.difference.low, pair.difference.high
        line.worse += any(each.verdict_ab == "worse" for each in pairs)
        line.better += any(each.verdict_ba == "worse" for each in pairs)
        line.not_worse += pair.verdict_ab == "not worse"
        line.difference += found.value is not None and low <= world.gap <= high
        rate = _rate_of_last(outcomes, world)
        line.rate += rate.low <= truth <= rate.high
        line.asked += float(np.mean(outcomes.codes != 0))
    return line


def asked_in_blocks(plan: Plan, codes: NDArray[np.int8]) -> Outcomes:
    """The outcomes of the trials that a study asks before its rule stops it."""
    outcomes = Outcomes(plan)
    if not plan.stops_early:
        outcomes.array[:] = codes
        return outcomes
    rule = StoppingRule(outcomes)
    while not rule.is_over:
        low, high = rule.block()
        for m in rule.open_models:
            outcomes.array[m, :, low:high] = codes[m, :, low:high]
        rule.analyse()
    return outcomes


def _rate_of_last(outcomes: Outcomes, world: World) -> Estimate:
    probes = outcomes.probes(world.scope, "breach")
    last = world.models - 1
    codes, clusters = outcomes.codes_of(last, ALL, probes), outcomes.clusters_of(ALL, probes)
    counted = outcomes.in_rate(codes)
    return Intervals.over(outcomes, last).rate(codes[counted] == BROKE, clusters[counted])


def stopping_table(n: int) -> Iterator[str]:
    """The table of stopping rules, line by line."""
    yield "| world | rule | later worse | earlier worse | not worse | difference | rate | asked |"
    yield "|---|---|---|---|---|---|---|---|"
    for world in STOPPED_WORLDS:
        for stopping in STOPPINGS:
            line = simulate_stopped(world, n, stopping)
            shares = [line.worse, line.better, line.not_worse, line.difference, line.rate, line.asked]
            yield f"| {world.name} | {stopping} | " + " | ".join(f"{x / n:.3f}" for x in shares) + " |"


# --- the table -------------------------------------------------------------------------------------


def table(n: int, worlds: tuple[World, ...] = WORLDS) -> Iterator[str]:
    """The table, line by line; a share of 0.05 has a standard error of sqrt(0.0475 / n)."""
    columns = (
        "false worse | left out | wrong pass | shown worse | shown not worse | raw | corrected | two-way"
    )
    yield f"| world | {columns} |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for world in worlds:
        line = simulate(world, n)
        shares = [line.false_worse, line.false_left_out]
        shares += [line.wrong_pass, line.shown_worse] if world.gap else [math.nan, math.nan]
        shares += [line.shown_not_worse, line.raw, line.corrected if world.has_errors else math.nan]
        shares += [line.two_way if world.attacks > 1 else math.nan]
        cells = ["" if math.isnan(x) else f"{x / n:.3f}" for x in shares]
        yield f"| {world.name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=N, help="studies per line")
    parser.add_argument("--behaviours", type=int, help="behaviours per technique, in every line")
    parser.add_argument("--stopping", action="store_true", help="compare the stopping rules")
    arguments = parser.parse_args()
    worlds = WORLDS
    if arguments.behaviours:
        worlds = tuple(replace(world, behaviours=arguments.behaviours) for world in WORLDS)
    where = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{arguments.n} studies a line; commit {commit()}; {where}, Python {platform.python_version()}")
    started = time.perf_counter()
    for line in stopping_table(arguments.n) if arguments.stopping else table(arguments.n, worlds):
        print(line, flush=True)
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
