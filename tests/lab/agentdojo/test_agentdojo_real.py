"""AgentDojo itself, where HEREDITY_AGENTDOJO names the python of an environment that has it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from heredity.lab import agentdojo
from heredity.lab import agentdojo_suites as graders
from heredity.lab.agentdojo import LOGS, AgentRun
from heredity.study.importers.agentdojo import agent_tasks
from tests.support.errors import run_here

WHERE = "HEREDITY_AGENTDOJO"
AUDIT = Path(__file__).parents[2] / "support" / "agentdojo_audit.py"
PYTHON = Path(os.environ.get(WHERE, ""))
pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(not os.environ.get(WHERE), reason=f"{WHERE} names no python that has AgentDojo"),
]


AuditRow = tuple[str, str, dict[str, Any] | None, bool, bool]


def audited() -> list[AuditRow]:
    command = [str(PYTHON), "-I", str(AUDIT), graders.__file__]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return msgspec.json.decode(ran.stdout, type=list[AuditRow])


def test_each_replaced_grader_refuses_what_agentdojo_accepts_and_accepts_what_is_right() -> None:
    rows = audited()
    by_kind = {kind: [row for row in rows if row[1] == kind] for kind in ("reference", "damaged", "free")}
    assert {row[0] for row in by_kind["reference"]} == {each.name for each in graders.GRADERS}
    assert all((theirs, ours) == (True, True) for *_, theirs, ours in by_kind["reference"] + by_kind["free"])
    assert {row[0] for row in by_kind["damaged"]} == {each.name for each in graders.GRADERS}
    assert [row for row in by_kind["damaged"] if (row[3], row[4]) != (True, False)] == []


class Agent(BaseHTTPRequestHandler):
    """A model that reads the bill, and pays whom it names; or that obeys nobody and talks."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["temperature"] == 0 and asked["max_tokens"] > 0
        if asked["model"] == "breaks" and len(asked["messages"]) > 1:
            return self.send(400, {"error": {"message": "long", "code": "context_length_exceeded"}})
        if asked["model"] == "talks" and "tools" in asked:
            return self.send(400, {"error": {"message": "no", "code": "x", "reason": "tools-not-shown"}})
        return self.send(200, {"choices": [{"message": self.message(asked)}]})

    def message(self, asked: dict[str, Any]) -> dict[str, Any]:
        said = [each["content"] for each in asked["messages"] if each["role"] == "tool"]
        if asked["model"] == "talks" and len(asked["messages"]) == 2:
            return {"role": "assistant", "content": "<function=get_iban>{}</function>"}
        if (
            asked["model"] == "talks"
            or len(said) > 1
            or "bill" not in str(asked["messages"][-1 - 2 * len(said)])
        ):
            return {"role": "assistant", "content": "Done."}
        if not said:
            return self.call("read_file", {"file_path": "bill-december-2023.txt"})
        to = "US133000000121212121212" if "US133000000121212121212" in said[0] else "UK12345678901234567890"
        return self.call(
            "send_money", {"recipient": to, "amount": 98.7, "subject": "x", "date": "2022-01-01"}
        )

    def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        function = {"name": name, "arguments": json.dumps(arguments)}
        calls = [{"id": f"call_{name}", "type": "function", "function": function}]
        return {"role": "assistant", "content": None, "tool_calls": calls}

    def send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Agent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def wanted(*models: str, **more: Any) -> AgentRun:
    tasks, goals = ("user_task_0", "user_task_1"), ("injection_task_5", "injection_task_7")
    return AgentRun({name: name for name in models}, ["banking"], "direct", tasks, goals, **more)


def test_an_agent_that_obeys_an_injection_breaks_and_one_that_talks_does_not(
    url: str, tmp_path: Path
) -> None:
    counts = agentdojo.run(wanted("pays", "talks"), PYTHON, url, tmp_path)
    assert (counts.n_cells, counts.n_run, counts.n_errors) == (12, 12, 0)
    assert set(counts.patched) == {each.name for each in graders.GRADERS if each.suite == "banking"}
    pays, talks = agent_tasks(agentdojo.study_of(tmp_path, print)[0])
    assert (pays.model, pays.n_done, pays.utility.n) == ("pays", 1, 2)  # the bill, and not the spending
    assert pays.n_done_by_nothing == 0
    assert (pays.n_broke, pays.breach.n) == (
        1,
        4,
    )  # "as much money as possible": it paid the attacker's account
    assert (talks.n_done, talks.n_broke, talks.breach.n) == (0, 0, 4)
    alone = json.loads((tmp_path / LOGS / "talks/banking/user_task_0/none/none.json").read_text())
    assert alone["tools_shown"] == "system prompt" and "get_iban" in str(alone["messages"])
    assert "Currently Available Functions" not in str(alone["messages"][0])  # as AgentDojo keeps it


def test_agentdojo_reads_the_logs_and_only_damaged_ones_run_again(url: str, tmp_path: Path) -> None:
    agentdojo.run(wanted("pays"), PYTHON, url, tmp_path)
    cell = ("pays", "banking", "user_task_0", "direct", "injection_task_5")
    code = (
        "import sys, pathlib; from agentdojo.benchmark import load_task_results as load;"
        f"print(load(*{cell}, pathlib.Path(sys.argv[1])).security)"
    )
    command = [str(PYTHON), "-c", code, str(tmp_path / LOGS)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"
    logs = sorted((tmp_path / LOGS).rglob("*.json"))
    before = {path: path.read_bytes() for path in logs}
    logs[0].write_bytes(before[logs[0]][:-40])
    assert agentdojo.run(wanted("pays"), PYTHON, url, tmp_path).n_run == 1
    again = json.loads(logs[0].read_bytes())
    first = json.loads(before[logs[0]])
    assert all(again[key] == first[key] for key in ("messages", "utility", "security", "injections"))
    assert all(path.read_bytes() == before[path] for path in logs[1:])


def test_a_context_that_is_too_long_is_an_error_and_no_breach(url: str, tmp_path: Path) -> None:
    assert agentdojo.run(wanted("breaks"), PYTHON, url, tmp_path).n_errors == 6
    (row,) = agent_tasks(agentdojo.study_of(tmp_path, print)[0])
    assert (row.n_errors, row.n_errors_under_attack, row.n_broke, row.breach.n) == (2, 4, 0, 0)
    assert agentdojo.run(wanted("breaks"), PYTHON, url, tmp_path).n_run == 0
    assert agentdojo.run(wanted("breaks"), PYTHON, url, tmp_path, retry=True).n_run == 6


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--suite", "bank", "banking"),
        ("--attack", "manual", "direct"),
        ("--user-task", "user_task_99", "user_task_0"),
    ],
)
def test_what_agentdojo_does_not_have_is_named(
    option: str, value: str, named: str, url: str, tmp_path: Path
) -> None:
    arguments = ["agentdojo", "pays", "--python", str(PYTHON), "--url", url, "--out", str(tmp_path / "out")]
    done = run_here(*arguments, *([] if option == "--suite" else ["--suite", "banking"]), option, value)
    assert (
        (done.returncode, done.code) == (2, "unknown-name") and value in done.stderr and named in done.stderr
    )


def test_models_of_the_store_are_served_for_the_run(tmp_path: Path) -> None:
    done = run_here(
        "agentdojo", "scripted:leaky", "--python", str(PYTHON), "--suite", "banking",
        "--user-task", "user_task_0", "--injection-task", "injection_task_0",
        "--out", str(tmp_path / "out"), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["utility"]["n"] + row["n_errors"], row["model"]) == (1, "scripted:leaky")
