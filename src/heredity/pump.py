"""Keep one engine busy with many conversations at once, and turn each into a response.

Promises: a conversation starts only when the engine has room for it; a later turn goes ahead of a new trial;
an answer the cache holds never reaches the engine; an answer that fails is a response with an error.
Leaves to others: which trials there are (plan.py), and where responses go (study.py).
"""

from __future__ import annotations

import os.path
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from heredity import attacks, store
from heredity.application import Application
from heredity.engines import Engine
from heredity.errors import ContextOverflow, EngineFailure, HeredityError
from heredity.plan import Grid, Trial
from heredity.records import SCHEMA, Exchange, Message, Record, Reply, Request, Response, ToolCall, digest


class Prefix(Record, frozen=True):
    """A row of prefixes.jsonl: a text that many prompts of the study begin with."""

    digest: str
    text: str
    schema: int = SCHEMA


class Talk:
    """A conversation under way."""

    __slots__ = ("error", "exchanges", "is_cached", "request", "trial", "turns")

    def __init__(self, trial: Trial, turns: Generator[Request, Reply, None]) -> None:
        self.trial, self.turns = trial, turns
        self.exchanges: list[Exchange] = []
        self.is_cached, self.error = True, ""
        self.request: Request | None = None


class Pump:
    """Ask one model its trials. `finished` gets every response, in the order in which they are complete."""

    def __init__(
        self,
        engine: Engine,
        grid: Grid,
        prefix: Prefix,
        finished: Callable[[Response], None],
        cache: store.ResponseCache | None = None,
    ) -> None:
        self._engine, self._grid, self._prefix, self._finished = engine, grid, prefix, finished
        self._application = grid.plan.application
        self._cache = cache if engine.numerics else None
        self._attacks = {name: attacks.load(name) for name in grid.plan.attacks}
        self._engine_name = engine.name
        self._waiting: Iterator[int] = iter(())
        self._follow_ups: deque[Request] = deque()
        self._under_way: dict[int, Talk] = {}
        self._own: BaseException | None = None  # what failed on our side of the engine's stream

    def run(self, indices: Iterable[int]) -> None:
        """Ask the trials at `indices`, all of one model. Raises EngineFailure where the engine fails."""
        self._waiting = iter(indices)
        try:
            with _closed_early(self._engine.reply(self._stream())) as replies:
                for reply in replies:
                    self._receive(clean(reply))
        except (HeredityError, MemoryError):
            raise
        except Exception as error:
            if error is self._own:
                raise
            raise EngineFailure(f"{type(error).__name__}: {str(error)[:300]}") from error
        if self._under_way or self._follow_ups:
            raise EngineFailure(f"the engine stopped with {len(self._under_way)} requests unanswered")

    # --- towards the engine ---

    def _stream(self) -> Iterator[Request | None]:
        while True:
            try:
                request = self._next()
            except Exception as error:
                self._own = error
                raise
            if request is None and not self._under_way:
                return
            yield request

    def _next(self) -> Request | None:
        if self._follow_ups:
            return self._follow_ups.popleft()
        for index in self._waiting:
            if (request := self._advance(self._start(index), None)) is not None:
                return request
        return None

    def _start(self, index: int) -> Talk:
        trial = self._grid.trial(index)
        turns = self._attacks[trial.attack](trial.probe)
        return Talk(trial, self._application.converse(turns, trial.probe, trial.seed))

    def _advance(self, talk: Talk, reply: Reply | None) -> Request | None:
        """Move a conversation on until it needs the engine (its request) or is over (None)."""
        while True:
            try:
                request = next(talk.turns) if reply is None else talk.turns.send(reply)
            except StopIteration:
                self._end(talk)
                return None
            talk.request = msgspec.structs.replace(request, key=talk.trial.index)
            reply = self._known(talk.request)
            if reply is None:
                self._under_way[talk.trial.index] = talk
                return talk.request
            self._note(talk, reply)

    def _known(self, request: Request) -> Reply | None:
        """The reply that needs no engine: from the cache, or because the prompt cannot fit."""
        if self._cache is None:
            return None
        try:
            prompt = clean_text(self._engine.render(request))
        except ContextOverflow as error:
            return Reply(request.key, "", "", stop="error", error=clean_text(str(error)))
        reply = self._cache.get(self._key(request, prompt))
        return None if reply is None else msgspec.structs.replace(reply, key=request.key)

    def _key(self, request: Request, prompt: str) -> str:
        model = self._grid.trial(request.key).model.id
        return store.cache_key(self._engine.numerics, model, prompt, request.decoding, request.seed)

    # --- from the engine ---

    def _receive(self, reply: Reply) -> None:
        try:
            self._take(reply)
        except Exception as error:
            self._own = error
            raise

    def _take(self, reply: Reply) -> None:
        talk = self._under_way.pop(reply.key, None)
        if talk is None or talk.request is None:
            raise EngineFailure(f"the engine answered request {reply.key}, which was not asked")
        if self._cache is not None and reply.error is None:
            self._cache.put(self._key(talk.request, reply.prompt), reply)
        self._note(talk, reply)
        if (request := self._advance(talk, reply)) is not None:
            self._follow_ups.append(request)

    def _note(self, talk: Talk, reply: Reply) -> None:
        prefill = talk.request.prefill if talk.request is not None else ""
        prefix, prompt = self._prefix, reply.prompt
        is_shared = bool(prefix.text) and prompt.startswith(prefix.text)
        talk.exchanges.append(
            Exchange(
                prefix.digest if is_shared else "",
                prompt[len(prefix.text) :] if is_shared else prompt,
                prefill,
                reply.text,
                tuple(map(clean_call, self._application.calls(prefill, reply))),
                reply.stop,
                reply.n_prompt_tokens,
                len(reply.tokens) if reply.n_tokens is None else reply.n_tokens,
            )
        )
        talk.is_cached &= reply.is_cached
        if reply.error is not None or reply.stop == "error":
            talk.error = reply.error or "the engine gave no reason"

    def _end(self, talk: Talk) -> None:
        trial = talk.trial
        self._finished(
            Response(
                trial.index,
                trial.id,
                trial.model.id,
                self._application.digest,
                trial.probe.id,
                trial.attack,
                trial.sample,
                trial.seed,
                tuple(talk.exchanges),
                self._engine_name,
                talk.error or (None if talk.exchanges else "the attack asked nothing"),
                talk.is_cached and bool(talk.exchanges),
            )
        )


@contextmanager
def _closed_early(replies: Iterator[Reply]) -> Iterator[Iterator[Reply]]:
    """The replies; a generator is closed where the study stops first, so that its engine gives up waiting."""
    try:
        yield replies
    finally:
        if isinstance(replies, Generator):
            replies.close()


def shared_prefix(engine: Engine, application: Application) -> Prefix:
    """What every first prompt of this application begins with, as this engine renders it."""
    rendered = []
    for text in ("0", "1"):
        turns = _say(application, text)
        try:
            rendered.append(clean_text(engine.render(next(turns))))
        except ContextOverflow:
            return Prefix("", "")
        finally:
            turns.close()
    text = os.path.commonprefix(rendered)  # noqa: RUF071 (of texts, not of paths)
    return Prefix(digest(text), text) if text else Prefix("", "")


def _say(application: Application, text: str) -> Generator[Request, Reply, None]:
    yield application.request([*application.messages(), Message("user", text)])


# --- model output is hostile: what cannot be stored as UTF-8 JSON is made storable here, once ----


def clean(reply: Reply) -> Reply:
    """The reply with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD in every text."""
    text, prompt = clean_text(reply.text), clean_text(reply.prompt)
    error = None if reply.error is None else clean_text(reply.error)
    if text is reply.text and prompt is reply.prompt and error is reply.error and not reply.tool_calls:
        return reply
    calls = tuple(map(clean_call, reply.tool_calls))
    return msgspec.structs.replace(reply, text=text, prompt=prompt, error=error, tool_calls=calls)


def clean_text(text: str) -> str:
    """`text` itself where it is valid Unicode, else with U+FFFD for each lone surrogate."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def clean_call(call: ToolCall) -> ToolCall:
    """The call in a form that a row can hold: what JSON cannot carry is made a text."""
    try:
        if msgspec.json.decode(msgspec.json.encode(call), type=ToolCall) == call:
            return call
    except (ValueError, OverflowError, RecursionError, TypeError, msgspec.MsgspecError):
        pass
    return ToolCall(clean_text(call.name), {clean_text(k): _plain(v, 16) for k, v in call.arguments.items()})


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, dict | list) and depth == 0:
        return "..."
    if isinstance(value, dict):
        return {clean_text(k): _plain(v, depth - 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, depth - 1) for v in value]
    return str(value)[:100] if not _fits(value) else value


def _fits(value: int | float) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value == value and abs(value) != float("inf")
