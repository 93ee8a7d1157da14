"""Questions to a model and conversations with one, inside its application."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import click

from heredity.cli import Name, PathArgument, Verb, _remote, device_option, open_store, shown_work

if TYPE_CHECKING:
    from types import FrameType

    from heredity.application.conversation import LedConversation
    from heredity.application.spec import Application
    from heredity.application.toolbox import Toolbox
    from heredity.core.records import Decoding, Reply, Request
    from heredity.core.terminal import Display
    from heredity.engines import AnswerListener, Engine
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
    from heredity.engines import capabilities

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
    from heredity.cli import pull
    from heredity.lineage.store import refuse_silent

    model = store.get(ref)
    refuse_silent(model.record)
    pull.announce(store, model)
    return _remote.loader(store, _remote.calls(key_env), is_batched=False)(model)


class AnswerScreen:
    """Prints the replies of one turn: in parts if stdout is a terminal, else whole.

    listener, begin: for application.conversation.replies. Within `with`, a display shows the wait.
    """

    def __init__(self, loaded_model: LoadedModel) -> None:
        from heredity.engines import AnswerListener

        self.listener = AnswerListener(self._hear if sys.stdout.isatty() else None)
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

    def begin(self, request: Request) -> None:
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


@click.command("ask", cls=Verb, example='heredity ask smollm2-135m-instruct "What is a heat pump?"')
@model_argument
@click.argument("text", metavar="[TEXT]", type=Name(), required=False)
@click.option("--prefill", type=Name(), metavar="TEXT", help="Text that the answer has to start with.")
@options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the rendered prompt.")
def ask_command(
    model: str, text: str | None, prefill: str | None, application: Path | None, max_tokens: int | None,
    temperature: float | None, seed: int, key_env: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
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
    with loaded(model, application, key_env, settings) as loaded_model:
        tools = None if loaded_model.tools is None else loaded_model.tools.session()
        turn = LedConversation(loaded_model.application, loaded_model.decoding, seed, tools).turn(
            text or "", prefill or ""
        )
        if as_json:
            with waiting(loaded_model):
                answers = [reply for _, reply in replies(loaded_model.engine, turn)]
            write_json({"engine": loaded_model.engine.name, "replies": answers})
            return
        announce_guards(loaded_model)
        with AnswerScreen(loaded_model) as screen:
            for request, reply in replies(loaded_model.engine, turn, screen.listener, screen.begin):
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


_COMMANDS = {
    "/reset": "forget the conversation and begin a new one",
    "/exit": "leave, as Ctrl-D does",
    "/help": "show these commands",
}


@click.command("chat", cls=Verb, example="heredity chat smollm2-135m-instruct --application desk.toml")
@model_argument
@options
def chat_command(
    model: str, application: Path | None, max_tokens: int | None, temperature: float | None, seed: int,
    key_env: tuple[str, ...],
) -> None:  # fmt: skip
    """Talk with a model.

    Each line is a message; one that ends in a backslash continues on the next. The model sees the whole
    conversation, inside the application if there is one. Its answer appears while it is generated, and
    Ctrl-C stops it. /reset begins a new conversation, and /exit or Ctrl-D leaves. Nothing is recorded.
    Messages through a pipe are answered one by one.
    """
    from heredity.application.conversation import LedConversation
    from heredity.core.terminal import note

    settings = {"max_tokens": max_tokens, "temperature": temperature}
    with loaded(model, application, key_env, settings) as loaded_model:

        def begin() -> LedConversation:
            tools = None if loaded_model.tools is None else loaded_model.tools.session()
            return LedConversation(loaded_model.application, loaded_model.decoding, seed, tools)

        inside = "" if loaded_model.application is None else f" in {loaded_model.application.name}"
        note(f"{model}{inside}: /help shows the commands, /exit leaves")
        announce_guards(loaded_model)
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


def _answer(loaded_model: LoadedModel, conversation: LedConversation, text: str) -> None:
    """Print the answer to a message. After an error the message is taken back, and the chat continues."""
    from heredity.application.conversation import replies
    from heredity.core.errors import BudgetSpent, EngineFailure
    from heredity.core.terminal import note
    from heredity.engines import capabilities

    screen = AnswerScreen(loaded_model)
    try:
        is_streamed = capabilities(loaded_model.engine).streamer is not None
        with screen, _stoppable(screen.listener) if is_streamed else nullcontext():
            for request, reply in replies(
                loaded_model.engine, conversation.turn(text), screen.listener, screen.begin
            ):
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
