"""`heredity ask`: one conversation with a model, to inspect it before or after a study."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Name, PathArgument, Verb, _remote, device_option, open_store

if TYPE_CHECKING:
    from heredity.application.guards.protocols import GuardReaders
    from heredity.application.spec import Application
    from heredity.application.toolbox import ToolSession
    from heredity.core.records import Decoding, Reply, Request
    from heredity.engines.protocols import Engine
    from heredity.lineage.store import Store
    from heredity.redteam.guard_readers import JudgeReaders


@click.command("ask", cls=Verb, example='heredity ask smollm2-135m-instruct "What is a heat pump?"')
@click.argument("model", type=Name())
@click.argument("text", type=Name())
@click.option("--application", type=PathArgument(), metavar="FILE", help="Ask inside this application.")
@click.option("--prefill", type=Name(), metavar="TEXT", help="Text that the answer has to start with.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    help="Maximum tokens per reply.  [default: the application's, or 128]",
)
@click.option(
    "--temperature",
    type=float,
    help="Sampling temperature; 0 is greedy.  [default: the application's, or 0]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for sampling.")
@device_option
@_remote.key_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the rendered prompt.")
def command(
    model: str,
    text: str,
    application: Path | None,
    prefill: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int,
    key_env: tuple[str, ...],
    as_json: bool,
) -> None:
    """Ask a model one question.

    Without an application the model sees only the text. With one it sees everything that a study would
    show it. Tools that are Python functions run; the others have canned results.
    """
    from heredity.application.guard_models import has_guard_models, identified
    from heredity.application.spec import Application
    from heredity.application.toolbox import Toolbox

    layer = None if application is None else Application.load(application)
    decoding = _decoding(layer, {"max_tokens": max_tokens, "temperature": temperature})
    store = open_store()
    with ExitStack() as stack:
        readers: JudgeReaders | None = None
        if layer is not None and has_guard_models(layer):
            readers = stack.enter_context(closing(_guard_models(store, key_env)))
            layer = identified(layer, readers)
        engine = stack.enter_context(closing(_within(layer, _load(store, model, key_env), readers)))
        tools = None if layer is None else stack.enter_context(Toolbox(layer)).session()
        said = list(_answers(engine, _converse(layer, text, prefill or "", decoding, seed, tools)))
    _show(said, engine.name, as_json)


def _decoding(layer: Application | None, given: Mapping[str, float | None]) -> Decoding:
    """The decoding of an application, with the settings that are given. Raises UsageError."""
    import msgspec

    from heredity.application.spec import check_decoding
    from heredity.core.errors import UsageError
    from heredity.core.records import Decoding

    decoding = Decoding() if layer is None else layer.decoding
    decoding = msgspec.structs.replace(decoding, **{k: v for k, v in given.items() if v is not None})
    try:
        check_decoding(decoding)
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    return decoding


def _load(store: Store, ref: str, key_env: tuple[str, ...] = ()) -> Engine:
    from heredity.cli import _pulling
    from heredity.core.terminal import note

    grown = store.get(ref)
    if grown.record.format != "scripted":
        grown = _pulling.ready(store, grown)
        note(f"loading {grown.record.name} ...")
    return _remote.loader(store, _remote.calls(key_env), is_batched=False)(grown)


def _guard_models(store: Store, key_env: tuple[str, ...]) -> JudgeReaders:
    """The models of guards, of which none is loaded yet. The judges behind them take half a second."""
    from heredity.redteam.guard_readers import JudgeReaders
    from heredity.redteam.judges import Models

    def identify(name: str) -> str:
        return store.get(name).record.id

    return JudgeReaders(Models(identify, lambda name: _load(store, name, key_env)))


def _within(layer: Application | None, engine: Engine, readers: GuardReaders | None) -> Engine:
    """The engine behind the guards of an application. Raises Unavailable if it cannot hold the schema."""
    from heredity.application.guarded import guarded
    from heredity.engines import check_schema

    if layer is None:
        return engine
    check_schema(engine, layer.decoding)
    return guarded(engine, layer, readers=readers)


def _converse(
    application: Application | None,
    text: str,
    prefill: str,
    decoding: Decoding,
    seed: int,
    tools: ToolSession | None,
) -> Generator[Request, Reply, None]:
    import msgspec

    from heredity.core.records import Check, Message, Probe, Request, Turn

    if application is None:
        yield Request(0, (Message("user", text),), decoding, seed, prefill)
        return

    def say() -> Generator[Turn, Reply, None]:
        yield Turn(text, prefill)

    layer = msgspec.structs.replace(application, decoding=decoding)
    probe = Probe("ask", "ask", "benign", (text,), Check("refusal"), "ask")
    yield from layer.converse(say(), probe, seed, tools)


def _answers(
    engine: Engine, conversation: Generator[Request, Reply, None]
) -> Generator[tuple[Request, Reply]]:
    from heredity.core.errors import EngineFailure

    reply = None
    while True:
        try:
            request = next(conversation) if reply is None else conversation.send(reply)
        except StopIteration:
            return
        (reply,) = engine.reply([request])
        if reply.error is not None:
            raise EngineFailure(reply.error)
        yield request, reply


def _show(said: list[tuple[Request, Reply]], engine: str, as_json: bool) -> None:
    from heredity.core.sanitize import plain
    from heredity.core.terminal import note, write, write_json

    if as_json:
        write_json({"engine": engine, "replies": [reply for _, reply in said]})
        return
    for number, (request, reply) in enumerate(said):
        if number:
            note(f"[{request.messages[-1].role}] {request.messages[-1].content}")
        write(plain(request.prefill + reply.text, lines=True))
        if reply.guarded:
            note(f"(guarded: {plain('; '.join(reply.guarded))})")
        elif reply.stop == "filter":
            note("(stopped by the service's own filter)")
        if reply.stop == "length":
            note(f"(cut at {request.decoding.max_tokens} tokens; --max-tokens raises that)")
