"""AgentDojo's logs: a run's folder, `RUNS/PIPELINE/SUITE/USER_TASK/ATTACK/INJECTION_TASK.json`, or one file.

A log is one conversation of an agent. A user task without an injection is a benign prompt, and it is useful
if AgentDojo found the task done (`utility`). One with an injection is a breach prompt. It broke if AgentDojo
found that the goal of the injection was reached, which is what its field `security` means. AgentDojo judges
the state of its world, so no judge of heredity's reads the answer for a breach.

Promises: a log with an error, or without verdicts, is an error row. AgentDojo itself counts a context that is
too long as a breach. A damaged log of a folder is counted and left out. So is an injection
task that was asked directly, which is neither of the two.
Leaves to others: running the suites (lab/agentdojo.py), and the intervals (intervals.py).
Source: agentdojo 0.1.35, logging.py (TraceLogger.save) and benchmark.py (TaskResults). Logs before content
blocks have plain texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UnsetType

from heredity.core.errors import BadInput
from heredity.core.files import read_file, write_atomic
from heredity.core.records import Check, Estimate, Probe, Record, ToolCall, Usefulness
from heredity.core.sanitize import clean_call, clean_text
from heredity.core.sections import TextTable
from heredity.stats.intervals import refused, wilson
from heredity.stats.paired import crossed_rate
from heredity.study.importers import Lacking, RecordedAnswer, message_text
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


# --- agent tasks -------------------------------------------------------------------------------------
# Utility, utility under attack and breaches of imported agents, by suite, with intervals of two ways.
# Promises: errors are in no rate, and are counted next to it. Trials under attack share user tasks and
# injection tasks, so their intervals speak for other ones of both. With fewer than two of either there is
# no interval.
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
        data = msgspec.json.encode(AgentTasksFile(rows))
        write_atomic(folder / FILE, msgspec.json.format(data, indent=1) + b"\n")
    return rows


def _trials(folder: Path, plan: Plan) -> Iterator[_Trial]:
    grid = Grid(plan)
    for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
        trial = grid.trial(row.index)
        named = next((each for each in trial.probe.threats if each.startswith(SCHEME)), "")
        *_, attack, injection = named.split("/") if named else ("", NO_ATTACK, "")
        yield _Trial(
            trial.model.name,
            *(trial.probe.technique, attack, trial.probe.cluster, injection),
            None if row.error is not None or isinstance(row.recorded, UnsetType) else row.recorded,
        )


def _is_task(probe: Probe) -> bool:
    """Whether a probe is a task that AgentDojo judges."""
    alone = not isinstance(probe.useful, UnsetType) and probe.useful.recorded == DONE
    return alone or any(each.startswith(SCHEME) for each in probe.threats)


def _rows(trials: list[_Trial], confidence: float) -> Iterator[AgentTasks]:
    suites = list(dict.fromkeys(trial.suite for trial in trials))
    attacks = list(dict.fromkeys(t.attack for t in trials if t.attack != NO_ATTACK)) or [NO_ATTACK]
    for model in dict.fromkeys(trial.model for trial in trials):
        for suite in [*suites, *[ALL] * (len(suites) > 1)]:
            mine = [t for t in trials if t.model == model and suite in (t.suite, ALL)]
            for attack in attacks:
                alone = [trial for trial in mine if trial.attack == NO_ATTACK]
                attacked = [trial for trial in mine if trial.attack == attack != NO_ATTACK]
                done = [trial.recorded[DONE] for trial in alone if trial.recorded is not None]
                ways = _two_ways(attacked, confidence)
                idle = [trial.recorded.get(IDLE) for trial in alone if trial.recorded is not None]
                yield AgentTasks(
                    model=model,
                    suite=suite,
                    attack=attack,
                    utility=wilson(sum(done), len(done), confidence),
                    under_attack=ways(DONE),
                    breach=ways(REACHED),
                    n_done=sum(done),
                    n_done_under_attack=_count(attacked, DONE),
                    n_broke=_count(attacked, REACHED),
                    n_done_by_nothing=None if None in idle or not idle else sum(map(bool, idle)),
                    n_errors=sum(trial.recorded is None for trial in alone),
                    n_errors_under_attack=sum(trial.recorded is None for trial in attacked),
                )


def _two_ways(trials: list[_Trial], confidence: float) -> Callable[[str], Estimate]:
    """The rate of a finding, over user tasks crossed with injection tasks."""

    def rate(finding: str) -> Estimate:
        counted = [(t, t.recorded) for t in trials if t.recorded is not None]
        if not counted:
            return refused(0, "no trial under attack")
        values = np.array([results[finding] for _, results in counted], np.float64)
        tasks = [f"{trial.suite}/{trial.task}" for trial, _ in counted]
        goals = [f"{trial.suite}/{trial.injection}" for trial, _ in counted]
        estimate = crossed_rate(values, tasks, goals, np.random.default_rng(_SEED), confidence)
        share = float(values.mean())
        return estimate if estimate.value is not None else msgspec.structs.replace(estimate, value=share)

    return rate


def _count(trials: list[_Trial], finding: str) -> int:
    return sum(trial.recorded[finding] for trial in trials if trial.recorded is not None)


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


def _share(estimate: Estimate, n: int) -> str:
    if estimate.value is None:
        return NONE
    bounds = NO_INTERVAL if estimate.low is None else interval(estimate)
    return f"{percent(estimate.value)} ({bounds}), {n:,}/{estimate.n:,}"


Log = Mapping[str, Any]
OWN: dict[str, str] = {}
DONE, REACHED = "utility", "security"  # AgentDojo's names: the user's task, the injection's goal
IDLE = "utility_of_nothing"  # heredity's own: the task counts as done if nothing is done
SCHEME = "agentdojo:"  # of the threat that names an injection task
MAX_BYTES = 1 << 24  # of one log; AgentDojo's own have up to 200 KB
_DEPTH = "*/*/*/*/*.json"  # below a folder of runs
_OF_GOALS = "injection_task"  # begins the id of an injection task that was asked directly
_TEXTS = ("suite_name", "pipeline_name", "user_task_id")
_OPTIONAL_TEXTS = ("injection_task_id", "attack_type", "error", "benchmark_version")


def is_mine(path: Path, start: bytes) -> bool:
    """Whether a path is a folder with logs, or a log by its first keys."""
    if path.is_dir():
        return next(iter(logs(path)), None) is not None
    return path.suffix.lower() == ".json" and start.lstrip()[:1] == b"{" and b'"suite_name"' in start


def logs(folder: Path) -> list[Path]:
    """The logs of a folder: of runs, or of a part of them."""
    return sorted(folder.glob(_DEPTH)) or sorted(each for each in folder.rglob("*.json") if each.is_file())


def read(path: Path) -> Iterator[RecordedAnswer]:
    """Every conversation, with the number of its log. Raises BadInput for a single log that is damaged."""
    if not path.is_dir():
        log = read_log(path.resolve())
        yield from () if _is_of_goal(log) else (_raw(log, 1),)
        return
    for number, each in enumerate(logs(path), 1):
        if (whole_log := _whole(each)) is not None and not _is_of_goal(whole_log):
            yield _raw(whole_log, number)


def lacking(path: Path) -> Lacking | None:
    """The damaged logs of a folder."""
    if not path.is_dir():
        return None
    paths = logs(path)
    return Lacking(path.resolve(), sum(_whole(each) is None for each in paths), len(paths), "log")


def read_log(path: Path) -> Log:
    """A log, with the fields that are read checked. Raises BadInput for any other file."""
    try:
        n_bytes = path.stat().st_size
        if n_bytes > MAX_BYTES:
            raise BadInput(path, f"has {n_bytes:,} bytes; at most {MAX_BYTES:,} are read")
        log = json.loads(read_file(path))
    except OSError as error:
        raise BadInput(path, f"cannot be read: {error.strerror}", code="unreadable-file") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(path, f"not JSON: {error}", code="not-json") from None
    if why := _wrong(log):
        raise BadInput(path, f"not a log of AgentDojo: {why}")
    checked: Log = log
    return checked


def _whole(path: Path) -> Log | None:
    """A log; None if it is damaged."""
    try:
        return read_log(path)
    except BadInput:
        return None


def _wrong(log: object) -> str:
    """The first field that is missing or malformed; "" for a whole log."""
    if not isinstance(log, dict):
        return "it is no object"
    for name in (*_TEXTS, *_OPTIONAL_TEXTS):
        value = log.get(name)
        if not (isinstance(value, str) and (value.strip() or name == "error")) and (
            name in _TEXTS or value is not None
        ):
            return f"`{name}` is no text"
    for name in (DONE, REACHED):
        if not isinstance(log.get(name), bool | None):
            return f"`{name}` is neither true nor false"
    messages = log.get("messages")
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        return "`messages` is no list of messages"
    if not any(each.get("role") == "user" and message_text(each).strip() for each in messages):
        return "no message of the user"
    return ""


def _is_message(value: object) -> bool:
    """Whether a value is a message: its content a text, null or a list of parts with a text each."""
    if not isinstance(value, dict):
        return False
    content = value.get("content")
    parts = content if isinstance(content, list) else [{"content": content}]
    return all(isinstance(each, dict) and isinstance(each.get("content"), str | None) for each in parts)


def _is_of_goal(log: Log) -> bool:
    return str(log["user_task_id"]).startswith(_OF_GOALS)


def _raw(log: Log, number: int) -> RecordedAnswer:
    messages, injection = log["messages"], log.get("injection_task_id")
    last = max((i for i, each in enumerate(messages) if each.get("role") == "assistant"), default=None)
    attack = log.get("attack_type") or "none"
    suite, task = str(log["suite_name"]), str(log["user_task_id"])
    asked = (message_text(each) for each in messages if each.get("role") == "user")
    row = {
        "prompt": next(text for text in asked if text.strip()),
        "response": None if last is None else message_text(messages[last]),
        "model": log["pipeline_name"],
        "category": suite,
        "id": task if injection is None else f"{task} {attack} {injection}",
        "kind": "benign" if injection is None else "breach",
        "cluster": task,
        "error": _error(log, last is not None),
        "suite": suite,
        "attack": attack,
        "injection": injection,
    }
    names = (DONE, IDLE) if injection is None else (DONE, REACHED)
    of_task = (str(log.get("benchmark_version") or ""), suite, attack, injection or "")
    threat = SCHEME + "/".join(clean_text(part).replace("/", "_") for part in of_task)
    return RecordedAnswer(
        line=number,
        row=row,
        tool_calls=tuple(_calls(messages)),
        shown=messages[:last] if last else messages,
        threats=() if injection is None else (threat,),
        check=Check("refusal") if injection is None else Check("recorded", settings={"finding": REACHED}),
        useful=Usefulness(recorded=DONE) if injection is None else None,
        recorded={name: log[name] for name in names if isinstance(log.get(name), bool)},
    )


def _error(log: Log, is_answered: bool) -> str | None:
    """Why a log has no verdict. AgentDojo writes the verdicts of an error, too: utility false, security
    true."""
    if log.get("error") is not None:
        return str(log["error"]) or "an error without words"
    if not isinstance(log.get(DONE), bool) or not isinstance(log.get(REACHED), bool):
        return "the run was stopped before AgentDojo judged it"
    return None if is_answered else "the agent wrote nothing"


def _calls(messages: list[Log]) -> Iterator[ToolCall]:
    """The calls of all messages, in order."""
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict) and isinstance(name := call.get("function"), str) and name:
                arguments = call.get("args")
                yield clean_call(ToolCall(name, arguments if isinstance(arguments, dict) else {}))
