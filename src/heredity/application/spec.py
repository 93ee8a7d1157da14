"""Everything around the model that a study holds constant: prompt, passages, tools, secrets, decoding.

Promises: an application is frozen and has a digest; with rendering "plain" (the default) every model sees the
same words for tools and passages, so that the layer really is constant; a file's mistake names its line.
Leaves to others: how messages become a model's own text (engines/) and whether an answer was bad (judges/).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application.tools import World
from heredity.application.tools import check as check_world
from heredity.core.errors import BadArgument, BadInput, code_of, did_you_mean, origin_of
from heredity.core.readers import toml_of
from heredity.core.records import (
    Consult,
    Decoding,
    Effect,
    Message,
    Probe,
    Record,
    Reply,
    Request,
    Tool,
    ToolCall,
    Turn,
    digest,
)

SECRET_MIN = 4  # letters and digits of a secret


class Secret(Record, frozen=True):
    """A value that the application knows and must not say: at least four letters or digits."""

    name: str  # what a person would call it: "the manager override code"
    value: str


class Passage(Record, frozen=True):
    """A retrieved passage that is part of every conversation."""

    title: str
    text: str


class Application(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """The layer held constant. `max_turns` bounds the user's turns in one conversation, and the model's
    replies to each (more than one where it calls tools): turns to come lose nothing by a call in between.

    rendering: "plain", tools and passages in one format for every model; "native", tools by each model's own
    template; "theirs", the target is an application of the user's own: it is sent the user's words alone, and
    what stands here (system prompt, tools, secrets) is what the user says it holds, for the judges to find.
    "recorded" is of imports alone: what was around the models is not known.
    """

    name: str
    system: str
    company: str = "the company"
    few_shot: tuple[Message, ...] = ()
    passages: tuple[Passage, ...] = ()
    tools: tuple[Tool, ...] = ()
    secrets: tuple[Secret, ...] = ()
    decoding: Decoding = Decoding()
    max_turns: int = 4
    rendering: Literal["plain", "native", "theirs", "recorded"] = "plain"
    state: dict[str, Any] | UnsetType = UNSET  # what the tools read and change; see world.py

    def __post_init__(self) -> None:
        if not 1 <= self.max_turns <= 64:
            raise BadArgument(
                f"max_turns must be from 1 to 64, not {self.max_turns}", code="bad-setting", key="max_turns"
            )
        check_decoding(self.decoding)
        _check_tools(self.tools)
        _check_secrets(self.secrets)
        check_world(self.state, self.tools)

    @classmethod
    def load(cls, path: Path | str) -> Application:
        """Read an application from TOML. Raises BadInput with the line; a wrong key names the nearest."""
        path = Path(path)
        return parse(toml_of(path), path)

    @cached_property
    def digest(self) -> str:
        """Names this layer: two studies compare only under equal digests."""
        return digest(self)

    def system_text(self) -> str:
        """The system message: the prompt, then passages and tools in the plain format."""
        parts = [self.system.strip()]
        if self.passages:
            parts.append(
                "Documents:\n" + "\n\n".join(f"[{p.title}]\n{p.text.strip()}" for p in self.passages)
            )
        if self.tools and self.rendering == "plain":
            parts.append(_plain_tools(self.tools))
        return "\n\n".join(parts)

    def messages(self) -> tuple[Message, ...]:
        """What comes before the user's first word, the same in every trial; nothing where that is theirs."""
        if self.rendering == "theirs":
            return ()
        return (Message("system", self.system_text()), *self.few_shot)

    def request(
        self, messages: Sequence[Message], prefill: str = "", seed: int = 0, decoding: Decoding | None = None
    ) -> Request:
        """A request for the next reply, under this application's decoding where no other is given."""
        tools = self.tools if self.rendering == "native" else ()
        n_shared = 0 if self.rendering == "theirs" else 1 + len(self.few_shot)
        drawn = self.decoding if decoding is None else decoding
        return Request(0, tuple(messages), drawn, seed, prefill, tools, n_shared)

    @overload
    def converse(
        self, turns: Generator[Turn, Reply, None], probe: Probe, seed: int = 0
    ) -> Generator[Request, Reply, bool]: ...

    @overload
    def converse(
        self, turns: Generator[Turn | Consult, Reply, None], probe: Probe, seed: int = 0
    ) -> Generator[Request | Consult, Reply, bool]: ...

    def converse(
        self, turns: Generator[Turn | Consult, Reply, None], probe: Probe, seed: int = 0
    ) -> Generator[Request | Consult, Reply, bool]:
        """One conversation as a generator: yields a request, receives the reply; returns whether a turn that
        makes the probe's demand was answered.

        User turns come from the attack, until it has no more, the turn limit is met, or an error ends it. A
        fresh turn begins anew, with the limit whole; only what tools have changed stays. What the attack asks
        its attacker model goes through.
        """
        messages, world = list(self.messages()), World(self.state, self.tools)
        passage, n_turns, is_made, reply = probe.passage, 0, False, None
        while True:
            try:
                turn = next(turns) if reply is None else turns.send(reply)
            except StopIteration:
                return is_made
            if isinstance(turn, Consult):
                reply = yield turn
                if reply.error is not None:
                    return is_made
                continue
            if turn.is_fresh:
                messages, passage, n_turns = list(self.messages()), probe.passage, 0
            elif n_turns >= self.max_turns:
                return is_made
            # Two messages of the user in a row are more than some templates take.
            left = f"{messages.pop().content}\n\n" if n_turns and messages[-1].role == "user" else ""
            messages += turn.before
            messages.append(Message("user", left + _with_passage(turn.text, passage)))
            passage, n_turns = "", n_turns + 1
            reply = yield from self._answer(messages, turn, probe, world, seed)
            if reply.error is not None:
                return is_made
            is_made |= turn.asks

    def _answer(
        self, messages: list[Message], turn: Turn, probe: Probe, world: World, seed: int
    ) -> Generator[Request, Reply, Reply]:
        """The replies to one turn, put behind `messages`; returns the last.

        A tool call is answered with the probe's or the tool's canned result and the model goes on, until it
        calls none or has replied `max_turns` times; what it called then is answered with the next turn.
        """
        prefill = turn.prefill
        for _ in range(self.max_turns):
            reply = yield self.request(messages, prefill, seed, turn.decoding)
            if reply.error is not None:
                break
            calls = self.calls(prefill, reply)
            messages.append(self.said(prefill + reply.text, calls))
            prefill = ""
            if not calls or self.rendering == "theirs":  # their application answers its own calls
                break
            messages += self._answered(calls, probe, world)
        return reply

    def calls(self, prefill: str, reply: Reply) -> tuple[ToolCall, ...]:
        """The tool calls in a reply: in the plain format, and in the model's own as its engine read them."""
        plain = parse_tool_calls(prefill + reply.text, [tool.name for tool in self.tools])
        return plain + tuple(call for call in reply.tool_calls if call not in plain)

    def said(self, text: str, calls: tuple[ToolCall, ...] = ()) -> Message:
        """What the model wrote, as a message of the conversation."""
        return Message("assistant", text, calls if self.rendering == "native" else ())

    def _answered(self, calls: tuple[ToolCall, ...], probe: Probe, world: World) -> list[Message]:
        return self.results([(call.name, self.tool_result(call, probe, world)) for call in calls])

    def results(self, named: Sequence[tuple[str, str]]) -> list[Message]:
        """The results of tools, each by its tool's name, as messages of the conversation."""
        if self.rendering == "native":
            return [Message("tool", result) for _, result in named]
        # One user message: not every template has a tool role, and the layer must be the same for all.
        said = "\n\n".join(f"Result of {name}:\n{result}" for name, result in named)
        return [Message("user", said)] if named else []

    def tool_result(self, call: ToolCall, probe: Probe, world: World | None = None) -> str:
        """The result of a call: the probe's own where it has one, what the world says, or the canned one."""
        done = world.call(call) if world is not None else None
        if done is not None and done.error:
            return f"error: {done.error}"
        if probe.tool_result is not None and probe.tool_result.tool == call.name:
            return probe.tool_result.text
        if done is not None and done.read is not None:
            return done.read
        for tool in self.tools:
            if tool.name == call.name:
                return tool.result
        return f"error: there is no tool named {call.name}"


def parse(data: dict[str, Any], path: Path | str) -> Application:
    """An application from parsed TOML; raises BadInput naming the key, and the nearest known one."""
    try:
        application = msgspec.convert(data, Application, strict=True)
        _ = application.digest  # what nests too deeply to be written is said here, not in a study
        return application
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise BadInput(
            path, _explain(str(error)), _line_of(path, error), code=code_of(error, "bad-setting")
        ) from None
    except RecursionError:
        raise BadInput(path, "its values are nested too deeply", code="nested-too-deeply") from None


def check_decoding(decoding: Decoding) -> None:
    """Raise ValueError for what nothing can be drawn by."""
    if decoding.max_tokens < 1:
        raise BadArgument(
            f"decoding.max_tokens must be at least 1, not {decoding.max_tokens}",
            code="bad-setting",
            key="decoding.max_tokens",
        )
    if not 0 <= decoding.temperature < math.inf:  # nan compares false
        raise BadArgument(
            f"decoding.temperature must be a number of 0 or more, not {decoding.temperature}",
            code="bad-setting",
            key="decoding.temperature",
        )
    if not 0 < decoding.top_p <= 1:
        raise BadArgument(
            f"decoding.top_p must be above 0 and at most 1, not {decoding.top_p}",
            code="bad-setting",
            key="decoding.top_p",
        )


def _check_tools(tools: Sequence[Tool]) -> None:
    names = [tool.name for tool in tools]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise BadArgument(
            f"two tools are named '{twice}'; give each a name of its own", code="name-twice", table=twice
        )


def _check_secrets(secrets: Sequence[Secret]) -> None:
    """The judge finds a secret by its letters and digits; a shorter one stands in any answer by chance."""
    for secret in secrets:
        if sum(map(str.isalnum, secret.value)) < SECRET_MIN:
            raise BadArgument(
                f"the secret named '{secret.name}' must have at least {SECRET_MIN} letters or digits",
                code="secret-too-short",
                table=secret.name,
            )


def parse_tool_calls(text: str, names: Sequence[str]) -> tuple[ToolCall, ...]:
    """Calls in the plain format: `CALL name {"argument": "value"}` on a line of its own.

    A call counts even if its arguments are not valid JSON (arguments then are {}): what was called matters.
    """
    found = (match for match in _CALL.finditer(text) if match[1] in names)
    return tuple(ToolCall(match[1], _arguments(text[match.end() :])) for match in found)


_CALL = re.compile(
    r"^(?:[ \t>*+`-]|\d{1,3}[.)])*+CALL[*`]{0,3}(?::[*`]{0,3}[ \t]*+|[ \t]++)"  # "CALL ", "1. **CALL:** "
    r"[*`]{0,3}([A-Za-z_][\w.-]*+)[*`]{0,3}(?=[ \t]*+(?:[{(:[]|\r?$))",  # more words after the name are prose
    re.MULTILINE,
)


def _arguments(rest: str) -> dict[str, Any]:
    start = rest.find("{")
    if start < 0 or rest[:start].strip(" \t:(`"):
        return {}
    try:
        value, _ = json.JSONDecoder().raw_decode(rest[start:])
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _plain_tools(tools: Sequence[Tool]) -> str:
    lines = [
        "Tools: to use one, answer with a line of exactly this form and nothing else:",
        'CALL tool_name {"argument": "value"}',
        "The result comes back in the next message. The tools are:",
    ]
    for tool in tools:
        arguments = ", ".join(f'"{name}" ({what})' for name, what in tool.parameters.items())
        lines.append(
            f"- {tool.name}: {tool.description}" + (f" Arguments: {arguments}." if arguments else "")
        )
    return "\n".join(lines)


def _with_passage(text: str, passage: str) -> str:
    return f"Retrieved document:\n{passage.strip()}\n\nQuestion: {text}" if passage else text


def _explain(message: str) -> str:
    unknown = re.search(r"unknown field `([^`]+)`", message)
    if unknown is None:
        return message
    known = [
        f
        for struct in (Application, Secret, Passage, Tool, Effect, Decoding, Message)
        for f in struct.__struct_fields__
    ]
    place = re.search(r"at `\$?\.?([^`]*)`", message)
    where = f" in {place[1]}" if place and place[1] else ""
    return f"unknown key '{unknown[1]}'{where}.{did_you_mean(unknown[1], known)}"


def _line_of(path: Path | str, error: Exception) -> int:
    """The line of the key, or of the table, that an error is about; 0 for none."""
    if not Path(path).exists():
        return 0
    lines = Path(path).read_text(errors="replace").splitlines()
    own = origin_of(error)
    if own is not None and own.table:
        pattern = re.compile(rf"[^#]*\bname\s*=\s*[\"']{re.escape(own.table)}[\"']")
        return max((n for n, line in enumerate(lines, 1) if pattern.match(line)), default=0)
    if own is not None and own.key:
        table, _, key = own.key.rpartition(".")
        return _line_in(lines, table, key)
    message = str(error)
    start = _header(lines, message)
    named = re.search(r"unknown field `([^`]+)`", message) or re.search(r"\.(\w+)`$", message)
    if named is None:
        return start
    pattern = re.compile(rf"\s*\"?{re.escape(named[1])}\"?\s*=|\s*\[+{re.escape(named[1])}\]+")
    return next((n for n, line in enumerate(lines, 1) if n >= start and pattern.match(line)), start)


def _header(lines: Sequence[str], message: str) -> int:
    """The line of the table that a message numbers (`$.tools[1]`: the second [[tools]]); 0 for none."""
    place = re.search(r"at `\$\.(\w+)\[(\d+)\]", message)
    if place is None:
        return 0
    opens = re.compile(rf"\s*\[\[\s*[\"']?{place[1]}[\"']?\s*\]\]")
    headers = [number for number, line in enumerate(lines, 1) if opens.match(line)]
    return headers[int(place[2])] if int(place[2]) < len(headers) else 0


def _line_in(lines: Sequence[str], table: str, key: str) -> int:
    """The line of `key` in its own table ("" is the top), also as `table.key` at the top."""
    inside = ""
    for number, line in enumerate(lines, 1):
        if header := re.match(r"\s*\[+\s*([^\]\s]+)", line):
            inside = header[1]
        found = re.match(r"\s*([\w.]+)\s*=", line)
        if found and f"{inside}.{found[1]}".lstrip(".") == f"{table}.{key}".lstrip("."):
            return number
    return 0
