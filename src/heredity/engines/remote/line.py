"""Requests on their way to a far service: a loop in a thread of its own, with retries that are the only ones.

Promises: every request that is started comes out of `done` exactly once, as a reply or as a Lost; a failure
that may pass is tried again within the request's patience, any other is a reply with stop "error" at once;
a failure that no other request would escape closes the line, and what is under way still comes in.
Leaves to others: which requests there are, and what they may cost (remote.py).
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec

from heredity.core.records import Reply, Request, ToolCall
from heredity.core.sanitize import clean_text
from heredity.engines.remote.budget import Calls, Usage
from heredity.engines.remote.messages import Answer, Open, Service, Where
from heredity.engines.remote.retry import Closed, Pace, wait_seconds
from heredity.engines.remote.transport import SEEN, Broken, Client, Failure, Seen, of_error, read_json

_IN_A_ROW = 16  # requests that failed with all their attempts and none between them that was answered
_FILTER_CODES = frozenset({"content_filter", "content_policy_violation"})  # Azure's and OpenAI's, status 400


@dataclass
class Errand:
    """A request under way, and what its attempts came to. `worst`: what was reserved of the budget for it."""

    request: Request
    body: dict[str, Any]
    prompt: str
    worst: Usage
    used: Usage = field(default_factory=Usage)
    started: float = field(default_factory=time.monotonic)
    n_failures: int = 0
    n_limits: int = 0


@dataclass(frozen=True)
class Told:
    """What came of a request: its reply, and what it used. `reply` None: given up as the line was closed."""

    request: Request
    worst: Usage
    used: Usage
    reply: Reply | None


@dataclass
class Tally:
    """Circumstances of one engine's life, for the run's row. Written by the loop's thread alone."""

    counts: Counter[str] = field(default_factory=Counter)
    served: dict[str, None] = field(default_factory=dict)  # in the order in which they were first seen


class Line:
    """The thread, its loop, and the service in it."""

    def __init__(
        self, where: Where, key: str, calls: Calls, open_service: Open, hidden: Callable[[str], str]
    ) -> None:
        self.done: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self.tally = Tally()
        self.fatal = ""
        self.pace = Pace(calls.concurrency)
        self._calls, self._hidden, self._n_in_a_row, self._n_answered = calls, hidden, 0, 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"remote {where.model}", daemon=True
        )
        self._thread.start()
        try:
            self._service: Service = self._run(self._open(where, key, open_service))
        except BaseException:
            self._stop()
            raise

    async def _open(self, where: Where, key: str, open_service: Open) -> Service:
        self._client = Client(self._calls, self._hidden, key)
        return open_service(where, key, self._client)

    def body(self, request: Request) -> dict[str, Any]:
        """What will be sent. Raises EngineFailure where the service has no such thing."""
        return self._service.body(request)

    def start(self, errand: Errand) -> None:
        """Send a request on its way."""
        self._loop.call_soon_threadsafe(self._start, errand)

    def give_up(self) -> None:
        """Cancel what is under way and wait until it is."""
        if self._loop.is_closed():
            return
        self._run(self._cancel())
        while not self.done.empty():
            self.done.get()

    def close(self) -> None:
        """Give up, close the connections and end the thread."""
        if self._loop.is_closed():
            return
        self._run(self._shut())
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # --- in the loop's thread -------------------------------------------------------------------------

    def _start(self, errand: Errand) -> None:
        task = self._loop.create_task(self._answer(errand))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _shut(self) -> None:
        await self._cancel()
        await self._service.close()
        await self._client.aclose()
        for _ in range(3):  # the loop's own turns in which it closes sockets
            await asyncio.sleep(0)

    async def _answer(self, errand: Errand) -> None:
        reply: Reply | None = None
        try:
            reply = await self._persist(errand)
        except Closed:
            pass
        except Failure as failure:
            reply = self._failed(errand, failure.words)
        except Exception as error:  # a fault of ours: a row that says so, not a request that never ends
            reply = self._failed(errand, f"a fault in the remote engine ({type(error).__name__})")
        self.done.put(Told(errand.request, errand.worst, errand.used, reply))

    async def _persist(self, errand: Errand) -> Reply:
        """The answer, however many attempts it takes. Raises Failure, or Closed where the line ends first."""
        while True:
            at = await self.pace.enter()
            try:
                answer = await self._attempt(errand)
            except Failure as failure:
                if failure.code in _FILTER_CODES:
                    answer = Answer("", (), "filter", failure.code, Usage(), "")
                else:
                    await self._recover(errand, failure, at)
                    continue
            finally:
                self.pace.leave()
            self._n_in_a_row, self._n_answered = 0, self._n_answered + 1
            self.pace.grow()
            return self._reply(errand, answer)

    async def _attempt(self, errand: Errand) -> Answer:
        seen, error = Seen(), Exception()
        token = SEEN.set(seen)
        self.tally.counts["n_requests"] += 1
        try:
            async with asyncio.timeout(self._calls.total_seconds):
                await self._service.send(errand.body)
        except TimeoutError:
            seconds = self._calls.total_seconds
            raise Failure(f"no answer within {seconds:g} seconds", is_passing=True, may_cost=True) from None
        except Exception as caught:  # an SDK's view of the response; ours is below
            error = caught
        finally:
            SEEN.reset(token)
        if not seen.status:
            raise of_error(error) from None
        try:
            return self._service.read(read_json(seen), clean_text(errand.request.prefill))
        except Broken as broken:
            raise Failure(f"broken answer: {broken}", is_passing=True, may_cost=True) from None

    async def _recover(self, errand: Errand, failure: Failure, at: float) -> None:
        """Wait until the request may be tried again. Raises the failure where it may not, or Closed."""
        calls, now = self._calls, time.monotonic()
        if failure.may_cost:
            errand.used = plus(errand.used, Usage(errand.worst.n_prompt, 0, is_estimated=True))
        if failure.is_for_all and (failure.is_lasting or not self._n_answered):
            self._end(failure.words)
        if not failure.is_passing:
            raise failure
        errand.n_failures, errand.n_limits = (
            errand.n_failures + (not failure.is_limit), errand.n_limits + failure.is_limit
        )  # fmt: skip
        drawn = wait_seconds(errand.n_failures + errand.n_limits, calls.first_wait)
        seconds = drawn if failure.after is None else failure.after
        if failure.is_limit:
            self.tally.counts["n_limited"] += 1
            if seconds > calls.patience_seconds:
                self._end(f"{failure.words} (the service asks to wait {seconds:,.0f} seconds)")
            self.pace.cut(at, seconds)
        is_spent = errand.n_failures > calls.retries or errand.n_limits > 4 * calls.retries
        if is_spent or now + seconds > errand.started + calls.patience_seconds:
            self._n_in_a_row += 1
            if self._n_in_a_row >= _IN_A_ROW:
                self._end(f"{self._n_in_a_row} requests in a row failed, the last with: {failure.words}")
            n = errand.n_failures + errand.n_limits
            raise Failure(f"{failure.words} (after {n} attempt{'s' if n > 1 else ''})") from None
        self.tally.counts["n_retried"] += 1
        await self.pace.sleep(0.0 if failure.is_limit else seconds)

    def _end(self, words: str) -> None:
        """Nothing more is started or tried again; what is under way still comes in."""
        self.fatal = self.fatal or self._hidden(words)
        self.pace.close()
        raise Closed

    # --- replies --------------------------------------------------------------------------------------

    def _reply(self, errand: Errand, answer: Answer) -> Reply:
        used = answer.usage
        if used is None:
            n_answer = -(-len(answer.text.encode("utf-8", "replace")) // 3)
            used = Usage(errand.worst.n_prompt, n_answer, is_estimated=True)
        errand.used = plus(errand.used, used)
        if served := self._hidden(answer.served):
            self.tally.served.setdefault(served)
        if answer.stop == "filter":
            self.tally.counts[f"n_filtered ({self._hidden(answer.why)[:40]})"] += 1
        return Reply(
            errand.request.key,
            errand.prompt,
            self._hidden(answer.text),
            tool_calls=tuple(map(self._call, answer.calls)),
            stop=answer.stop,
            n_prompt_tokens=used.n_prompt,
            n_tokens=used.n_answer,
        )

    def _call(self, call: ToolCall) -> ToolCall:
        """The call, the key taken out of it: a service that echoes it may put it anywhere."""
        told = msgspec.json.encode(call.arguments).decode("utf-8", "replace")
        if (clean := self._hidden(told)) != told:
            return ToolCall(self._hidden(call.name), msgspec.json.decode(clean))
        return ToolCall(self._hidden(call.name), call.arguments)

    def _failed(self, errand: Errand, words: str) -> Reply:
        request = errand.request
        return Reply(request.key, errand.prompt, "", stop="error", error=self._hidden(words), n_tokens=0)


def plus(a: Usage, b: Usage) -> Usage:
    """Two uses together."""
    return Usage(
        a.n_prompt + b.n_prompt,
        a.n_answer + b.n_answer,
        a.n_cached + b.n_cached,
        a.n_written + b.n_written,
        a.is_estimated or b.is_estimated,
    )
