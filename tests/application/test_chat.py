"""A conversation that a person leads: history, tools, stops, errors, and what the terminal shows of it."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import pytest

from heredity.application.conversation import LedConversation, replies
from heredity.application.spec import Application
from heredity.cli import ask, main
from heredity.core.errors import EngineFailure
from heredity.core.progress import phase
from heredity.core.records import Decoding, Reply, Request, Tool
from heredity.engines import AnswerListener, Capabilities, Listener
from heredity.lineage.store import Store
from tests.support.errors import check_refused, raises, run_here

DESK = Application("desk", system="You help.", tools=(Tool("find_order", "Looks it up.", {}, "Sent."),))
CALL = '{"tool": "find_order", "arguments": {}}'


class Echo:
    """An engine that streams its answers by word. The default answer counts the messages that it sees."""

    name, numerics, width = "echo", "", 1

    def __init__(self, answer: Callable[[Request], str] | None = None) -> None:
        self._answer = answer or (lambda request: f"saw {len(request.messages)} messages")
        self.asked: list[Request] = []
        self.on_word: Callable[[], None] = lambda: None

    def render(self, request: Request) -> str:
        return request.prefill

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        return self.stream(requests, AnswerListener(None))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(streamer=self)

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        for request in requests:
            assert request is not None
            self.asked.append(request)
            text, is_cut = "", False
            for word in self._answer(request).split(" "):
                if is_cut := not listener.is_wanted(0):
                    break
                text += (part := f" {word}" if text else word)
                if listener.is_heard(0):
                    listener.hear(0, part)
                self.on_word()
            error = "lost" if text.startswith("fail") else None
            stop = "error" if error else "length" if is_cut else "end"
            yield Reply(0, "", "" if error else text, stop=stop, error=error)

    def close(self) -> None: ...


class Plain(Echo):
    """The same engine without a stream."""

    capabilities = Capabilities()  # type: ignore[assignment]


def talk(
    engine: Echo, led: LedConversation, text: str, listener: AnswerListener | None = None
) -> list[Reply]:
    return [reply for _, reply in replies(engine, led.turn(text), listener)]


def test_each_turn_sees_all_earlier_ones() -> None:
    engine, led = Echo(), LedConversation(None, Decoding(), seed=7)
    texts = [talk(engine, led, text)[0].text for text in ("one", "two", "three")]
    assert texts == ["saw 1 messages", "saw 3 messages", "saw 5 messages"]
    assert [m.content for m in engine.asked[-1].messages][:3] == ["one", "saw 1 messages", "two"]
    assert {request.seed for request in engine.asked} == {7}


def test_turns_inside_an_application_have_no_limit_and_tools_answer() -> None:
    engine = Echo(lambda request: "done" if "Result of" in request.messages[-1].content else CALL)
    led = LedConversation(DESK, Decoding(max_tokens=9))
    for n in range(DESK.max_turns + 2):
        assert [reply.text for reply in talk(engine, led, f"order {n}")] == [CALL, "done"]
    last = engine.asked[-1]
    assert last.messages[0].role == "system" and "Sent." in last.messages[-1].content
    assert last.decoding.max_tokens == 9


def test_parts_are_heard_in_order_and_before_the_reply_that_has_them() -> None:
    heard: list[str] = []
    listener, turn = AnswerListener(heard.append), LedConversation(None, Decoding()).turn("one")
    begin = lambda request: heard.append(f"<{request.messages[-1].content}>")  # noqa: E731
    ((_, reply),) = replies(Echo(), turn, listener, begin)
    assert heard == ["<one>", "saw", " 1", " messages"] and listener.n_heard == len(reply.text)
    listener = AnswerListener(heard.append)
    assert talk(Plain(), LedConversation(None, Decoding()), "two", listener)[0].text == "saw 1 messages"
    assert listener.n_heard == 0, "an engine without a stream is heard at its end only"


def test_a_stopped_answer_is_kept_as_far_as_it_came() -> None:
    engine, led = Echo(), LedConversation(None, Decoding())
    listener = AnswerListener(lambda part: listener.stop() if part == " 1" else None)
    (reply,) = talk(engine, led, "one", listener)
    assert (reply.text, reply.stop) == ("saw 1", "length")
    talk(engine, led, "two")
    assert [m.content for m in engine.asked[-1].messages] == ["one", "saw 1", "two"]


def test_after_an_error_or_an_early_end_the_turn_is_taken_back() -> None:
    engine, led = Echo(lambda r: r.messages[-1].content), LedConversation(None, Decoding())
    talk(engine, led, "one")
    with raises(EngineFailure, "engine-failure", mentions=["lost"]):
        talk(engine, led, "fail")
    turn = led.turn("abandoned")
    next(turn)
    turn.close()
    talk(engine, led, "two")
    assert [m.content for m in engine.asked[-1].messages] == ["one", "one", "two"]


# --- on the terminal --------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def chat(
    engine: Echo, typed: str, monkeypatch: pytest.MonkeyPatch, *args: str, out: io.StringIO | None = None
) -> str:
    """The output of `heredity chat` with `engine` as the model and `typed` through a pipe."""
    monkeypatch.setattr(ask, "_load", lambda *_: engine)
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    out = io.StringIO() if out is None else out
    with contextlib.redirect_stdout(out):
        assert main(["chat", "any", *args]) == 0
    return out.getvalue()


def test_a_chat_keeps_its_history_until_it_is_reset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "one\n\ntwo \\\nlines\n/reset\nthree\n/nothing\n/exit\nfour\n"
    shown = chat(engine := Echo(), typed, monkeypatch)
    assert shown.splitlines() == ["saw 1 messages", "saw 3 messages", "saw 1 messages"]
    assert engine.asked[1].messages[-1].content == "two \nlines"
    assert "No command /nothing" in capsys.readouterr().err


def test_a_chat_goes_on_after_an_error_and_ends_with_its_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = chat(Echo(lambda r: r.messages[-1].content), "fail\nlast", monkeypatch)
    assert shown == "last\n" and "taken back" in capsys.readouterr().err


def test_an_answer_streams_to_a_terminal_with_its_control_characters_visible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Echo(lambda _: "red \x1b[2J now")
    parts: list[str] = []
    screen = Terminal()
    engine.on_word = lambda: parts.append(screen.getvalue())
    shown = chat(engine, "one\n", monkeypatch, out=screen)
    assert parts[0] == "red" and "\x1b" not in shown and shown.endswith("now\n")


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt. A shell starts its background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_interrupts")
def test_ctrl_c_stops_the_answer_and_not_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Echo()
    engine.on_word = lambda: signal.raise_signal(signal.SIGINT) if len(engine.asked) == 1 else None
    before = signal.getsignal(signal.SIGINT)
    assert chat(engine, "one\ntwo\n", monkeypatch).splitlines() == ["saw", "saw 3 messages"]
    assert "(stopped)" in capsys.readouterr().err and signal.getsignal(signal.SIGINT) == before
    plain = Plain()
    plain.on_word = lambda: signal.raise_signal(signal.SIGINT) if len(plain.asked) == 1 else None
    assert chat(plain, "one\ntwo\n", monkeypatch).splitlines() == ["saw 1 messages"]
    assert "taken back" in capsys.readouterr().err


def test_ask_reads_the_question_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Echo(lambda r: r.messages[-1].content)
    monkeypatch.setattr(ask, "_load", lambda *_: engine)
    for args in ((), ("-",)):
        done = run_here("ask", "any", *args, input="What is\na heat pump?\n")
        assert (done.returncode, done.stdout) == (0, "What is\na heat pump?\n")
    assert run_here("ask", "any", "given", input="not read").stdout == "given\n"
    check_refused(run_here("ask", "any", input=" \n"), "")
    found = json.loads(run_here("ask", "any", "given", "--json").stdout)
    assert found["engine"] == "echo" and found["replies"][0]["text"] == "given"


def _loading(store: Store, ref: str, *_: object) -> Echo:
    with phase(store.report, "loading", ref):
        return Echo(lambda r: r.messages[-1].content)


def _loading_until_it_is_said(store: Store, ref: str, *_: object) -> Echo:
    with phase(store.report, "loading", ref):
        written = cast(io.BytesIO, sys.stderr.buffer)
        deadline = time.monotonic() + 60
        while not written.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
            sys.stderr.flush()
        return Echo(lambda r: r.messages[-1].content)


def test_the_phase_of_a_long_loading_is_one_line_beside_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "_load", _loading_until_it_is_said)
    done = run_here("ask", "any", "heat")
    assert (done.stdout, done.stderr) == ("heat\n", "any  loading\n")


def test_a_live_display_leaves_the_answer_on_stdout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ask, "_load", _loading)
    monkeypatch.setenv("TERM", "xterm")
    answered, shown = Terminal(), Terminal()
    with contextlib.redirect_stdout(answered), contextlib.redirect_stderr(shown):
        assert main(["ask", "any", "heat"]) == 0
    assert answered.getvalue() == "heat\n"
    assert "\x1b[?25l" in shown.getvalue() and "heat" not in shown.getvalue()  # the cursor is hidden


def test_a_prefill_is_shown_once_before_the_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for engine in (Echo(), Plain()):
        monkeypatch.setattr(ask, "_load", lambda *_, engine=engine: engine)
        screen = Terminal()
        with contextlib.redirect_stdout(screen):
            assert main(["ask", "any", "x", "--prefill", "Well, "]) == 0
        assert screen.getvalue() == "Well, saw 1 messages\n"
