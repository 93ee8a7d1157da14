"""Send an answer to its caller: in one body, or in parts as server-sent events.

Promises: the parts joined are the answer. A caller who disconnects frees the answer's place. A stream that
fails ends with an error event, never like a complete one. Guards act as in a study: a blocked question never
reaches the engine, and no text is sent before it was checked. A guard that takes long delays no other caller.
The caller does not get its findings, which would help to get around it; the operator gets their number.
Leaves to others: parsing requests and formatting answers (chat.py), checks (application/guarded.py), and the
engine (worker.py).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any, NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from heredity.application.guarded import Admission, GuardChain
from heredity.application.guards import GuardReaders
from heredity.application.spec import Application
from heredity.core import host
from heredity.core.errors import Busy, ContextOverflow, EngineFailure, HeredityError, UsageError
from heredity.core.records import Model, Reply, Request, ToolCall, digest, encode
from heredity.deploy.serve import schema
from heredity.deploy.serve.request_log import LoggedModel, RequestLog
from heredity.deploy.serve.schema import ParsedRequest, Refusal, Rules
from heredity.deploy.serve.worker import Service, Ticket
from heredity.engines import Engine, TokenLog, capabilities
from heredity.engines.chat import FENCE, MARKS, DividedAnswer, StopTexts, WrittenCall, divide_answer

# Errors that the request caused: the reply's error code, and the code that the caller gets.
CONTEXT = "context_length_exceeded"
# litellm looks for the first five words, LangChain for the code in the message.
_CONTEXT_WORDS = f"This model's maximum context length is exceeded ({CONTEXT})"
_THEIRS: dict[str | None, str] = {
    ContextOverflow.code: CONTEXT,
    "template-refuses": "invalid_request",
}


class Served(NamedTuple):
    """A served model, with or without an application."""

    model: Model
    service: Service
    application: Application | None = None
    may_draw: bool = False  # whether a caller may override the application's sampling parameters
    ignores: bool = False  # whether settings that the application holds are ignored instead of refused
    guards: ServedGuards | None = None  # of the application; the server sets them (model_registry.py)
    log: RequestLog | None = None  # of the operator; the server sets it
    started_as: tuple[str, ...] = ()  # other names that the operator gave, such as a short one

    @property
    def full_name(self) -> str:
        """The name of the model, with that of its application: APPLICATION@MODEL."""
        layer = self.application
        return self.model.name if layer is None else f"{layer.name}@{self.model.name}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names that callers may give, the shortest first; another may have some of them too."""
        names = (self.model.name, *self.started_as, self.model.id)
        return tuple(name for each in names for name in self.with_application(each))

    def with_application(self, name: str) -> tuple[str, ...]:
        """A name of the model, and the same with that of its application."""
        return (name,) if self.application is None else (name, f"{self.application.name}@{name}")

    @property
    def rules(self) -> Rules:
        """How its requests are read."""
        can = capabilities(self.service.engine)
        # The log-probabilities of an answer would show a text that a guard withholds.
        scorer = can.token_scorer if self.guards is None else None
        shown, is_guarded = self.service.shows_tools, self.guards is not None
        return Rules(
            self.application, self.may_draw, self.ignores, shown, scorer, can.check_schema, can.check_length,
            is_guarded,
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines an answer: weights, application, arithmetic."""
        layer = "" if self.application is None else self.application.digest
        return f"fp_{digest([self.model.id, layer, self.service.engine.numerics])[:16]}"


class ServedAnswer:
    """One answer that is being generated, cut at the caller's stop texts. Create it inside an event
    loop."""

    def __init__(self, one: Served, asked: ParsedRequest, number: int) -> None:
        self._one, self._asked, self.number = one, asked, number
        self._ends = StopTexts(asked.stops)
        self._before_calls = _BeforeCalls() if self._reads_callers_tools else None
        self._loop = asyncio.get_running_loop()
        self._ticket: Ticket | None = None
        self._admission: Admission | None = None
        self._echo = asked.echoes[number] if asked.echoes else None
        self._sent = "" if self._echo is None else self._echo.text
        # Written by the engine's thread, read by the loop.
        self._untaken: deque[str] = deque([self._sent] if self._sent else [])
        self._scores: Future[list[TokenLog]] | None = None
        self._logs: list[TokenLog] | None = None
        self._is_waking = self._is_dropped = False
        self.news = asyncio.Event()
        try:
            one.service.hold()  # until `drop`: the scores of an answer come after it
        except HeredityError as error:
            raise refusal(error) from None

    @property
    def _reads_callers_tools(self) -> bool:
        calls = self._asked.calls
        return self._one.application is None and bool(calls.names) and not calls.is_off

    async def admit(self) -> None:
        """Let guards check the request. Raises Refusal."""
        if (guards := self._one.guards) is not None:
            try:
                self._admission = await guards.admit(self._asked.requests[self.number])
            except HeredityError as error:
                raise refusal(error) from None

    def ask(self) -> None:
        """Send the admitted request to the engine. Raises Refusal."""
        guards, request = self._one.guards, self._asked.requests[self.number]
        # Behind guards the whole answer is checked, and cut at stop texts only then: a guard does not find a
        # secret of which a caller cuts the end.
        is_heard = guards is None and (self._asked.is_streamed or bool(self._asked.stops))
        if guards is not None:
            assert self._admission is not None
            if self._admission.is_blocked:
                return
            request = self._admission.prepared
        try:
            if self._echo is not None and self._echo.n_new is not None:
                self._scores = self._scored(())
                return
            self._ticket = self._one.service.ask(request, self._on_chunk if is_heard else None)
        except HeredityError as error:
            raise refusal(error) from None

    def drop(self) -> None:
        """End the answer: the caller no longer waits."""
        was_dropped, self._is_dropped = self._is_dropped, True
        self._end()
        if not was_dropped:
            self._one.service.release()

    def _scored(self, output: Sequence[int]) -> Future[list[TokenLog]]:
        """Queue the scores of the answer's tokens, and of its prompt's if the caller wants them."""
        request, echo, n_top = self._asked.requests[self.number], self._echo, self._asked.n_top or 0

        def score(engine: Engine) -> list[TokenLog]:
            scorer = capabilities(engine).token_scorer
            assert scorer is not None
            prompt = (echo and echo.tokens) or scorer.prompt_tokens(request)
            return scorer.token_logs((*prompt, *output), 0 if echo is not None else len(prompt), n_top)

        return self._one.service.compute(score)

    def next_chunk(self) -> str:
        """The text that the engine produced since the last call."""
        chunk = ""
        while self._untaken:
            chunk += self._untaken.popleft()
        return chunk

    def _end(self) -> None:
        if self._ticket is not None:
            self._ticket.drop()
        if self._scores is not None:
            self._scores.cancel()

    def _on_chunk(self, more: str) -> None:
        """Receive the next text, in the engine's thread; text that may begin a stop text is held back.

        At most one wake-up of the loop is pending: a fast engine must not fill the loop's queue.
        """
        text = self._ends.feed(more)
        if self._ends.is_over:
            self._end()
        if self._before_calls is not None:
            text = self._before_calls.feed(text)
        self._sent += text
        if self._is_dropped or not text:
            return
        self._untaken.append(text)
        if not self._is_waking:
            self._is_waking = True
            with suppress(RuntimeError):  # the loop is closed, and so is the connection
                self._loop.call_soon_threadsafe(self._notify)

    def _notify(self) -> None:
        self._is_waking = False  # before the text is taken: later text wakes the loop again
        self.news.set()

    async def reply(self) -> Reply:
        """Return the engine's reply, checked and logged. Raises Refusal if it failed."""
        try:
            reply = await self._reply()
        except Refusal as error:
            self._log(None, str(error))
            raise
        self._log(reply)
        return reply

    def _log(self, reply: Reply | None, error: str = "") -> None:
        if (log := self._one.log) is not None:
            who = LoggedModel(self._one.full_name, self._one.model.id, self._one.application)
            log.answer(who, self._asked.requests[self.number], reply, error)

    async def _reply(self) -> Reply:
        if self._admission is not None and self._admission.is_blocked:
            return await self._guards.refused(self._admission, self._one.service.engine)
        try:
            if self._ticket is None:
                scores = await self._awaited_scores()
                assert self._echo is not None
                n_new, new = self._echo.n_new or 0, scores[-1]
                self._logs = scores if n_new else scores[:-1]
                text = new.text if n_new else ""
                tokens = (new.token,) * n_new
                return Reply(0, self._echo.text, text, tokens, stop="length", n_prompt_tokens=len(scores) - 1)
            engine_reply = asyncio.wrap_future(self._ticket.reply)
            engine_reply.add_done_callback(_ignore)  # a disconnected caller retrieves no error
            reply = await asyncio.shield(engine_reply)
            if reply.stop != "error" and self._asked.n_top is not None:
                self._scores = self._scored(reply.tokens)
                self._logs = await self._awaited_scores()
        except HeredityError as error:
            raise refusal(error) from None
        if reply.stop == "error":
            code = _THEIRS.get(reply.error_code, "engine_error")
            message = reply.error or "the engine gave no reason"
            if code == CONTEXT:
                message = f"{_CONTEXT_WORDS}: {message}"
            raise Refusal(500 if code == "engine_error" else 400, message, code)
        return reply if self._admission is None else await self._guards.check(self._admission, reply)

    @property
    def _guards(self) -> ServedGuards:
        assert self._one.guards is not None
        return self._one.guards

    async def _awaited_scores(self) -> list[TokenLog]:
        assert self._scores is not None
        scores = asyncio.wrap_future(self._scores)
        scores.add_done_callback(_ignore)
        return await asyncio.shield(scores)

    def _logs_of(self, text: str, reply: Reply) -> tuple[TokenLog, ...] | None:
        """Return the scores of the tokens that are sent; `text` may be cut, and an end token is not sent."""
        logs = self._logs
        if logs is None or self._asked.n_top is None:
            return None
        if self._ticket is None:
            return tuple(logs)
        n_before = len(logs) - 1 - len(reply.tokens)  # the last is of the token after the answer
        scorer = capabilities(self._one.service.engine).token_scorer
        assert scorer is not None
        n = bisect_left(
            range(len(reply.tokens)), len(text), key=lambda i: len(scorer.decode(reply.tokens[:i]))
        )
        return tuple(logs[: n_before + n])

    def finished(self, reply: Reply) -> FinishedAnswer:
        """Return the answer as it is sent: cut at stop texts, with its tool calls."""
        ends = StopTexts(() if reply.stop == "filter" else self._asked.stops)
        text = ends.feed(reply.text) + ends.rest()
        shown, calls = self._divided(text, reply)
        if not self._asked.calls.is_parallel:
            calls = calls[:1]
        cut_at = ""
        if ends.is_over:
            rest = reply.text[len(text) :]
            cut_at = next(stop for stop in self._asked.stops if rest.startswith(stop))
        if self._echo is not None:
            shown = self._echo.text + shown
        reason = schema.reason(reply, bool(calls), ends.is_over)
        return FinishedAnswer(shown, calls, reason, cut_at, self._logs_of(text, reply))

    def _divided(self, text: str, reply: Reply) -> DividedAnswer:
        """Return the text that is sent, and the calls: of the caller's tools, or of the application's."""
        layer = self._one.application
        if self._reads_callers_tools:
            divided = divide_answer(text, self._asked.calls.names)
            # An engine elsewhere reads the calls itself, and its text has none.
            return divided if divided.calls else DividedAnswer(text, tuple(map(written, reply.tool_calls)))
        if layer is None or not layer.tools or self._asked.calls.is_off:
            return DividedAnswer(text, ())
        prefill = self._asked.requests[self.number].prefill
        calls = layer.calls(prefill, Reply(reply.key, "", text, tool_calls=reply.tool_calls))
        if self._one.guards is not None:  # in a text that is cut there may be a call that no guard saw
            seen = layer.calls(prefill, reply)
            calls = tuple(call for call in calls if call in seen)
        return DividedAnswer(text, tuple(map(written, calls)))

    def unsent(self, text: str) -> str:
        """Return the rest that was not streamed. Raises Refusal if the streamed text is not its
        beginning."""
        if not text.startswith(self._sent):
            raise Refusal(500, "the streamed text differs from the answer", "engine_error")
        return text[len(self._sent) :]


_BEGINNINGS = (*MARKS, "```json", "json{")  # the last two: a code block of which a part has come


class _BeforeCalls:
    """The part of a growing answer that can be sent before it is known whether tool calls follow."""

    def __init__(self) -> None:
        self._marks = StopTexts(MARKS)
        self._held = ""  # the beginning, as long as it may be a call
        self._is_call: bool | None = None

    def feed(self, more: str) -> str:
        """Receive more text; return the part that cannot belong to a call."""
        if self._is_call is None:
            self._held += more
            begun = self._held.lstrip()
            if fence := FENCE.match(begun):
                begun = begun[fence.end() :]
            if not begun or any(mark.startswith(begun) and mark != begun for mark in _BEGINNINGS):
                return ""
            self._is_call = begun.startswith(("{", *MARKS))
            more = self._held
        return "" if self._is_call else self._marks.feed(more)


def written(call: ToolCall) -> WrittenCall:
    """Return a call with its arguments as JSON text."""
    return WrittenCall(call.name, encode(call.arguments).decode())


class FinishedAnswer(NamedTuple):
    """An answer as it is sent, with its tool calls and its finish reason.

    cut_at: the stop text of the caller that ended it; "" for none.
    """

    text: str
    calls: tuple[WrittenCall, ...]
    reason: str
    cut_at: str = ""
    logs: tuple[TokenLog, ...] | None = None


class AnswerFormat(Protocol):
    """How the answers of an endpoint are sent: in one body, or as the parts of a stream."""

    def whole(self, answers: Sequence[ServedAnswer], replies: Sequence[Reply]) -> dict[str, object]:
        """Return all answers in one body."""

    def begun(self) -> Iterator[bytes]:
        """Yield the events before the first answer."""

    def piece(self, number: int, text: str, is_first: bool) -> Iterator[bytes]:
        """Yield the events of the next part of an answer."""

    def last(self, number: int, answer: FinishedAnswer, reply: Reply) -> Iterator[bytes]:
        """Yield the events at the end of an answer, after its text."""

    def ended(self, replies: Sequence[Reply]) -> Iterator[bytes]:
        """Yield the events after the last answer."""

    def failed(self, error: Refusal) -> Iterator[bytes]:
        """Yield the events of a failure."""


async def events(shape: AnswerFormat, answers: Sequence[ServedAnswer]) -> AsyncIterator[bytes]:
    """Yield the answers as server-sent events, one answer after the other."""
    replies = []
    wholes = [asyncio.ensure_future(answer.reply()) for answer in answers]
    try:
        for event in shape.begun():
            yield event
        for answer, whole in zip(answers, wholes, strict=True):
            is_first = True
            async for more in _pieces(answer, whole):
                for event in shape.piece(answer.number, more, is_first):
                    yield event
                is_first = False
            reply = await whole
            finished = answer.finished(reply)
            if (rest := answer.unsent(finished.text)) or is_first:
                for event in shape.piece(answer.number, rest, is_first):
                    yield event
            for event in shape.last(answer.number, finished, reply):
                yield event
            replies.append(reply)
        for event in shape.ended(replies):
            yield event
    except Refusal as error:  # the HTTP status is already sent
        for event in shape.failed(error):
            yield event
    finally:
        for answer, whole in zip(answers, wholes, strict=True):
            answer.drop()
            forget(whole)


def forget(future: asyncio.Future[Any]) -> None:
    """Cancel a future that is no longer awaited, and ignore its result."""
    future.cancel()
    future.add_done_callback(_ignore)


def _ignore(done: asyncio.Future[Any]) -> None:
    """Retrieve an error, so that asyncio does not log it."""
    if not done.cancelled():
        done.exception()


async def _pieces(answer: ServedAnswer, whole: asyncio.Future[Reply]) -> AsyncIterator[str]:
    """Yield the streamed text until the reply is complete."""
    whole.add_done_callback(lambda _: answer.news.set())
    while True:
        answer.news.clear()
        is_done = whole.done()  # read before the text, because all text of an answer comes before its reply
        if more := answer.next_chunk():
            yield more
        elif is_done:
            return
        else:
            await answer.news.wait()


def sent(what: dict[str, object]) -> bytes:
    """Return a server-sent event as bytes."""
    return b"data: " + encode(what) + b"\n\n"


def named_event(name: str, what: dict[str, object]) -> bytes:
    """Return a server-sent event with a name as bytes."""
    return f"event: {name}\n".encode() + sent(what)


def refusal(error: HeredityError) -> Refusal:
    """Return the refusal of a request that the engine, or a guard, did not take."""
    if isinstance(error, ContextOverflow):
        return Refusal(400, f"{_CONTEXT_WORDS}: {error}", CONTEXT, error.code)
    if isinstance(error, UsageError):
        if error.code == ContextOverflow.code:  # in words too, for clients that read only those
            return Refusal(400, f"{error} ({CONTEXT}).", CONTEXT, error.code, error.key)
        return Refusal(400, f"{error}.", "invalid_request", error.code, error.key)
    if isinstance(error, Busy):
        return Refusal(429, str(error), "too_many_requests", error.code)
    status = 503 if isinstance(error, EngineFailure) else 500
    return Refusal(status, str(error), "engine_error", error.code)


# --- guards ------------------------------------------------------------------------------------------

THREADS = 16  # texts that are read at once; the model of a guard reads them in one batch
MAX_WAITING = 256  # texts that are read or wait for it
T = TypeVar("T")


class ServedGuards:
    """The guards of an application, in threads.

    n_found: answers that each of them touched, by its label.
    """

    def __init__(self, chain: GuardChain) -> None:
        self._chain, self._n_open = chain, 0
        self._threads = ThreadPoolExecutor(THREADS, "guards")
        self.n_found: Counter[str] = Counter()

    @classmethod
    def from_application(
        cls, application: Application | None, readers: GuardReaders | None = None
    ) -> ServedGuards | None:
        """The guards of an application that are on; None without any. readers: the models of guards."""
        specs = () if application is None else application.standing_guards
        if application is None or not specs:
            return None
        return cls(GuardChain(specs, application, readers))

    async def admit(self, request: Request) -> Admission:
        """The request for the engine, unless it is blocked. Raises Busy if too many wait."""
        if self._n_open >= MAX_WAITING:
            raise Busy(f"{self._n_open:,} requests are already open. Try again later.")
        return await self._in_thread(lambda: self._chain.admit(request))

    async def refused(self, admission: Admission, engine: Engine) -> Reply:
        """The reply to a blocked request. An engine that counts tokens counts its prompt, as of any other."""
        n_tokens = 0
        if (scorer := capabilities(engine).token_scorer) is not None:
            with suppress(HeredityError):
                n_tokens = await self._in_thread(lambda: len(scorer.prompt_tokens(admission.request)))
        return self._counted(replace(admission.refused(), n_prompt_tokens=n_tokens))

    async def check(self, admission: Admission, reply: Reply) -> Reply:
        """The reply as the guards let it pass."""
        return self._counted(await self._in_thread(lambda: self._chain.check(admission, reply)))

    async def _in_thread(self, read: Callable[[], T]) -> T:
        self._n_open += 1
        try:
            with_helpers = host.temporary_helpers()(read)
            as_caller = copy_context().run  # the model of a guard has the same caller
            return await asyncio.get_running_loop().run_in_executor(self._threads, as_caller, with_helpers)
        finally:
            self._n_open -= 1

    def _counted(self, reply: Reply) -> Reply:
        self.n_found.update({note.partition(": ")[0] for note in reply.guarded or ()})
        return reply
