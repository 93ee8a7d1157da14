"""A Python function as a target: found by its name, inspected and called, async or not.

Promises: a function has the name by which an import finds it, "package.module:function". Its parameters
decide what it receives. Its result is a text, a mapping with `text`, or an iterator over such parts; anything
else is an error. An iterator that nobody waits for is closed at its next part.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import sys
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

from heredity.core.errors import EngineFailure, Unavailable, UsageError
from heredity.core.host import Device
from heredity.core.records import Model, Reply, Request, Stop, ToolCall
from heredity.engines import failed_reply
from heredity.engines._workers import (
    KeyMask,
    PooledEngine,
    StreamedAnswer,
    conversation_id,
    conversation_text,
    error_row,
)

MAX_TEXT = 1_000_000  # characters of one answer that are kept
_EXTRAS = ("conversation", "seed", "max_tokens", "temperature", "top_p")

Target = Callable[..., object]  # a user's function

_live: dict[str, Target] = {}  # functions given as values, which an import may not find


class FunctionAnswer(NamedTuple):
    """The result of a function: the text, and the tool calls that it reports."""

    text: str
    tool_calls: tuple[ToolCall, ...]


def name_of(function: Target) -> str:
    """Return the name of a function given as a value: "package.module:function"."""
    home = inspect.getmodule(function)
    module = getattr(function, "__module__", None) or (home.__name__ if home else "__main__")
    inner = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{module}:{inner}"


def keep(function: Target) -> str:
    """Remember a function for this process; return the name by which `find` returns it."""
    name = name_of(function)
    _live[name] = function
    return name


def find(name: str) -> Target:
    """Return the function of this name: a remembered one, or an import, also from the current folder.

    Raises UsageError that names the missing part.
    """
    if name in _live:
        return _live[name]
    module_name, separator, inner = name.partition(":")
    if not (separator and module_name and inner):
        raise UsageError(f"'call:{name}' names no function. Write call:package.module:function.")
    target: object = _import(module_name, name)
    for part in inner.split("."):
        if not hasattr(target, part):
            raise UsageError(f"call:{name}: {module_name} has no '{inner}'.")
        target = getattr(target, part)
    if not callable(target):
        raise UsageError(f"call:{name}: '{inner}' is not a function.")
    return target


def _import(module: str, name: str) -> ModuleType:
    sys.path += {str(Path.cwd())}.difference(sys.path)  # last, so that it hides no installed package
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"call:{name}: {module} cannot be imported: {error}") from error
    except Exception as error:  # the user's own module failed while it was imported
        raise UsageError(f"call:{name}: importing {module} raised {type(error).__name__}: {error}") from error


def source_of(function: Target) -> str:
    """Return 16 hex digits over the file that defines a function, or over its code if it has no file.

    A changed function is another model. Its imports are not part of it.
    """
    target = inspect.unwrap(function)
    target = getattr(target, "__func__", target)
    if not hasattr(target, "__code__"):
        target = type(target).__call__ if hasattr(type(target).__call__, "__code__") else target
    try:
        path = inspect.getsourcefile(target)
        data = Path(path).read_bytes() if path else b""
    except (TypeError, OSError):
        data = b""
    if not data:
        data = _bytes_of(getattr(target, "__code__", None))
    return hashlib.sha256(data).hexdigest()[:16]


def _bytes_of(code: CodeType | None) -> bytes:
    if code is None:
        return b""
    parts = [code.co_code, repr(code.co_names).encode()]
    for constant in code.co_consts:
        is_code = isinstance(constant, CodeType)
        parts.append(_bytes_of(constant) if is_code else repr(constant).encode())
    return b"\0".join(parts)


class Function:
    """A function and the arguments that its parameters ask for."""

    def __init__(self, name: str, function: Target) -> None:
        self.name, self._function = name, function
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            raise UsageError(f"call:{name}: its parameters cannot be read; wrap it in a def.") from None
        by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if not by_place:
            raise UsageError(f"call:{name} takes nothing. It must take `messages`, or the user's text.")
        self.takes_messages = by_place[0].name == "messages" or "list" in str(by_place[0].annotation).lower()
        self._extras = [p.name for p in parameters if p is not by_place[0] and p.name in _EXTRAS]
        first = by_place[0]
        for p in parameters:
            is_needed = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            if p is not first and is_needed and p.name not in _EXTRAS:
                raise UsageError(
                    f"call:{self.name} needs '{p.name}', which heredity does not have."
                    f" It gives: {', '.join(_EXTRAS)}."
                )

    def call(self, request: Request, conversation: str, loop: Loop, heard: StreamedAnswer) -> FunctionAnswer:
        """Call the function, an async one in `loop`, and return its result. heard: gets its parts."""
        decoding = request.decoding
        there = {
            "conversation": conversation,
            "seed": request.seed,
            "max_tokens": decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
        }
        given = as_dicts(request) if self.takes_messages else request.messages[-1].content
        answer = self._function(given, **{name: there[name] for name in self._extras})
        if inspect.isawaitable(answer):
            answer = loop.wait(answer)
        if not isinstance(answer, Iterator | AsyncIterator):
            return read_answer(answer)
        parts = _Parts(heard)
        if isinstance(answer, AsyncIterator):
            loop.wait(parts.gather(answer))
        else:
            parts.collect(answer)
        return parts.joined


class _Parts:
    """The parts that a function gives one by one, until nobody waits for more."""

    def __init__(self, heard: StreamedAnswer) -> None:
        self._texts, self._calls = list[str](), list[ToolCall]()
        self._n, self._heard = 0, heard

    @property
    def joined(self) -> FunctionAnswer:
        return FunctionAnswer("".join(self._texts), tuple(self._calls))

    def collect(self, parts: Iterator[object]) -> None:
        try:
            for part in parts:
                if not self._add(part):
                    return
        finally:
            if isinstance(parts, Generator):
                parts.close()

    async def gather(self, parts: AsyncIterator[object]) -> None:
        try:
            async for part in parts:
                if not self._add(part):
                    return
        finally:
            if isinstance(parts, AsyncGenerator):
                await parts.aclose()

    def _add(self, part: object) -> bool:
        """Add a part; return whether another is wanted."""
        answer = read_answer(part)
        text = answer.text[: MAX_TEXT - self._n]
        self._n += len(text)
        self._texts.append(text)
        self._calls += answer.tool_calls
        self._heard.hear(text)
        return self._heard.is_wanted and self._n < MAX_TEXT


class Loop:
    """One event loop in a thread of its own, since an async client belongs to one loop."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout, self._lock = timeout_seconds, threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def wait(self, answer: Awaitable[object]) -> object:
        """Return the value of an awaitable. If it takes too long, cancel it and raise TimeoutError."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), daemon=True)
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(answer, self._timeout), self._loop).result()

    def close(self) -> None:
        """Stop the loop and cancel its tasks."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop = None


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    loop.close()


def as_dicts(request: Request) -> list[dict[str, str]]:
    """Return the conversation as chat APIs write it."""
    return [{"role": message.role, "content": message.content} for message in request.messages]


def read_answer(answer: object) -> FunctionAnswer:
    """Read a text, or a mapping {"text": ..., "tool_calls": [{"name": ..., "arguments": {...}}]}."""
    if isinstance(answer, str):
        return FunctionAnswer(answer[:MAX_TEXT], ())
    if isinstance(answer, Mapping) and isinstance(answer.get("text"), str):
        return FunctionAnswer(answer["text"][:MAX_TEXT], _calls(answer.get("tool_calls") or ()))
    raise TypeError(f"the function gave {type(answer).__name__}, not a text or a mapping with 'text'")


def _calls(given: object) -> tuple[ToolCall, ...]:
    if not isinstance(given, Iterable):
        raise TypeError("'tool_calls' must be a list")
    return tuple(map(_call, given))


def _call(given: object) -> ToolCall:
    if not (isinstance(given, Mapping) and isinstance(given.get("name"), str)):
        raise TypeError("a tool call must be a mapping with 'name' and 'arguments'")
    arguments = given.get("arguments", {})
    return ToolCall(given["name"], dict(arguments) if isinstance(arguments, Mapping) else {})


def refuse_text_only(model: Model) -> None:
    """Raise UsageError if a recorded function takes only the user's text. The function is imported."""
    name = str(model.recipe.settings["function"])
    if not Function(name, find(name)).takes_messages:
        raise UsageError(
            f"call:{name} takes only the user's text, so it would not see the application's system prompt."
            " Let its first parameter be `messages`: def answer(messages: list[dict]) -> str. It can also"
            f" take {', '.join(_EXTRAS)}. If the function is an application of its own,"
            ' def answer(text: str) -> str is accepted: write rendering = "theirs" in the application.'
        )


def refuse_unseen(what: str, takes_messages: bool, request: Request) -> None:
    """Raise if this target would not see the application's messages: its rates would mean nothing."""
    if takes_messages or len(request.messages) == 1:
        return
    is_later = any(m.role == "assistant" for m in request.messages[request.n_shared :])
    if request.messages[0].role != "system" and is_later:
        return  # a later turn: the target stores the conversation
    raise EngineFailure(
        f"{what} takes only the user's text, so it would not see the application's system prompt. If it"
        ' is an application of its own, write rendering = "theirs" in the application; else let it'
        " take `messages`"
    )


WIDTH, TIMEOUT_SECONDS = 4, 120.0


def load(
    model: Model,
    folder: Path,  # noqa: ARG001 (there are no files)
    tuning: Path | None = None,  # noqa: ARG001
    device: Device | None = None,  # noqa: ARG001
) -> CallEngine:
    """Load a recorded function. Raises Unavailable if it is missing, or differs from the recorded one."""
    settings = model.recipe.settings
    name = str(settings["function"])
    try:
        function = find(name)
    except UsageError as error:
        raise Unavailable(f"'{model.name}' cannot answer here: {error}") from error
    if (source := source_of(function)) != settings["source"]:
        raise Unavailable(
            f"'{model.name}' was changed since it was recorded (source {settings['source']}, now {source}):"
            " its answers belong to another study. Name it again, with another folder."
        )
    width = getattr(function, "concurrency", WIDTH)
    return CallEngine(Function(name, function), int(width), TIMEOUT_SECONDS)


class CallEngine(PooledEngine):
    """A function behind the Engine protocol. Only the answer of an iterator is heard in parts."""

    def __init__(self, function: Function, width: int, timeout_seconds: float) -> None:
        super().__init__(f"call {function.name} width {width}", width, timeout_seconds + 1, KeyMask())
        self._function, self._loop = function, Loop(timeout_seconds)

    def render(self, request: Request) -> str:
        """Return the conversation as one text; the function's own prompt is unknown."""
        refuse_unseen(f"call:{self._function.name}", self._function.takes_messages, request)
        return conversation_text(request)

    def close(self) -> None:
        self._loop.close()

    def _answer(self, request: Request, heard: StreamedAnswer) -> Reply:
        prompt = self.render(request)
        if request.prefill:
            return failed_reply(request, prompt, EngineFailure(NO_PREFILL))
        try:
            answer = self._function.call(request, conversation_id(self._nonce, request), self._loop, heard)
        except EngineFailure as error:  # a failure of this call, not of the run
            return error_row(request, self.render, str(error))
        stop: Stop = "end" if heard.is_wanted else "length"
        return Reply(request.key, prompt, answer.text, tool_calls=answer.tool_calls, stop=stop)


NO_PREFILL = "this target's answer cannot be made to begin with given words: leave the attack 'prefill' out"
