"""`heredity chat`: a conversation with a model on the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Verb, _asking

if TYPE_CHECKING:
    from types import FrameType

    from heredity.application.conversation import AnswerListener, LedConversation

_COMMANDS = {
    "/reset": "forget the conversation and begin a new one",
    "/exit": "leave, as Ctrl-D does",
    "/help": "show these commands",
}


@click.command("chat", cls=Verb, example="heredity chat smollm2-135m-instruct --application desk.toml")
@_asking.model_argument
@_asking.options
def command(
    model: str,
    application: Path | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int,
    key_env: tuple[str, ...],
) -> None:
    """Talk with a model.

    Each line is a message; one that ends in a backslash continues on the next. The model sees the whole
    conversation, inside the application if there is one. Its answer appears while it is generated, and
    Ctrl-C stops it. /reset begins a new conversation, and /exit or Ctrl-D leaves. Nothing is recorded.
    Messages through a pipe are answered one by one.
    """
    from heredity.application.conversation import LedConversation
    from heredity.core.terminal import note

    settings = {"max_tokens": max_tokens, "temperature": temperature}
    with _asking.loaded(model, application, key_env, settings) as loaded_model:

        def begin() -> LedConversation:
            tools = None if loaded_model.tools is None else loaded_model.tools.session()
            return LedConversation(loaded_model.application, loaded_model.decoding, seed, tools)

        inside = "" if loaded_model.application is None else f" in {loaded_model.application.name}"
        note(f"{model}{inside}: /help shows the commands, /exit leaves")
        _asking.announce_guards(loaded_model)
        conversation = begin()
        for text in _messages():
            if text == "/exit":
                return
            if text == "/reset":
                conversation = begin()
                note("A new conversation begins.")
            elif text.startswith("/"):
                _show_commands(text)
            else:
                _answer(loaded_model, conversation, text)


def _answer(loaded_model: _asking.LoadedModel, conversation: LedConversation, text: str) -> None:
    """Print the answer to a message. After an error the message is taken back, and the chat continues."""
    from heredity.application.conversation import replies
    from heredity.core.errors import BudgetSpent, EngineFailure
    from heredity.core.terminal import note
    from heredity.engines.protocols import capabilities

    screen = _asking.AnswerScreen(loaded_model)
    try:
        is_streamed = capabilities(loaded_model.engine).streamer is not None
        with screen, _stoppable(screen.listener) if is_streamed else nullcontext():
            for request, reply in replies(loaded_model.engine, conversation.turn(text), screen.listener):
                screen.show(request, reply)
    except KeyboardInterrupt:
        if screen.listener.is_stopped:
            raise
        note("(stopped; your message was taken back)")
        return
    except BudgetSpent:
        raise
    except EngineFailure as error:
        note(f"error: {error} Your message was taken back; /reset begins a shorter conversation.")
        return
    if screen.listener.is_stopped:
        note("(stopped)")


@contextmanager
def _stoppable(listener: AnswerListener) -> Iterator[None]:
    """Inside, Ctrl-C stops the answer, and a second one ends the program."""

    def stop(number: int, frame: FrameType | None) -> None:
        if listener.is_stopped:
            signal.default_int_handler(number, frame)
        listener.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _messages() -> Iterator[str]:
    """The messages that are typed or piped in, without empty ones, until the end of the input."""
    from heredity.core.terminal import note

    if sys.stdin.isatty():
        with suppress(ImportError):  # not everywhere; without it a line cannot be edited
            import readline  # noqa: F401
    lines: list[str] = []
    while True:
        try:
            line = _line("... " if lines else "> ")
        except KeyboardInterrupt:
            lines = []
            sys.stderr.write("\n")
            note("/exit or Ctrl-D leaves.")
            continue
        if line is None:
            return
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            text, lines = "\n".join(lines).strip(), []
            if text:
                yield text


def _line(prompt: str) -> str | None:
    """The next line without its end; None after the last."""
    if sys.stdin.isatty():
        try:
            return input(prompt)
        except EOFError:
            sys.stdout.write("\n")
            return None
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None


def _show_commands(text: str) -> None:
    from heredity.core.terminal import note

    if text not in _COMMANDS:
        note(f"No command {text.split()[0]}. A message may not begin with a slash.")
    for name, purpose in _COMMANDS.items():
        note(f"  {name:8}{purpose}")
