"""Run AgentDojo's suites (arXiv 2406.13352) with the interpreter that has it, and make a study of the logs.

    run.json         what was asked: models, attack, decoding
    logs/            AgentDojo's logs, one a conversation
    study/           the study of the logs
    server.log       the output of `heredity serve`
    agentdojo.log    what AgentDojo printed

Promises: a finished conversation is not run again, and a damaged log is. A folder holds one run: other models
of the same names, or another attack, seed or length of answers, are refused. The server ends with us.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from heredity.core.errors import NotComparable, Unavailable, UnknownName, UsageError
from heredity.core.files import Lock, open_handle, read_file, refuse_linked_folders, write_atomic
from heredity.core.progress import Meter, Watch
from heredity.core.records import SCHEMA, Record
from heredity.engines.vllm import ServerProgram, free_port
from heredity.lab import agentdojo_suites as suites
from heredity.lab.runner import Log, read_record
from heredity.lineage.store import Store
from heredity.study import importers
from heredity.study.importers import ImportOptions, Summary

RUN, LOGS, STUDY, OUTPUT, SERVER = "run.json", "logs", "study", "agentdojo.log", "server.log"
SUITES = ("workspace", "travel", "banking", "slack")
ATTACK = "important_instructions"
MAX_TOKENS, MAX_ROUNDS, AT_ONCE = 512, 15, 8
_JOB = "job.json"
_READY_SECONDS = 600.0  # to load the models
_LAST = 300  # characters of the output that an error shows


@dataclass(frozen=True)
class AgentRun:
    """The settings of a run.

    models      id by name, as the endpoint has the name
    suites      of AgentDojo
    attack      its name at AgentDojo; "none" for tasks without an injection only
    user_tasks, injection_tasks   () for all of the suites
    max_tokens  of one answer
    max_rounds  of answers and tool results of one task
    at_once     conversations at the same time
    """

    models: Mapping[str, str]
    suites: Sequence[str] = SUITES
    attack: str = ATTACK
    user_tasks: Sequence[str] = ()
    injection_tasks: Sequence[str] = ()
    seed: int = 0
    max_tokens: int = MAX_TOKENS
    max_rounds: int = MAX_ROUNDS
    at_once: int = AT_ONCE


class RunFile(Record, frozen=True):
    """run.json: what answers of one folder have in common."""

    models: dict[str, str]
    attack: str
    seed: int
    max_tokens: int
    max_rounds: int
    benchmark: str = suites.BENCHMARK
    schema: int = SCHEMA


class ConversationCounts(NamedTuple):
    """Conversations of a run. n_not_injectable: pairs whose task reads nothing that an attacker can write."""

    version: str  # of AgentDojo
    n_cells: int
    n_run: int
    n_errors: int  # of those that were run now
    n_not_injectable: int
    patched: tuple[str, ...]  # tasks with a grader of ours


class _Event(msgspec.Struct):
    """A line of the script."""

    event: str
    version: str = ""
    patched: tuple[str, ...] = ()
    n_cells: int = 0
    n_left: int = 0
    n_not_injectable: int = 0
    error: str | None = None
    code: str = ""
    message: str = ""


@contextmanager
def serving(names: Sequence[str], store: Store, log: Path) -> Iterator[str]:
    """The address of a server of these models, which runs as long as the block. Raises Unavailable."""
    url = f"http://127.0.0.1:{(port := free_port())}/v1"
    command = [sys.executable, "-m", "heredity", "serve", *names, "--port", str(port)]
    environment = {"HEREDITY_STORE": str(store.root)}
    if store.wanted_device is not None:
        environment["HEREDITY_DEVICE"] = str(store.wanted_device)
    server = ServerProgram(command, f"{url}/models", log, _READY_SECONDS, environment)
    try:
        yield url
    finally:
        server.close()


def run(
    wanted: AgentRun, python: Path, url: str, folder: Path, watch: Watch | None = None, *, retry: bool = False
) -> ConversationCounts:
    """Run what is not finished, against the endpoint at `url`. python: the interpreter that has AgentDojo.

    retry: run again what ended in an error. Raises UsageError for a suite, task or attack that AgentDojo does
    not have. Raises Unavailable without a known version of it, NotComparable for the folder of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder):
        refuse_linked_folders(folder, LOGS)
        path = folder / RUN
        now = RunFile(dict(wanted.models), wanted.attack, wanted.seed, wanted.max_tokens, wanted.max_rounds)
        if path.exists():
            before = read_record(path, RunFile)
            old, new = _compared(before), _compared(now)
            for name in old.keys() & new.keys():
                if old[name] != new[name]:
                    raise NotComparable(
                        f"{path.parent} holds another run: {name} was {old[name]}, and is {new[name]}. "
                        "Choose another --out.",
                        code="another-study",
                    )
            # New models and tasks may be added.
            now = msgspec.structs.replace(now, models=before.models | now.models)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(now), indent=1) + b"\n")
        job = suites.SuiteJob(
            url, list(wanted.models), list(wanted.suites), wanted.attack, list(wanted.user_tasks),
            list(wanted.injection_tasks), wanted.seed, wanted.max_tokens, wanted.max_rounds, wanted.at_once,
            retry, str((folder / LOGS).resolve()),
        )  # fmt: skip
        write_atomic(folder / _JOB, json.dumps(job._asdict()).encode())
        return _counted(_events(python, folder, str(folder / _JOB)), watch)


def check(python: Path, folder: Path) -> str:
    """The version of AgentDojo of an interpreter. Raises Unavailable for none, or one that is not known."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = [event.version for event in _events(python, folder, suites.CHECK)]
    return versions[0]


def study_of(folder: Path, log: Log) -> tuple[Path, Summary]:
    """The study of the logs in a run's folder. One of fewer logs, or of others, gets another name."""
    made = folder / STUDY
    try:
        return made, importers.import_files([folder / LOGS], made, ImportOptions())
    except NotComparable:
        number = next(n for n in range(1, 1 << 20) if not (folder / f"{STUDY}-{n}").exists())
        made.rename(earlier := folder / f"{STUDY}-{number}")
        log(f"the logs changed: the study before is in {earlier}")
    return made, importers.import_files([folder / LOGS], made, ImportOptions())


def _compared(run: RunFile) -> dict[str, object]:
    """The settings of a run by name, and its models by theirs."""
    named = {f"the model {name}": ident[:12] for name, ident in run.models.items()}
    return {name: getattr(run, name) for name in RunFile.__struct_fields__ if name != "models"} | named


def _events(python: Path, folder: Path, argument: str) -> Iterator[_Event]:
    """The events of the script. Raises Unavailable if it ends without its last."""
    script = Path(suites.__file__)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with os.fdopen(open_handle(folder / OUTPUT, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as output:
        try:
            process = subprocess.Popen(
                [str(python), "-I", str(script), argument],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
            )
        except OSError as error:
            raise UsageError(
                f"{python} does not start: {error.strerror}. Name the interpreter of an environment with "
                "AgentDojo: --python ENV/bin/python"
            ) from None
        is_done = False
        try:
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    event = msgspec.json.decode(line, type=_Event)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    raise Unavailable(f"{line[:80]!r} is no event of the script: {_tail(folder)}") from None
                if event.event == "refused":
                    kind = UsageError if event.code == UnknownName.code else Unavailable
                    raise kind(f"{event.message}.", code=event.code)
                is_done = event.event == "done"
                yield event
            process.wait()
        finally:
            process.kill()
            process.communicate()
    if not is_done:
        raise Unavailable(f"AgentDojo ended with code {process.returncode}: {_tail(folder)}")


def _tail(folder: Path) -> str:
    text = read_file(folder / OUTPUT)[-_LAST:].decode("utf-8", "replace")
    return f"{' / '.join(text.split(chr(10))[-4:]).strip(' /') or 'it printed nothing'} ({folder / OUTPUT})"


def _counted(events: Iterator[_Event], watch: Watch | None) -> ConversationCounts:
    counts = ConversationCounts("", 0, 0, 0, 0, ())
    meter: Meter | None = None
    for event in events:
        if event.event == "ready":
            counts = ConversationCounts(
                event.version, event.n_cells, 0, 0, event.n_not_injectable, event.patched
            )
            meter = Meter(watch, "ask", event.n_cells)
            for _ in range(event.n_cells - event.n_left):
                meter.had()
        elif event.event == "log" and meter is not None:
            is_error = event.error is not None
            counts = counts._replace(n_run=counts.n_run + 1, n_errors=counts.n_errors + is_error)
            meter.tick(is_error)
    if meter is not None:
        meter.close()
    return counts
