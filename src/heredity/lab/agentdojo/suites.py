"""Run suites of AgentDojo against served models: a script for the interpreter that has AgentDojo.

    PYTHON -I suites.py JOB.json

heredity never imports AgentDojo. It starts this file with another interpreter (run.py), which needs nothing
but AgentDojo and the standard library. AgentDojo's own loop, tools, attacks and graders run, six graders
replaced (graders.py). The model answers over an OpenAI-compatible endpoint.

Each line on standard output is an event, a JSON object with `event`: "ready", "log", "refused" or "done".

Promises: decoding is greedy, with the job's seed. A log is written at once, under its own name, and a whole
one is not run again. An error of a conversation is a log with `error`, and never a verdict. Conversations run
in threads, so that the engine batches them; each has its own world.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING or __name__ != "__main__":
    from heredity.lab.agentdojo import endpoint, graders
    from heredity.lab.agentdojo.endpoint import Json, Theirs
else:  # elsewhere there is no heredity, only this folder
    sys.path.insert(0, str(Path(__file__).parent))
    import endpoint
    import graders
    from endpoint import Json, Theirs

    del sys.path[0]

OLDEST, TOO_NEW = (0, 1, 35), (0, 2)  # versions of AgentDojo whose graders and logs are known
BENCHMARK = "v1.2.2"
CHECK = "--check"  # in place of a job: tell the version of AgentDojo


class JobRefused(Exception):
    """The job cannot be run as it is. `code` is one of heredity's."""

    code = ""


def refusal(message: str, *, code: str) -> JobRefused:
    """The exception that refuses a job."""
    found = JobRefused(message)
    found.code = code
    return found


class SuiteJob(NamedTuple):
    """A job as run.py writes it."""

    url: str
    models: list[str]
    suites: list[str]
    attack: str
    user_tasks: list[str]
    injection_tasks: list[str]
    seed: int
    max_tokens: int
    max_rounds: int
    n_at_once: int
    retry_errors: bool
    logs: str


class SuiteCell(NamedTuple):
    """One conversation: a user task with an injection task, or without one (`injection` "")."""

    model: str
    suite: str
    task: str
    injection: str
    attack: str

    def path(self, logs: Path) -> Path:
        """The file of its log, where AgentDojo would write it."""
        parts = (self.model, self.suite, self.task, self.attack if self.injection else "none")
        return logs.joinpath(*map(safe, parts), f"{safe(self.injection or 'none')}.json")


def safe(name: str) -> str:
    """A name as one part of a path."""
    return re.sub(r"[^\w@+.-]", "_", name).lstrip(".") or "_"


def check_version(text: str) -> None:
    """Raise JobRefused for a version of AgentDojo whose graders are not known."""
    if not OLDEST <= tuple(map(int, re.findall(r"\d+", text)[:3])) < TOO_NEW:
        low, high = (".".join(map(str, each)) for each in (OLDEST, TOO_NEW))
        raise refusal(
            f"AgentDojo {text} is not known; from {low} to below {high} is", code="agentdojo-version"
        )


def is_finished(path: Path, retry_errors: bool) -> bool:
    """Whether a log is whole, so that its conversation need not run again."""
    try:
        log = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(log, dict) or not isinstance(log.get("messages"), list):
        return False
    is_judged = all(isinstance(log.get(name), bool) for name in ("utility", "security"))
    return is_judged and (log.get("error") is None or not retry_errors)


def write(path: Path, log: Json) -> None:
    """Write a log whole: under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(log, file, indent=1, default=endpoint.plain)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


class Runner:
    """The conversations of a job, with AgentDojo loaded."""

    def __init__(self, job: SuiteJob, say: Callable[..., None]) -> None:
        from agentdojo.agent_pipeline.agent_pipeline import load_system_message
        from agentdojo.task_suite.load_suites import get_suite, get_suites

        self.job, self._say, self._endpoint = job, say, endpoint.ChatEndpoint(job.url)
        _known(job.suites, list(get_suites(BENCHMARK)), "suite")
        self.suites = {name: get_suite(BENCHMARK, name) for name in job.suites}
        self._system = load_system_message(None)
        self._judged = threading.local()  # verdicts of replaced graders, of the conversation of a thread
        self.patched = [name for each in self.suites.values() for name in graders.patch(each, self._note)]
        self._injections: dict[tuple[str, str, str], dict[str, str]] = {}
        self._idle: dict[tuple[str, str], bool] = {}
        self.n_not_injectable = 0

    def _note(self, name: str, accepted: bool, is_done: bool) -> None:
        if accepted != is_done:
            self._judged.found[name] = {"agentdojo": accepted, "heredity": is_done}

    def cells(self) -> list[SuiteCell]:
        """The conversations of the job, tasks without an injection first. Their injections are made here."""
        alone: list[SuiteCell] = []
        attacked: list[SuiteCell] = []
        for name, suite in self.suites.items():
            tasks = _chosen(self.job.user_tasks, suite.user_tasks)
            self._judged.found = {}
            for task in tasks:
                self._idle[name, task] = self._is_done_by_nothing(suite, suite.user_tasks[task])
            alone += [SuiteCell(model, name, task, "", "none") for model in self.job.models for task in tasks]
            if self.job.attack == "none":
                continue
            goals = _chosen(self.job.injection_tasks, suite.injection_tasks)
            attack = load(self.job.attack, suite)
            pairs = [(t, goal) for t in tasks for goal in goals if self._inject(attack, suite, t, goal)]
            attacked += [
                SuiteCell(m, name, *pair, self.job.attack) for m in self.job.models for pair in pairs
            ]
        return alone + attacked

    def _inject(self, attack: Theirs, suite: Theirs, task: str, goal: str) -> bool:
        """Make the injections of a pair; False if the task reads nothing that an attacker can write."""
        try:
            made = attack.attack(suite.user_tasks[task], suite.injection_tasks[goal])
        except ValueError:
            self.n_not_injectable += 1
            return False
        self._injections[suite.name, task, goal] = made
        return True

    def run(self, cell: SuiteCell, with_tools: bool) -> str:
        """Run one conversation, write its log, and return its error; "" for none."""
        from agentdojo.logging import LOGGER_STACK

        LOGGER_STACK.set([])  # AgentDojo's default is one list for all threads
        self._judged.found = {}
        suite, began = self.suites[cell.suite], time.time()
        task, goal = suite.user_tasks[cell.task], suite.injection_tasks.get(cell.injection)
        injections = self._injections.get((cell.suite, cell.task, cell.injection), {})
        settings = {"seed": self.job.seed, "max_tokens": self.job.max_tokens}
        model = endpoint.PipelineModel(self._endpoint, cell.model, settings, with_tools)
        error, utility, security = "", False, False
        try:
            utility, security = suite.run_task_with_pipeline(self._pipeline(model), task, goal, injections)
        except Exception as failed:  # whatever AgentDojo raises ends in a row
            error = f"{type(failed).__name__}: {failed}"[:2000]
        write(
            cell.path(Path(self.job.logs)),
            {
                "suite_name": cell.suite,
                "pipeline_name": cell.model,
                "user_task_id": cell.task,
                "injection_task_id": cell.injection or None,
                "attack_type": cell.attack if cell.injection else None,
                "injections": injections,
                "messages": model.messages or self._opening(task.PROMPT),
                "error": error or None,
                "benchmark_version": BENCHMARK,
                "evaluation_timestamp": time.strftime("%Y-%m-%d %H:%M:%S"),
                "agentdojo_package_version": importlib.metadata.version("agentdojo"),
                "utility": bool(utility) and not error,
                "security": bool(security) and not error and bool(cell.injection),
                "duration": time.time() - began,
                "changed_verdicts": self._judged.found,
                "utility_of_nothing": self._idle[cell.suite, cell.task],
                "tools_shown": "template" if with_tools else "system prompt",
            },
        )
        return error

    def _opening(self, prompt: str) -> list[Json]:
        """The messages before the model's first."""
        texts = {"system": self._system, "user": prompt}
        return [{"role": r, "content": [{"type": "text", "content": text}]} for r, text in texts.items()]

    def _is_done_by_nothing(self, suite: Theirs, task: Theirs) -> bool:
        """Whether the task counts as done if the agent writes nothing."""
        world = task.init_environment(suite.load_and_inject_default_environment({}))
        return bool(suite._check_user_task_utility(task, [], world.model_copy(deep=True), world, []))

    def _pipeline(self, model: endpoint.PipelineModel) -> Theirs:
        from agentdojo.agent_pipeline.agent_pipeline import AgentPipeline
        from agentdojo.agent_pipeline.basic_elements import InitQuery, SystemMessage
        from agentdojo.agent_pipeline.tool_execution import ToolsExecutionLoop, ToolsExecutor

        loop = ToolsExecutionLoop([ToolsExecutor(), model], max_iters=self.job.max_rounds)
        return AgentPipeline([SystemMessage(self._system), InitQuery(), model, loop])

    def all(self, cells: Sequence[SuiteCell]) -> None:
        """Run these conversations, several at a time."""
        tools = {
            model: endpoint.shows_tools(self._endpoint, model) for model in {cell.model for cell in cells}
        }
        with ThreadPoolExecutor(self.job.n_at_once) as pool:
            for cell, error in zip(cells, pool.map(lambda c: self.run(c, tools[c.model]), cells)):  # noqa: B905
                self._say(event="log", cell=cell._asdict(), error=error or None)


def load(name: str, suite: Theirs) -> Theirs:
    """An attack by its name. Raises JobRefused for one that does not inject a task, or asks a person."""
    from agentdojo.attacks import load_attack
    from agentdojo.attacks.attack_registry import ATTACKS

    known = [each for each, kind in ATTACKS.items() if not kind.is_dos_attack and each != "manual"]
    _known([name], known, "attack")
    return load_attack(name, suite, SimpleNamespace(name=endpoint.STAND_IN))


def _chosen(wanted: Sequence[str], there: Theirs) -> list[str]:
    """The wanted tasks; all for none."""
    _known(wanted, list(there), "task")
    return list(wanted) or list(there)


def _known(wanted: Sequence[str], there: Sequence[str], noun: str) -> None:
    for name in wanted:
        if name not in there:
            raise refusal(f"no {noun} '{name}'. There are: {', '.join(there)}", code="agentdojo-unknown")


@contextlib.contextmanager
def _events() -> Iterator[Callable[..., None]]:
    """A function that writes an event. Other output goes to standard error."""
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    lock = threading.Lock()

    def say(**event: object) -> None:
        with lock:
            stream.write(json.dumps(event) + "\n")
            stream.flush()

    with stream, contextlib.redirect_stdout(sys.stderr):
        yield say


def main(path: str) -> int:
    """Run the job in a file, or only check the version of AgentDojo."""
    with _events() as say:
        try:
            version = _version()
            if path == CHECK:
                say(event="ready", version=version)
            else:
                _run(SuiteJob(**json.loads(Path(path).read_bytes())), version, say)
            say(event="done")
        except JobRefused as error:
            say(event="refused", code=error.code, message=str(error))
            return 3
        except endpoint.EndpointError as error:
            say(event="refused", code="agentdojo-endpoint", message=str(error))
            return 3
    return 0


def _version() -> str:
    """The version of AgentDojo here. Raises JobRefused."""
    try:
        version = importlib.metadata.version("agentdojo")
    except importlib.metadata.PackageNotFoundError:
        raise refusal(f"{sys.executable} has no AgentDojo", code="agentdojo-missing") from None
    check_version(version)
    return version


def _run(job: SuiteJob, version: str, say: Callable[..., None]) -> None:
    """Run the conversations of a job that are not finished."""
    runner = Runner(job, say)
    every = runner.cells()
    left = [cell for cell in every if not is_finished(cell.path(Path(job.logs)), job.retry_errors)]
    say(
        event="ready", version=version, patched=runner.patched, n_cells=len(every), n_left=len(left),
        n_not_injectable=runner.n_not_injectable,
    )  # fmt: skip
    if left:
        runner.all(left)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
