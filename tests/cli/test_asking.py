"""`heredity ask` and `heredity chat` with a model behind a server: its answer appears while it arrives."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("openai")

from heredity.cli import main
from heredity.core.records import Reply, Request
from heredity.deploy.serve.answers import Served
from heredity.deploy.serve.worker import EngineWorker
from heredity.engines import Listener
from heredity.engines.scripted import HELP, ScriptedEngine
from heredity.lineage.store import scripted
from tests.deploy.serve.serving import listening, until
from tests.support.fault_server import FaultServer
from tests.support.remote_models import VARIABLE

GUARDED = 'name = "desk"\nsystem = ""\n[[guards]]\nkind = "links"\n'


class Screen(io.StringIO):
    """A terminal that keeps what it showed after each write."""

    def __init__(self, on_write: Callable[[str], None] = lambda _: None) -> None:
        super().__init__()
        self.states: list[str] = []
        self._on_write = on_write

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        n = super().write(text)
        self.states.append(self.getvalue())
        self._on_write(self.getvalue())
        return n


def run(screen: Screen, *args: str, typed: str = "") -> int:
    with contextlib.redirect_stdout(screen), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(typed))
        return main([*args, "--key-env", VARIABLE])


class Patient(ScriptedEngine):
    """Goes on with its answer once the part before is on the screen."""

    def __init__(self, screen: Screen) -> None:
        super().__init__("helpful")
        self._screen = screen

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        for reply in self.reply(requests):
            for word in reply.text.split():
                listener.hear(reply.key, f"{word} ")
                until(lambda word=word: word in self._screen.getvalue())
            yield msgspec.structs.replace(reply, text=f"{reply.text} ")


def test_an_answer_of_a_server_appears_while_it_arrives() -> None:
    screen = Screen()
    served = Served(scripted("scripted:helpful").record, EngineWorker(Patient(screen)))
    with listening(served) as address:
        assert run(screen, "ask", f"remote:openai:scripted:helpful@{address}/v1", "Is it warm?") == 0
    assert screen.getvalue() == f"{HELP} \n"


def test_a_scripted_model_answers_word_by_word() -> None:
    screen = Screen()
    assert run(screen, "ask", "scripted:helpful", "Is it warm?") == 0
    assert screen.getvalue() == f"{HELP}\n" and "Sure, here is" in screen.states


def test_ask_fails_if_the_stream_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    with FaultServer(always="stream-unended") as server:
        assert run(screen, "ask", f"remote:openai:tiny@{server.base_url('openai')}", "q") == 2
    assert capsys.readouterr().err.startswith("error: ") and screen.getvalue() == "answer to q\n"


def test_chat_takes_the_message_of_a_cut_off_stream_back(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    with FaultServer(modes=["stream-torn"]) as server:
        assert run(screen, "chat", f"remote:openai:tiny@{server.base_url('openai')}", typed="one\ntwo\n") == 0
        asked = [[each["content"] for each in request.body["messages"]] for request in server.asked]
    assert asked == [["one"], ["two"]] and screen.getvalue() == "answ\nanswer to two\n"
    assert "taken back" in capsys.readouterr().err


def test_ctrl_c_ends_an_answer_that_arrives_and_keeps_its_beginning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server stalls after its words, so that nothing else ends the answer."""
    sent: list[str] = []

    def interrupt(shown: str) -> None:
        if shown.endswith("answer to one") and not sent:
            sent.append(shown)
            os.kill(os.getpid(), signal.SIGINT)

    screen, before = Screen(interrupt), signal.getsignal(signal.SIGINT)
    with FaultServer(modes=["stream-stalls"]) as server:
        assert run(screen, "chat", f"remote:openai:tiny@{server.base_url('openai')}", typed="one\ntwo\n") == 0
        history = [each["content"] for each in server.asked[-1].body["messages"]]
    assert history == ["one", "answer to one", "two"] and screen.getvalue().endswith("answer to two\n")
    assert "(stopped)" in capsys.readouterr().err and signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("verb", ["ask", "chat"])
def test_an_answer_that_guards_check_comes_whole_and_one_line_says_so(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = tmp_path / "desk.toml"
    desk.write_text(GUARDED, "utf-8")
    screen = Screen()
    given = ("Is it warm?",) if verb == "ask" else ()
    assert run(screen, verb, "scripted:helpful", *given, "--application", str(desk), typed="Hi\n") == 0
    shown = [state for state in screen.states if state]
    assert shown[0].rstrip("\n") == screen.getvalue().rstrip("\n")
    assert capsys.readouterr().err.count("guards") == 1
