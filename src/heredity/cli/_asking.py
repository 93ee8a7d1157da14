"""A model for `heredity ask` and `heredity chat`: loaded, inside its application, and its replies on screen.

Promises: text of a model reaches the terminal with its control characters made visible, also in parts.
Leaves to others: the conversation (application/).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import click

from heredity.cli import Name, PathArgument, _remote, device_option, open_store, shown_work

if TYPE_CHECKING:
    from heredity.application.spec import Application
    from heredity.application.toolbox import Toolbox
    from heredity.core.records import Decoding, Reply, Request
    from heredity.core.terminal import Display
    from heredity.engines.protocols import Engine
    from heredity.lineage.store import Store

_Command = TypeVar("_Command", bound="Callable[..., object]")
_OPTIONS = (
    click.option("--application", type=PathArgument(), metavar="FILE", help="Ask inside this application."),
    click.option(
        "--max-tokens", type=click.IntRange(1),
        help="Maximum tokens per reply.  [default: the application's, or 128]",
    ),
    click.option(
        "--temperature", type=float,
        help="Sampling temperature; 0 is greedy.  [default: the application's, or 0]",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Random seed for sampling."),
    device_option,
    _remote.key_option,
)  # fmt: skip


def options(command: _Command) -> _Command:
    """Add the options that both verbs take."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


model_argument = click.argument("model", type=Name())


class LoadedModel(NamedTuple):
    """A model that can be asked. tools: of the application, if there is one."""

    store: Store
    engine: Engine
    application: Application | None
    decoding: Decoding
    tools: Toolbox | None


@contextmanager
def loaded(
    model: str, application: Path | None, key_env: tuple[str, ...], settings: Mapping[str, float | None]
) -> Iterator[LoadedModel]:
    """The model behind the guards of its application. settings: of the decoding; None: the application's.

    Raises UsageError for a setting that does not fit, before anything is loaded.
    """
    from heredity.application.guarded import guarded, identified
    from heredity.application.spec import Application, decoding_with
    from heredity.application.toolbox import Toolbox
    from heredity.engines import check_schema

    layer = None if application is None else Application.load(application)
    decoding = decoding_with(layer, settings)
    store, readers = open_store(), None
    with ExitStack() as stack:
        if layer is not None and layer.has_guard_models:
            from heredity.redteam.judges import Models  # takes half a second
            from heredity.redteam.judges.guard import JudgeReaders

            models = Models(lambda name: store.get(name).record.id, lambda name: _load(store, name, key_env))
            readers = stack.enter_context(closing(JudgeReaders(models)))
            layer = identified(layer, readers)
        with shown_work(store, "starting"):
            engine = _load(store, model, key_env)
            if layer is not None:
                check_schema(engine, layer.decoding)
                engine = guarded(engine, layer, readers=readers)
            stack.enter_context(closing(engine))
        tools = None if layer is None else stack.enter_context(Toolbox(layer))
        yield LoadedModel(store, engine, layer, decoding, tools)


@contextmanager
def waiting(loaded_model: LoadedModel) -> Iterator[Display]:
    """Show that the model reads its prompt, until its answer comes. A prompt may take a minute.

    Of a model elsewhere it is not known when it has read its prompt.
    """
    from heredity.engines.protocols import capabilities

    is_elsewhere = capabilities(loaded_model.engine).provenance.first_answer is not None
    with shown_work(
        loaded_model.store, "waiting for the answer" if is_elsewhere else "reading the prompt"
    ) as display:
        yield display


def announce_guards(loaded_model: LoadedModel) -> None:
    """Note on a terminal that an answer comes whole, because guards check it first."""
    if loaded_model.application is None or not sys.stdout.isatty():
        return
    from heredity.application.guarded import GuardedEngine
    from heredity.core.terminal import note

    if isinstance(loaded_model.engine, GuardedEngine):
        note("(each answer is shown whole, once the guards of the application have checked it)")


def _load(store: Store, ref: str, key_env: tuple[str, ...]) -> Engine:
    from heredity.cli import _pulling
    from heredity.lineage.store import refuse_silent

    model = store.get(ref)
    refuse_silent(model.record)
    _pulling.announce(store, model)
    return _remote.loader(store, _remote.calls(key_env), is_batched=False)(model)


class AnswerScreen:
    """Prints the replies of one turn: in parts if stdout is a terminal, else whole.

    listener: for application.conversation.replies. Within `with`, a display says that a reply is awaited.
    """

    def __init__(self, loaded_model: LoadedModel) -> None:
        from heredity.application.conversation import AnswerListener

        self.listener = AnswerListener(self._hear if sys.stdout.isatty() else None, self._begin)
        self._n_asked, self._prefill, self._is_in_line = 0, "", False
        self._model, self._wait = loaded_model, ExitStack()
        self._display: Display | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from heredity.core.terminal import write

        self._wait.close()
        if self._is_in_line:  # of an answer that was cut off: its error has a line of its own
            write("")

    def _begin(self, request: Request) -> None:
        """Print the result of a tool that a later request of the turn ends with."""
        from heredity.core.terminal import note

        if self._n_asked:
            note(f"[{request.messages[-1].role}] {request.messages[-1].content}")
        self._n_asked, self._prefill = self._n_asked + 1, request.prefill
        self._display = self._wait.enter_context(waiting(self._model))

    def _hear(self, more: str) -> None:
        from heredity.core.sanitize import plain

        if self._display is not None:  # not `_wait`: the engine may call from a thread of its own
            self._display.hide()
        more, self._prefill = self._prefill + more, ""
        self._is_in_line = not more.endswith("\n")
        sys.stdout.write(plain(more, lines=True))
        sys.stdout.flush()

    def show(self, request: Request, reply: Reply) -> None:
        """Print a reply, or end the line of one whose parts were printed; then its guards and its cut."""
        from heredity.core.sanitize import plain
        from heredity.core.terminal import note, write

        self._wait.close()
        self._is_in_line = False
        write("" if self.listener.n_heard else plain(request.prefill + reply.text, lines=True))
        if reply.guarded:
            note(f"(guarded: {plain('; '.join(reply.guarded))})")
        elif reply.stop == "filter":
            note("(stopped by the service's own filter)")
        if reply.stop == "length" and not self.listener.is_stopped:
            note(f"(cut at {request.decoding.max_tokens} tokens; --max-tokens raises that)")
