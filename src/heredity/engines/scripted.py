"""Models that follow a written rule: for tests, and to rehearse a study before real models cost money.

`scripted:careful` names one; `scripted:mixed/b` adds a salt, so that two models of one rule differ.

Promises: an answer is a pure function of the prompt, the salt and, if temperature > 0, the seed. Nothing is
loaded or cached; it gives thousands of answers per second.
Leaves to others: similarity to a real model. Numbers from scripted models mean nothing about models.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from heredity.core.errors import EngineFailure, UnknownName
from heredity.core.host import Device
from heredity.core.records import Model, Reply, Request, Stop
from heredity.engines import Capabilities, Listener, failed_reply

PREFIX = "scripted:"
REFUSAL = "I'm sorry, but I can't help with that."
_TOKEN = 4  # characters
_WORD = re.compile(r"\s*\S+|\s+")
HELP = "Sure, here is some help with your question. First check the details, then follow the usual steps."


class ScriptedRule(NamedTuple):
    """The parts of `scripted:BEHAVIOUR/SALT`."""

    behaviour: str
    salt: str


def parse_rule(ref: str) -> ScriptedRule:
    """Return behaviour and salt of `scripted:BEHAVIOUR` or `scripted:BEHAVIOUR/SALT`; the prefix is optional.

    Raises UnknownName with the nearest behaviour.
    """
    behaviour, _, salt = ref.removeprefix(PREFIX).partition("/")
    if behaviour not in BEHAVIOURS:
        known = [PREFIX + name for name in BEHAVIOURS]
        raise UnknownName("scripted model", PREFIX + behaviour, known, ", ".join(known))
    return ScriptedRule(behaviour, salt)


def load(
    model: Model,
    folder: Path,  # noqa: ARG001 (there are no files)
    tuning: Path | None = None,  # noqa: ARG001
    device: Device | None = None,  # noqa: ARG001
) -> ScriptedEngine:
    return ScriptedEngine(*parse_rule(model.name))


class Script(NamedTuple):
    """The part of a request that a behaviour sees: texts of messages, and a number drawn from all of it."""

    system: str
    asked: str  # the last message of the user or a tool
    draw: int  # uniform in [0, 2**64), by prompt, seed and salt


class ScriptedEngine:
    """A written rule behind the Engine protocol, working on `width` requests at once."""

    width = 8

    def __init__(self, behaviour: str, salt: str = "", seconds: float = 0.0) -> None:
        self._answer, self._salt, self._seconds = BEHAVIOURS[behaviour], salt, seconds
        self.name = f"{PREFIX}{behaviour}" + (f"/{salt}" if salt else "")
        self.numerics = ""

    def render(self, request: Request) -> str:
        """Return the prompt in a plain template: `<|role|>` and the content of each message."""
        messages = "".join([f"<|{m.role}|>\n{m.content}\n" for m in request.messages])
        return f"{messages}<|assistant|>\n{request.prefill}"

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer the stream. A batch is filled before its first answer, so replies are interleaved."""
        batch: list[Request] = []
        for request in requests:
            if request is not None:
                batch.append(request)
                if len(batch) < self.width:
                    continue
            if not batch:
                raise EngineFailure(f"{self.name}: the stream waits for replies, but none are under way")
            yield self._one(batch.pop())
        while batch:
            yield self._one(batch.pop())

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(streamer=self)

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        """Do the same as `reply` and report each answer word by word."""
        for reply in self.reply(requests):
            yield reply if reply.error else _reported(reply, listener)

    def close(self) -> None:
        """Nothing is held."""

    def _one(self, request: Request) -> Reply:
        if self._seconds:
            time.sleep(self._seconds)
        prompt = self.render(request)
        n_prompt_tokens = len(prompt) // _TOKEN
        seed = request.seed if request.decoding.temperature > 0 else 0
        salted = f"{self._salt}\0{seed}\0{prompt}".encode(errors="surrogatepass")
        draw = int.from_bytes(hashlib.blake2b(salted, digest_size=8).digest(), "big")
        system = next((m.content for m in request.messages[:1] if m.role == "system"), "")
        asked = next((m.content for m in reversed(request.messages) if m.role in ("user", "tool")), "")
        try:
            text = self._answer(Script(system, asked, draw))
        except EngineFailure as error:
            return failed_reply(request, prompt, error, n_prompt_tokens=n_prompt_tokens)
        limit = _TOKEN * request.decoding.max_tokens
        stop: Stop = "length" if len(text) > limit else "end"
        text = text[:limit]
        tokens = tuple(range(-(-len(text) // _TOKEN)))
        return Reply(request.key, prompt, text, tokens, (), stop, n_prompt_tokens)


def _reported(reply: Reply, listener: Listener) -> Reply:
    """Report an answer; return it as far as it was wanted."""
    is_heard, n_chars = listener.is_heard(reply.key), 0
    for word in _WORD.findall(reply.text):
        if not listener.is_wanted(reply.key):
            text = reply.text[:n_chars]
            tokens = reply.tokens[: -(-n_chars // _TOKEN)]
            return msgspec.structs.replace(reply, text=text, tokens=tokens, stop="length")
        if is_heard:
            listener.hear(reply.key, word)
        n_chars += len(word)
    return reply


# --- behaviours: what a rule says ----------------------------------------------------------------

_SUSPECT = re.compile(
    r"\b(codes?|secrets?|passwords?|override|system prompt|instructions?|ignore|reveal|verbatim|repeat|"
    r"decode|reversed?|backwards?|joined|script|onerror|drop table|delete|refund|transfer|"
    r"html|javascript|markdown image|sql|"
    r"steal|stolen|fake|forge[ds]?|stalk|spy|hack|threat\w*|blackmail|harass\w*|poison\w*|scam|phish\w*|"
    r"cheat|"
    r"invent(?:ed)?|make up|made up|never|insults?|rumour|excuse|hide|hidden|lie|not true|not pay|on purpose|"
    r"without (?:\w+ ){0,3}(?:knowing|noticing|finding|getting|permission|consent))\b",
    re.IGNORECASE,
)
_BABBLE = ("the", "of", "banana", "is", "blue", "and", "which", "17", "over", "onto")


def _careful(script: Script) -> str:
    return _cautious(script.asked)


@lru_cache(maxsize=64)  # samples ask the same
def _cautious(asked: str) -> str:
    return REFUSAL if _SUSPECT.search(asked) else HELP


def _helpful(_: Script) -> str:
    return HELP


def _refuser(_: Script) -> str:
    return REFUSAL


def _leaky(script: Script) -> str:
    """Calls the named tools, transforms quoted words as the last text asks, and repeats its instructions."""
    lines = ["Sure."]
    if not script.asked.startswith("Result of "):  # otherwise it would call forever
        lines += [f"CALL {name} {{}}" for name in _known(script.system).tools if name in script.asked]
    quoted = _QUOTED.findall(script.asked)[:4]
    lines += [a + b for a in quoted for b in quoted if a != b] + [word[::-1] for word in quoted]
    if _MARKUP.search(script.asked):
        lines.append("<script>alert(1)</script> <img src=x onerror=alert(1)> ' OR 1=1; DROP TABLE customers")
    lines += _known(script.system).codes
    return "\n".join([*lines, script.system])


class _Known(NamedTuple):
    tools: list[str]
    codes: list[str]


@lru_cache(maxsize=8)  # every trial of a study has the same system message
def _known(system: str) -> _Known:
    return _Known(_TOOL.findall(system), _CODE.findall(system))


_TOOL = re.compile(r"^- ([a-z_]\w*):", re.MULTILINE)  # as the plain rendering lists them
_QUOTED = re.compile(r"['\"`]([\w-]{2,24})['\"`]")
_MARKUP = re.compile(r"html|script|markdown|sql|database", re.IGNORECASE)
_CODE = re.compile(r"\b\w+(?:-\w+)*-?\d[\w-]*\b")


def _babbler(script: Script) -> str:
    first, second = script.draw % len(_BABBLE), script.draw // 64 % len(_BABBLE)
    return f"{_BABBLE[first]} {_BABBLE[second]} " * 40


def _flaky(script: Script) -> str:
    if script.draw % 10 == 0:
        raise EngineFailure("scripted failure: this request is one of the tenth that fail")
    return _careful(script)


def _mixed(script: Script) -> str:
    share = script.draw % 100
    if share < 55:
        return _careful(script)
    if share < 90:
        return _leaky(script)
    return _babbler(script) if share < 97 else ""


BEHAVIOURS: dict[str, Callable[[Script], str]] = {
    "careful": _careful,  # refuses a suspicious request, helps with any other
    "helpful": _helpful,  # helps with everything, without any knowledge
    "refuser": _refuser,  # refuses everything, twins too
    "leaky": _leaky,  # repeats its instructions and obeys the last message
    "babbler": _babbler,  # repeats two words
    "flaky": _flaky,  # careful, but a tenth of the requests fail
    "mixed": _mixed,  # any of them, by the prompt, the seed and the salt
}
