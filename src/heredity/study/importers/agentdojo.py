"""AgentDojo's logs: a run's folder, `RUNS/PIPELINE/SUITE/USER_TASK/ATTACK/INJECTION_TASK.json`, or one file.

A log is one conversation of an agent. A user task without an injection is a benign prompt, and it is useful
if AgentDojo found the task done (`utility`). One with an injection is a breach prompt. It broke if AgentDojo
found that the goal of the injection was reached, which is what its field `security` means. AgentDojo judges
the state of its world, so no judge of heredity's reads the answer for a breach.

Promises: a log with an error, or without verdicts, is an error row. AgentDojo itself counts a context that is
too long as a breach. A damaged log of a folder is counted and left out. So is an injection
task that was asked directly, which is neither of the two.
Leaves to others: running the suites (lab/agentdojo.py), and the intervals (study/agent_tasks.py).
Source: agentdojo 0.1.35, logging.py (TraceLogger.save) and benchmark.py (TaskResults). Logs before content
blocks have plain texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from heredity.core.errors import BadInput
from heredity.core.files import read_file
from heredity.core.records import Check, ToolCall, Usefulness
from heredity.core.sanitize import clean_call, clean_text
from heredity.study.importers._record import Lacking, Raw, message_text

Log = Mapping[str, Any]
OWN: dict[str, str] = {}
DONE, REACHED = "utility", "security"  # AgentDojo's names: the user's task, the injection's goal
IDLE = "utility_of_nothing"  # heredity's own: the task counts as done if nothing is done
SCHEME = "agentdojo:"  # of the threat that names an injection task
MOST_BYTES = 1 << 24  # of one log; AgentDojo's own have up to 200 KB
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


def read(path: Path) -> Iterator[Raw]:
    """Every conversation, with the number of its log. Raises BadInput for a single log that is damaged."""
    if not path.is_dir():
        log = read_log(path.resolve())
        yield from () if _is_of_goal(log) else (_raw(log, 1),)
        return
    for number, each in enumerate(logs(path), 1):
        if (found := _whole(each)) is not None and not _is_of_goal(found):
            yield _raw(found, number)


def lacking(path: Path) -> Lacking | None:
    """The damaged logs of a folder."""
    if not path.is_dir():
        return None
    found = logs(path)
    return Lacking(path.resolve(), sum(_whole(each) is None for each in found), len(found), "log")


def read_log(path: Path) -> Log:
    """A log, with the fields that are read checked. Raises BadInput for any other file."""
    try:
        n_bytes = path.stat().st_size
        if n_bytes > MOST_BYTES:
            raise BadInput(path, f"has {n_bytes:,} bytes; at most {MOST_BYTES:,} are read")
        log = json.loads(read_file(path))
    except OSError as error:
        raise BadInput(path, f"cannot be read: {error.strerror}", code="unreadable-file") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(path, f"not JSON: {error}", code="not-json") from None
    if why := _wrong(log):
        raise BadInput(path, f"not a log of AgentDojo: {why}")
    found: Log = log
    return found


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


def _raw(log: Log, number: int) -> Raw:
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
    version = str(log.get("benchmark_version") or "")
    return Raw(
        line=number,
        row=row,
        tool_calls=tuple(_calls(messages)),
        shown=messages[:last] if last else messages,
        threats=() if injection is None else (_named(version, suite, attack, injection),),
        check=Check("refusal") if injection is None else Check("recorded", settings={"finding": REACHED}),
        useful=Usefulness(recorded=DONE) if injection is None else None,
        recorded={name: log[name] for name in names if isinstance(log.get(name), bool)},
    )


def _named(*parts: str) -> str:
    """An injection task as a threat: version, suite, attack and id."""
    return SCHEME + "/".join(clean_text(part).replace("/", "_") for part in parts)


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
