"""`heredity ask`: one question to a model, to inspect it before or after a study."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click

from heredity.cli import Name, Verb, _asking


@click.command("ask", cls=Verb, example='heredity ask smollm2-135m-instruct "What is a heat pump?"')
@_asking.model_argument
@click.argument("text", metavar="[TEXT]", type=Name(), required=False)
@click.option("--prefill", type=Name(), metavar="TEXT", help="Text that the answer has to start with.")
@_asking.options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the rendered prompt.")
def command(
    model: str,
    text: str | None,
    prefill: str | None,
    application: Path | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int,
    key_env: tuple[str, ...],
    as_json: bool,
) -> None:
    """Ask a model one question.

    The question is TEXT, or what comes through a pipe if there is no TEXT or it is "-". On a terminal the
    answer appears while it is generated.

    Without an application the model sees only the text. With one it sees everything that a study would
    show it. Tools that are Python functions run; the others have canned results.
    """
    from heredity.application.conversation import LedConversation, replies
    from heredity.core.terminal import write_json

    text = _piped() if text in (None, "-") else text
    settings = {"max_tokens": max_tokens, "temperature": temperature}
    with _asking.loaded(model, application, key_env, settings) as loaded_model:
        tools = None if loaded_model.tools is None else loaded_model.tools.session()
        turn = LedConversation(loaded_model.application, loaded_model.decoding, seed, tools).turn(
            text or "", prefill or ""
        )
        if as_json:
            with _asking.waiting(loaded_model):
                answers = [reply for _, reply in replies(loaded_model.engine, turn)]
            write_json({"engine": loaded_model.engine.name, "replies": answers})
            return
        _asking.announce_guards(loaded_model)
        with _asking.AnswerScreen(loaded_model) as screen:
            for request, reply in replies(loaded_model.engine, turn, screen.listener):
                screen.show(request, reply)


def _piped() -> str:
    """The question on stdin."""
    context = click.get_current_context()
    if sys.stdin.isatty():
        raise click.UsageError("Give the question as TEXT, or pipe it in.", context)
    is_bytes = isinstance(sys.stdin, io.TextIOWrapper)
    try:
        text = sys.stdin.buffer.read().decode("utf-8") if is_bytes else sys.stdin.read()
    except UnicodeDecodeError:
        raise click.UsageError("The question on stdin is not UTF-8.", context) from None
    if not text.strip():
        raise click.UsageError("There is no question: TEXT is missing, and stdin is empty.", context)
    return text.removesuffix("\n")
