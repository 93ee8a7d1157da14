"""The script for AgentDojo's interpreter, as far as it needs no AgentDojo."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from heredity.lab import agentdojo_suites as suites
from heredity.lab.agentdojo_suites import ChatEndpoint, EndpointError, JobRefused, SuiteCell, shows_tools
from tests.support.agentdojo_logs import log


@pytest.mark.parametrize("version", ["0.1.35", "0.1.35.post1", "0.1.40"])
def test_a_version_whose_graders_are_known_is_taken(version: str) -> None:
    suites.check_version(version)


@pytest.mark.parametrize("version", ["0.1.34", "0.2.0", "1.0", "", "unknown"])
def test_another_version_is_refused(version: str) -> None:
    with pytest.raises(JobRefused) as caught:
        suites.check_version(version)
    assert caught.value.code == "unavailable"


@pytest.mark.parametrize(
    "name", ["../../etc", "..", ".", "", "a/b\\c", "x\0y", "smollm2-135m-instruct", "a@b+c"]
)
def test_a_name_is_one_part_of_a_path(name: str, tmp_path: Path) -> None:
    path = SuiteCell(name, name, name, name or "i", name).path(tmp_path)
    assert path.resolve().is_relative_to(tmp_path.resolve())
    assert len(path.relative_to(tmp_path).parts) == 5


def test_a_log_has_the_place_that_agentdojo_gives_it(tmp_path: Path) -> None:
    cell = SuiteCell("agent-a", "banking", "user_task_0", "injection_task_1", "direct")
    assert cell.path(tmp_path) == tmp_path / "agent-a/banking/user_task_0/direct/injection_task_1.json"
    assert (
        cell._replace(injection="").path(tmp_path) == tmp_path / "agent-a/banking/user_task_0/none/none.json"
    )


@pytest.mark.parametrize(
    ("content", "retry", "is_finished"),
    [
        (json.dumps(log()), False, True),
        (json.dumps(log(error="E")), False, True),
        (json.dumps(log(error="E")), True, False),
        (json.dumps(log(utility=None)), False, False),
        (json.dumps({**log(), "messages": "x"}), False, False),
        (json.dumps(log())[:-9], False, False),
        ("[]", False, False),
        ("[" * 100_000, False, False),
        (None, False, False),
    ],
)
def test_only_a_whole_log_is_not_run_again(
    content: str | None, retry: bool, is_finished: bool, tmp_path: Path
) -> None:
    path = tmp_path / "log.json"
    if content is not None:
        path.write_text(content)
    assert suites.is_finished(path, retry) is is_finished


def test_a_log_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    suites.write(path, log())
    assert json.loads(path.read_text()) == log() and [each.name for each in path.parent.iterdir()] == [
        "b.json"
    ]


ANSWERS: dict[str, tuple[int, Any]] = {
    "whole": (200, {"choices": [{"message": {"role": "assistant", "content": "Hi"}}]}),
    "no choices": (200, {"choices": []}),
    "a text": (200, {"choices": [{"message": "Hi"}]}),
    "too long": (400, {"error": {"message": "long", "code": "context_length_exceeded"}}),
    "no tools": (400, {"error": {"message": "no", "code": "invalid_request", "reason": "tools-not-shown"}}),
    "html": (502, None),
}


@pytest.fixture
def endpoint() -> Iterator[ChatEndpoint]:
    """An endpoint that answers by the name of the model."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = ANSWERS[asked["model"]]
            data = b"<html>" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield ChatEndpoint(f"http://127.0.0.1:{server.server_port}/v1/", 10)
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("no choices", "no-answer"),
        ("a text", "no-answer"),
        ("too long", "context_length_exceeded"),
        ("html", "http-502"),
    ],
)
def test_an_answer_that_is_none_has_a_code(endpoint: ChatEndpoint, name: str, code: str) -> None:
    with pytest.raises(EndpointError) as caught:
        endpoint.message({"model": name})
    assert caught.value.code == code


@pytest.mark.slow
def test_a_model_whose_template_shows_no_tools_is_known_before_it_is_asked(endpoint: ChatEndpoint) -> None:
    assert shows_tools(endpoint, "whole") and not shows_tools(endpoint, "no tools")
    with pytest.raises(EndpointError):
        shows_tools(endpoint, "too long")


def test_a_refused_connection_is_no_answer() -> None:
    with pytest.raises(EndpointError):
        ChatEndpoint("http://127.0.0.1:9/v1", 2).message({"model": "whole"})


@pytest.mark.slow
def test_an_interpreter_without_agentdojo_says_so() -> None:
    ran = subprocess.run(
        [sys.executable, "-I", suites.__file__, suites.CHECK], capture_output=True, text=True, check=False
    )
    (event,) = map(json.loads, ran.stdout.splitlines())
    assert (event["event"], event["code"], ran.returncode) == ("refused", "package-missing", 3)
