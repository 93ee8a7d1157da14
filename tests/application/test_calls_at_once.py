"""Calls of several conversations at once: what they share, what holds up what, and how they are ended."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

import heredity
from heredity.application.sandbox import ConversationLimits
from heredity.application.servers import McpServer, ServerSource
from heredity.application.spec import Application
from heredity.application.toolbox import MAX_PROCESSES, RecordedResults, Toolbox
from heredity.core.errors import BadArgument, ToolFailure
from heredity.core.records import Tool
from tests.support import running_tools as given
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # most start a process
DESK = Application(
    "desk", system="Be brief.",
    tools=(
        *map(heredity.tool, (given.lookup, given.clock, given.hang, given.meet)),
        *(heredity.tool(each, is_stateful=True) for each in (given.note, given.notes)),
    ),
)  # fmt: skip


def tool(name: str) -> Tool:
    return next(each for each in DESK.tools if each.name == name)


def limited(**limits: float) -> Application:
    return msgspec.structs.replace(DESK, limits=msgspec.convert(limits, ConversationLimits))


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(given.RAN, str(tmp_path / "ran"))
    return tmp_path / "ran"


def test_threads_may_share_a_toolbox_and_a_call_that_two_make_at_once_runs_once(ran: Path) -> None:
    n = MAX_PROCESSES + 2  # more conversations with a state than processes are kept
    with Toolbox(DESK) as toolbox, ThreadPoolExecutor(MAX_PROCESSES) as threads:
        sessions = [toolbox.session() for _ in range(n)]

        def converse(number: int) -> tuple[str, str]:
            session = sessions[number]
            session.call(tool("note"), {"text": "shared"})
            session.call(tool("note"), {"text": f"own {number}"})
            return session.call(tool("clock"), {}), session.call(tool("notes"), {})

        found = list(threads.map(converse, range(n)))
        assert len({time for time, _ in found}) == 1 and ran.read_text() == "clock\n"
        assert [notes for _, notes in found] == [f'["shared","own {i}"]' for i in range(n)]
        first = [session.taken()[0].is_recorded for session in sessions]
        assert first.count(False) == 1 and len(toolbox._own) <= MAX_PROCESSES


def test_calls_of_one_source_that_wait_for_each_other_run_in_processes_of_their_own(ran: Path) -> None:
    with Toolbox(DESK) as toolbox, ThreadPoolExecutor(3) as threads:
        calls = [
            threads.submit(toolbox.session().call, tool("meet"), {"name": name, "of": 3})
            for name in ("ana", "bo", "cy")
        ]
        assert [each.result() for each in calls] == ["ana met.", "bo met.", "cy met."]
        (shared,) = toolbox._shared.values()
        assert len(shared._all) == 3


def test_calls_that_are_quick_enough_share_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heredity.application.toolbox.PATIENCE", 20.0)  # of a machine that is never busy
    with Toolbox(DESK) as toolbox, ThreadPoolExecutor(8) as threads:
        calls = [
            threads.submit(toolbox.session().call, tool("lookup"), {"number": number}) for number in range(40)
        ]
        assert [each.result() for each in calls] == [f"Order {n} is sent (short)." for n in range(40)]
        (shared,) = toolbox._shared.values()
        assert len(shared._all) == 1


def test_a_call_that_hangs_holds_up_no_other_and_a_stop_ends_it_without_a_result(ran: Path) -> None:
    results = RecordedResults()
    with Toolbox(DESK, results) as toolbox, ThreadPoolExecutor(1) as threads:
        hung, other = toolbox.session(), toolbox.session()
        call = threads.submit(hung.call, tool("hang"), {})
        assert other.call(tool("meet"), {"name": "ana", "of": 2}) == "ana met."  # hang is the other
        assert not call.done()
        toolbox.stop()
        assert call.result(timeout=60) == "error: the tool's process died"
        assert [row.tool for row in results] == ["meet"]
        with raises(ToolFailure, "tool-failure"):
            other.call(tool("lookup"), {"number": 1})


def test_the_time_of_a_call_does_not_begin_while_it_waits_for_its_turn(ran: Path) -> None:
    with Toolbox(limited(calls_at_once=1, tool_seconds=5)) as toolbox, ThreadPoolExecutor(1) as threads:
        hung = threads.submit(toolbox.session().call, tool("hang"), {})
        while not ran.exists():
            time.sleep(0.01)
        assert toolbox.session().call(tool("lookup"), {"number": 1}) == "Order 1 is sent (short)."
        assert hung.result() == "error: the tool took more than 5 s"  # before: one call at a time
        (shared,) = toolbox._shared.values()
        assert len(shared._all) == 1


def test_conversations_share_the_one_process_of_a_servers_command_and_no_connection_to_a_url() -> None:
    limits = ConversationLimits()
    at_home = ServerSource(McpServer("files", command=("server",)), "", limits)
    away = ServerSource(McpServer("files", url="https://tools.example/mcp"), "", limits)
    assert at_home.is_single and not away.is_single


def test_at_least_one_call_runs_at_once() -> None:
    with raises(BadArgument, "bad-setting"):
        ConversationLimits(calls_at_once=0)
