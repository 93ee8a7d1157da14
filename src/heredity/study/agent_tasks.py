"""Utility, utility under attack and breaches of imported agents, by suite, with intervals of two ways.

    utility           user tasks done, without an injection
    by doing nothing  those of them that count as done if the agent does nothing
    under attack      user tasks done, with an injection in the data
    breach rate       goals of injections reached

Promises: errors are in no rate, and are counted next to it. Trials under attack share user tasks and
injection tasks, so their intervals speak for other ones of both. With fewer than two of either there is no
interval.
Leaves to others: reading logs (importers/agentdojo.py), the formulas (stats/crossed.py), and the study's own
estimates, whose intervals are by user task only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import UnsetType

from heredity.core.files import write_atomic
from heredity.core.records import Estimate, Probe, Record, Response
from heredity.core.sections import TextTable
from heredity.stats.crossed import crossed_rate
from heredity.stats.intervals import refused, wilson
from heredity.study.importers import agentdojo
from heredity.study.intervals import Intervals
from heredity.study.plan import Grid, Plan, TrialSet, read_plan
from heredity.study.storage import answered_rows, open_responses
from heredity.study.wording import NONE, interval, percent

FILE = "agent_tasks.json"
ALL = "all"  # suites together
NO_ATTACK = "none"
SCHEMA = 1
_SEED = 0
TITLE = "Tasks of agents"
CLAIM = (
    "Read the utility first: a model that does no task does not do the attacker's either. Intervals under "
    "attack speak for other user tasks and other injections like these. Errors are in no rate."
)
NO_INTERVAL = "no interval"
_HEAD = [
    "model",
    "suite, attack",
    "utility",
    "by doing nothing",
    "utility under attack",
    "breach rate",
    "errors",
]


class AgentTasks(Record, frozen=True):
    """One model in one suite, or in all of them, under one attack."""

    model: str  # its name
    suite: str
    attack: str  # "none" if the folder has only tasks without an injection
    utility: Estimate
    under_attack: Estimate
    breach: Estimate
    n_done: int
    n_done_under_attack: int
    n_broke: int
    n_done_by_nothing: int | None  # tasks that count as done if the agent does nothing; None: not known
    n_errors: int  # without an injection
    n_errors_under_attack: int


class AgentTasksFile(Record, frozen=True):
    """agent_tasks.json."""

    rows: tuple[AgentTasks, ...]
    schema: int = SCHEMA


class _Trial(NamedTuple):
    """One conversation. `recorded` None: an error."""

    model: str
    suite: str
    attack: str
    task: str
    injection: str
    recorded: dict[str, bool] | None


def agent_tasks(folder: Path) -> tuple[AgentTasks, ...]:
    """The rates of a study's folder; () if it is not of AgentDojo's tasks."""
    plan = read_plan(folder)
    if not all(map(_is_task, plan.probes)):
        return ()
    return tuple(_rows(list(_trials(folder, plan)), Intervals.of(plan).confidence))


def write(folder: Path) -> tuple[AgentTasks, ...]:
    """The same, saved as agent_tasks.json if there is a row."""
    rows = agent_tasks(folder)
    if rows:
        found = msgspec.json.encode(AgentTasksFile(rows))
        write_atomic(folder / FILE, msgspec.json.format(found, indent=1) + b"\n")
    return rows


def _trials(folder: Path, plan: Plan) -> Iterator[_Trial]:
    grid = Grid(plan)
    for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
        trial = grid.trial(row.index)
        yield _Trial(trial.model.name, *_place(trial.probe), _recorded(row))


def _is_task(probe: Probe) -> bool:
    """Whether a probe is a task that AgentDojo judges."""
    alone = not isinstance(probe.useful, UnsetType) and probe.useful.recorded == agentdojo.DONE
    return alone or any(each.startswith(agentdojo.SCHEME) for each in probe.threats)


def _place(probe: Probe) -> tuple[str, str, str, str]:
    """Suite, attack, user task and injection task of a probe, as its importer noted them."""
    named = next((each for each in probe.threats if each.startswith(agentdojo.SCHEME)), "")
    *_, attack, injection = named.split("/") if named else ("", NO_ATTACK, "")
    return probe.technique, attack, probe.cluster, injection


def _recorded(row: Response) -> dict[str, bool] | None:
    return None if row.error is not None or isinstance(row.recorded, UnsetType) else row.recorded


def _rows(trials: list[_Trial], confidence: float) -> Iterator[AgentTasks]:
    suites = list(dict.fromkeys(trial.suite for trial in trials))
    attacks = list(dict.fromkeys(t.attack for t in trials if t.attack != NO_ATTACK)) or [NO_ATTACK]
    for model in dict.fromkeys(trial.model for trial in trials):
        for suite in [*suites, *[ALL] * (len(suites) > 1)]:
            mine = [t for t in trials if t.model == model and suite in (t.suite, ALL)]
            for attack in attacks:
                yield _row(model, suite, attack, mine, confidence)


def _row(model: str, suite: str, attack: str, trials: list[_Trial], confidence: float) -> AgentTasks:
    alone = [trial for trial in trials if trial.attack == NO_ATTACK]
    attacked = [trial for trial in trials if trial.attack == attack != NO_ATTACK]
    done = [trial.recorded[agentdojo.DONE] for trial in alone if trial.recorded is not None]
    ways = _two_ways(attacked, confidence)
    return AgentTasks(
        model=model,
        suite=suite,
        attack=attack,
        utility=wilson(sum(done), len(done), confidence),
        under_attack=ways(agentdojo.DONE),
        breach=ways(agentdojo.REACHED),
        n_done=sum(done),
        n_done_under_attack=_count(attacked, agentdojo.DONE),
        n_broke=_count(attacked, agentdojo.REACHED),
        n_done_by_nothing=_by_nothing(alone),
        n_errors=sum(trial.recorded is None for trial in alone),
        n_errors_under_attack=sum(trial.recorded is None for trial in attacked),
    )


def _two_ways(trials: list[_Trial], confidence: float) -> Callable[[str], Estimate]:
    """The rate of a finding, over user tasks crossed with injection tasks."""

    def rate(finding: str) -> Estimate:
        counted = [(t, t.recorded) for t in trials if t.recorded is not None]
        if not counted:
            return refused(0, "no trial under attack")
        values = np.array([found[finding] for _, found in counted], np.float64)
        tasks = [f"{trial.suite}/{trial.task}" for trial, _ in counted]
        goals = [f"{trial.suite}/{trial.injection}" for trial, _ in counted]
        found = crossed_rate(values, tasks, goals, np.random.default_rng(_SEED), confidence)
        share = float(values.mean())
        return found if found.value is not None else msgspec.structs.replace(found, value=share)

    return rate


def _count(trials: list[_Trial], finding: str) -> int:
    return sum(trial.recorded[finding] for trial in trials if trial.recorded is not None)


def _by_nothing(trials: list[_Trial]) -> int | None:
    """How many of these tasks count as done if nothing is done; None if not every log has it."""
    found = [trial.recorded.get(agentdojo.IDLE) for trial in trials if trial.recorded is not None]
    return None if None in found or not found else sum(map(bool, found))


# --- words --------------------------------------------------------------------------------------------


def tables(folder: Path) -> list[TextTable]:
    """The table of a study's folder; [] if it is not of AgentDojo's tasks."""
    return table(agent_tasks(folder))


def table(rows: tuple[AgentTasks, ...]) -> list[TextTable]:
    """The rates as a table, utility first; [] without rows."""
    if not rows:
        return []
    cells = [
        [
            row.model, f"{row.suite}, {row.attack}",
            _share(row.utility, row.n_done),
            NONE if row.n_done_by_nothing is None else f"{row.n_done_by_nothing:,}/{row.utility.n:,}",
            _share(row.under_attack, row.n_done_under_attack),
            _share(row.breach, row.n_broke),
            f"{row.n_errors + row.n_errors_under_attack:,}",
        ]
        for row in rows
    ]  # fmt: skip
    return [TextTable(TITLE, _HEAD, cells)]


def _share(found: Estimate, n: int) -> str:
    if found.value is None:
        return NONE
    bounds = NO_INTERVAL if found.low is None else interval(found)
    return f"{percent(found.value)} ({bounds}), {n:,}/{found.n:,}"
