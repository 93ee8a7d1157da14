"""Keep one engine busy with many conversations at once, and turn each into a response.

Promises: a conversation starts only when the engine has room for it; a later turn goes ahead of a new trial;
an answer the cache holds never reaches the engine; an answer that fails is a response with an error. What
attacks ask their attacker model is put to it in batches, when the target has nothing else ready.
Leaves to others: which trials there are (plan.py), and where responses go (study.py).
"""

from __future__ import annotations

import os.path
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from typing import Any, Self

import msgspec

from heredity.application.spec import Application
from heredity.core.cache import ResponseCache, cache_key
from heredity.core.errors import ContextOverflow, EngineFailure, HeredityError
from heredity.core.records import (
    ATTACKER_FAILED,
    NOTHING_ASKED,
    SCHEMA,
    TURN_LIMIT,
    UNSUPPORTED,
    Consult,
    Consulted,
    Exchange,
    Message,
    Record,
    Reply,
    Request,
    Response,
    digest,
)
from heredity.core.sanitize import clean, clean_call, clean_text
from heredity.engines import failed_reply
from heredity.engines.protocols import DecodingAdapter, Engine
from heredity.redteam import attacks
from heredity.study.attack_context import AT_ONCE, Kit, Referee
from heredity.study.trials import Grid, Trial

UNMADE = "the turn limit came before the demand: raise the application's max_turns"
Ask = Callable[[Iterable[int]], None]  # a model that is asked the trials at these places


class Prefix(Record, frozen=True):
    """A row of prefixes.jsonl: a text that many prompts of the study begin with."""

    digest: str
    text: str
    schema: int = SCHEMA


class Talk:
    """A conversation under way."""

    __slots__ = (
        "consulted", "error", "error_code", "exchanges", "is_cached", "request", "trial", "turns"
    )  # fmt: skip

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.turns: Generator[Request | Consult, Reply, bool] = _nothing()
        self.exchanges: list[Exchange] = []
        self.consulted: list[Consulted] = []
        self.is_cached, self.error = True, ""
        self.error_code = EngineFailure.code  # of `error`, where there is one
        self.request: Request | None = None

    def fail(self, error: str, code: str) -> None:
        """Note what the trial came to instead of an answer."""
        self.error, self.error_code = error, code


class Pump:
    """Ask one model its trials. `finished` gets every response, in the order in which they are complete."""

    def __init__(
        self,
        engine: Engine,
        grid: Grid,
        prefix: Prefix,
        finished: Callable[[Response], None],
        cache: ResponseCache | None = None,
        kit: Kit | None = None,
    ) -> None:
        self._engine, self._grid, self._prefix, self._finished = engine, grid, prefix, finished
        self._application = grid.plan.application
        self._cache = cache if engine.numerics else None
        self._attacks = {spec: attacks.planned(spec) for spec in grid.plan.attacks}
        self._how = attacks.context_for(self._application)
        self._engine_name, self._kit = engine.name, kit or Kit()
        self._asides: dict[int, Talk] = {}  # they wait for the attacker
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
            raise EngineFailure(
                f"the engine stopped with {len(self._under_way)} requests unanswered",
                code="requests-unanswered",
            )

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
        while not self._follow_ups:
            is_full = len(self._asides) >= AT_ONCE
            if not is_full and (index := next(self._waiting, None)) is not None:
                if (request := self._advance(self._start(index), None)) is not None:
                    return request
            elif self._asides and (is_full or not self._under_way):
                self._consult()
            else:
                return None
        return self._follow_ups.popleft()

    def _start(self, index: int) -> Talk:
        trial = self._grid.trial(index)
        talk, attack = Talk(trial), self._attacks[trial.attack]
        how = msgspec.structs.replace(self._how, sample=trial.sample, seed=trial.seed)
        if attack.needs_attacker or attack.searches:
            referee = Referee(trial.probe, self._application, talk.exchanges)
            how = msgspec.structs.replace(how, referee=referee)
        if attack.needs_weights and (reason := self._kit.why_not(attack, self._engine)):
            talk.fail(clean_text(reason), UNSUPPORTED)
            return talk
        try:
            if attack.searches:
                found = self._kit.found(attack, trial, how, self._engine, self._application)
                how = msgspec.structs.replace(how, found=found)
        except EngineFailure as error:
            talk.fail(clean_text(str(error)), error.code)
            return talk
        talk.turns = self._application.converse(attack(trial.probe, how), trial.probe, trial.seed)
        return talk

    def _advance(self, talk: Talk, reply: Reply | None) -> Request | None:
        """Move a conversation on until it needs the engine (its request) or is over (None)."""
        while True:
            try:
                request = next(talk.turns) if reply is None else talk.turns.send(reply)
            except StopIteration as end:
                # Neither held nor broke, by any judge: what the probe asks was never asked.
                if talk.exchanges and not end.value and not talk.error:
                    talk.fail(UNMADE, TURN_LIMIT)
                self._end(talk)
                return None
            if isinstance(request, Consult):
                if (reply := self._aside(talk, request)) is None:
                    return None
                continue
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
            return failed_reply(request, "", error)
        reply = self._cache.get(self._key(request, prompt))
        return None if reply is None else msgspec.structs.replace(reply, key=request.key)

    def _key(self, request: Request, prompt: str) -> str:
        model = self._grid.trial(request.key).model.id
        decoding = request.decoding
        if isinstance(self._engine, DecodingAdapter):
            decoding = self._engine.as_sent(
                decoding
            )  # a service that takes no temperature draws, whatever was asked
        return cache_key(self._engine.numerics, model, prompt, decoding, request.seed)

    # --- towards the attacker ---

    def _aside(self, talk: Talk, question: Consult) -> Reply | None:
        """The attacker's reply where it is known already; else the conversation waits for it."""
        if self._kit.attacker is None:
            raise EngineFailure("the attack asks an attacker model, and the study has none")
        talk.request = self._kit.attacker.request(talk.trial, question, len(talk.consulted))
        if (reply := self._kit.attacker.known(talk.request)) is not None:
            return self._heard(talk, reply)
        self._asides[talk.trial.index] = talk
        return None

    def _consult(self) -> None:
        """Put to the attacker all that waits for it."""
        asides, self._asides = self._asides, {}
        if self._kit.attacker is None:
            return
        questions = [talk.request for talk in asides.values() if talk.request is not None]
        for reply in self._kit.attacker.ask(questions):
            talk = asides[reply.key]
            if (request := self._advance(talk, self._heard(talk, reply))) is not None:
                self._follow_ups.append(request)

    def _heard(self, talk: Talk, reply: Reply) -> Reply:
        """The attacker's reply, noted; its failure ends the trial, as the target's would."""
        n_tokens = len(reply.tokens) if reply.n_tokens is None else reply.n_tokens
        name = self._kit.attacker.engine.name if self._kit.attacker is not None else ""
        at, n_prompt_tokens = len(talk.exchanges), reply.n_prompt_tokens
        talk.consulted.append(Consulted(at, reply.prompt, reply.text, name, n_prompt_tokens, n_tokens))
        if reply.error is None and reply.stop != "error":
            return reply
        talk.fail(f"the attacker failed: {reply.error or 'it gave no reason'}", ATTACKER_FAILED)
        return msgspec.structs.replace(reply, error=talk.error)

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
            raise EngineFailure(
                f"the engine answered request {reply.key}, which was not asked", code="reply-not-asked"
            )
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
            talk.fail(reply.error or "the engine gave no reason", reply.error_code or EngineFailure.code)

    def _end(self, talk: Talk) -> None:
        trial = talk.trial
        if not talk.exchanges and not talk.error:
            talk.fail("the attack asked nothing", NOTHING_ASKED)
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
                talk.error or None,
                talk.is_cached and bool(talk.exchanges),
                tuple(talk.consulted) if talk.consulted else msgspec.UNSET,
                talk.error_code if talk.error else msgspec.UNSET,
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


def _nothing() -> Generator[Request | Consult, Reply, bool]:
    """A conversation in which nothing is said."""
    yield from ()
    return False


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


class Desk:
    """One model at a time: loaded when it is first asked something, closed when another one is."""

    def __init__(self, load: Callable[[int], AbstractContextManager[Ask]]) -> None:
        self._load, self._open = load, ExitStack()
        self.model: int | None = None  # the one that is loaded, by its place in the plan

    def ask(self, m: int, indices: Iterator[int]) -> None:
        """Ask model `m` its trials at `indices`; with none, it is not even loaded."""
        if (first := next(indices, None)) is None:
            return
        if m != self.model:
            self._open.close()
            self.model, self._ask = m, self._open.enter_context(self._load(m))
        self._ask(chain((first,), indices))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._open.__exit__(*error)
