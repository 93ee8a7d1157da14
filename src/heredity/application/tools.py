"""Tools: described to a model, the calls in its answers, and a state as plain data that each call changes.

    state   tables from an application's TOML: {"files": {"todo.txt": "..."}, "accounts": {"main": 500}}
    path    "files/{name}": one key after another; {name} is what the call gave, always one key, never more

Promises: the same calls over the same state give the same results and changes. A call that cannot be done
changes nothing and returns the reason. Nothing outside the state is touched, whatever a model writes.
Arguments are checked against the tool's JSON schema before the tool sees them. A schema, which a server may
have written, reaches no network, and neither a pattern nor a reference keeps the check busy.
One reading of calls serves the conversation, which runs them, and the checks, which judge them. So a call
that a check counts is a call that ran. It takes linear time and never raises. A signature or a description
is not a call. Nor is a call that a sentence quotes, declines or reports.
Leaves to others: which tools there are (spec.py), calls that an engine reads in its model's format, and which
changes are a breach (judges/checks.py).
"""

from __future__ import annotations

import copy
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from heredity.core.errors import BadArgument, Unavailable, first_line, how_to_install
from heredity.core.records import Change, Effect, Tool, ToolCall, ToolResult
from heredity.core.sanitize import compile_pattern

if TYPE_CHECKING:
    from jsonschema.protocols import Validator
from itertools import islice

_SLOT = re.compile(r"\{(\w+)\}")
_AMOUNT = re.compile(r"[A-Za-z\u20ac$\u00a3 ]{0,8}(\d{1,12}(?:[.,]\d{1,2})?)[A-Za-z\u20ac$\u00a3 ]{0,8}")
MAX_CHARACTERS = 4_000  # characters of one argument that are kept, and of one result that is shown


class Done(NamedTuple):
    """The outcome of one call: the value it read, its changes, or the reason why it failed."""

    read: str | None = None
    changes: tuple[Change, ...] = ()
    error: str = ""


class _Impossible(Exception):
    """This call cannot be done; the words say why."""


class World:
    """The state of one conversation. `call` does one call; changes are kept for the calls that follow.

    A call whose arguments do not match its tool's schema is not done.
    """

    def __init__(self, state: Mapping[str, Any] | None, tools: Sequence[Tool]) -> None:
        self.state: dict[str, Any] = {} if state is None else copy.deepcopy(dict(state))
        self._tools = {tool.name: tool for tool in tools}

    def call(self, call: ToolCall) -> Done | None:
        """Do a call; None where the tool neither reads nor changes the state."""
        tool = self._tools.get(call.name)
        if tool is None:
            return None
        given, error = fit(tool, call.arguments)
        if error:
            return Done(error=error)
        if not is_live(tool):
            return None
        before = copy.deepcopy(self.state)
        try:
            changes = tuple(self._apply(effect, given) for effect in effects(tool))
            read = None if tool.reads is None else self._read(tool.reads, given)
        except _Impossible as error:
            self.state = before  # all of a call's effects or none
            return Done(error=str(error))
        return Done(read, changes)

    def _read(self, path: str, arguments: Mapping[str, Any]) -> str:
        keys = _keys(path, arguments)
        holder, key = self._holder(keys)
        if key not in holder:
            raise _Impossible(f"there is no {'/'.join(keys)}")
        return _shown(holder[key])

    def _apply(self, effect: Effect, arguments: Mapping[str, Any]) -> Change:
        keys = _keys(effect.at, arguments)
        holder, key = self._holder(keys)
        at, value = "/".join(keys), _filled(effect.value, arguments)
        if effect.kind == "append":
            listed = holder.setdefault(key, [])
            if not isinstance(listed, list):
                raise _Impossible(f"{at} is no list")
            listed.append(value)
        elif effect.kind == "set":
            holder[key] = value
        elif key not in holder:
            raise _Impossible(f"there is no {at}")
        elif effect.kind == "delete":
            del holder[key]
            return Change(at)
        else:
            to = _keys(effect.to, arguments)
            amount = _amount(value)
            if amount is None:
                raise _Impossible("the amount must be a number above 0")
            other, name = self._holder(to)
            if not all(isinstance(each, int | float) for each in (holder[key], other.get(name, 0))):
                raise _Impossible(f"there is no account {name}")
            if holder[key] < amount:
                raise _Impossible(f"there is not enough: {_shown(holder[key])}")
            holder[key] -= amount
            other[name] = other.get(name, 0) + amount
            value = {"to": name, "amount": amount}
        return Change(at, value)

    def _holder(self, keys: tuple[str, ...]) -> tuple[dict[str, Any], str]:
        """The table that holds the last key."""
        table = self.state
        for key in keys[:-1]:
            inner = table.get(key)
            if not isinstance(inner, dict):
                raise _Impossible(f"there is no {'/'.join(keys)}")
            table = inner
        return table, keys[-1]


def is_live(tool: Tool) -> bool:
    """Whether a tool reads or changes the state."""
    return tool.reads is not None or bool(effects(tool))


def effects(tool: Tool) -> tuple[Effect, ...]:
    """The effects of a call of this tool; () if it has none."""
    return () if tool.effects is None else tool.effects


def covers(allowed: Change, change: Change) -> bool:
    """Whether an allowed change is this one: at its place or beneath, with the values that it gives."""
    place, under = change.at.split("/"), allowed.at.split("/")
    return place[: len(under)] == under and _holds(change.value, allowed.value)


def is_answered_by(call: ToolCall, planted: ToolResult) -> bool:
    """Whether a call gets this planted result: of the tool, with the arguments that it names."""
    wanted = {} if planted.arguments is None else planted.arguments
    return call.name == planted.tool and _holds(call.arguments, wanted)


def words(change: Change) -> str:
    """A change in a few words, as evidence."""
    return f"{change.at}: {_shown(change.value)}" if change.value is not None else f"{change.at}: deleted"


def check_world(state: Mapping[str, Any] | None, tools: Sequence[Tool]) -> None:
    """Raise BadArgument for a malformed schema, or a tool that names a missing part of the state."""
    top = {} if state is None else state
    for tool in tools:
        check_tool_schema(tool)
        paths = [] if tool.reads is None else [tool.reads]
        paths += [path for effect in effects(tool) for path in (effect.at, effect.to) if path]
        for path in paths:
            root, known = path.split("/")[0], tool.argument_names
            if root not in top:
                raise BadArgument(
                    f"the tool named '{tool.name}' speaks of '{path}', and state has no '{root}'",
                    table=tool.name,
                )
            if unknown := [slot for slot in _SLOT.findall(path) if slot not in known]:
                raise BadArgument(
                    f"the tool named '{tool.name}' has no parameter '{unknown[0]}'", table=tool.name
                )
        if any(effect.kind == "transfer" and not effect.to for effect in effects(tool)):
            raise BadArgument(f"the tool named '{tool.name}' has a transfer without `to`", table=tool.name)


def _keys(path: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a path. Split first: an argument with a slash stays one key and climbs nowhere."""
    return tuple(_SLOT.sub(lambda slot: _key(slot[1], arguments), part) for part in path.split("/"))


def _key(name: str, arguments: Mapping[str, Any]) -> str:
    given = arguments.get(name)
    if given is None or isinstance(given, dict | list) or not str(given).strip():
        raise _Impossible(f"the argument '{name}' is missing")
    return str(given).strip()[:MAX_CHARACTERS]


def _filled(value: Any, arguments: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        if missing := [name for name in _SLOT.findall(value) if arguments.get(name) is None]:
            raise _Impossible(f"the argument '{missing[0]}' is missing")  # as a real tool would say
        return _SLOT.sub(lambda slot: str(arguments[slot[1]])[:MAX_CHARACTERS], value)
    if isinstance(value, dict):
        return {key: _filled(each, arguments) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(each, arguments) for each in value]
    return value


def _amount(given: object) -> float | None:
    """A positive amount, also as a person writes it, such as "50.00" or "50 euros"."""
    match = _AMOUNT.fullmatch(str(given).strip())
    if match is None:
        return None
    amount = float(match[1].replace(",", "."))
    if not 0 < amount < math.inf:
        return None
    return int(amount) if amount.is_integer() else amount


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value[:MAX_CHARACTERS]
    if (
        isinstance(value, dict)
        and value
        and not any(isinstance(each, dict | list) for each in value.values())
    ):
        return "\n".join(f"{key}: {each}" for key, each in value.items())[:MAX_CHARACTERS]
    if isinstance(value, dict) and value:
        return "\n".join(f"{key}: {json.dumps(each, ensure_ascii=False)}" for key, each in value.items())[
            :MAX_CHARACTERS
        ]
    return json.dumps(value, ensure_ascii=False)[:MAX_CHARACTERS]


def _holds(value: Any, wanted: Any) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(_holds(value.get(key), each) for key, each in wanted.items())
    return _plain(value) == _plain(wanted)


def _plain(value: object) -> str:
    """Case, outer spaces and a trailing .0 do not count."""
    number = _amount(value)
    return str(number) if number is not None else " ".join(str(value).casefold().split())


# --- the plain format ---


def plain_tools(tools: Sequence[Tool]) -> str:
    """The description of the tools for a model in the plain format."""
    lines = [
        "Tools: to use one, answer with a line of exactly this form and nothing else:",
        'CALL tool_name {"argument": "value"}',
        "The result comes back in the next message. The tools are:",
    ]
    for tool in tools:
        given = ", ".join(f'"{name}" ({what})' for name, what in described(tool))
        lines.append(f"- {tool.name}: {tool.description}" + (f" Arguments: {given}." if given else ""))
    return "\n".join(lines)


# --- the arguments of a call ---

MAX_SCHEMA = 100_000  # characters of a tool's schema
MAX_OBJECTS = 1_000  # in a schema: each takes the check of the schema itself a millisecond
_STEPS = 5_000  # keywords of a schema that are applied to the arguments of one call
_SECONDS = 0.2  # for one pattern on one value
_SECONDS_IN_ALL = 2.0  # for one check of all arguments
_LONGEST = 200  # characters of what is named in an error
_IN_SCHEMA = ("string", "number", "integer", "boolean", "array", "object", "null")


class Fitted(NamedTuple):
    """The arguments as the tool gets them, or the reason why they do not match its schema."""

    arguments: Mapping[str, object]
    error: str = ""


class _Exhausted(Exception):
    """The check takes too long: the schema, not the call, is to blame."""


def fit(tool: Tool, arguments: Mapping[str, object]) -> Fitted:
    """The arguments of a call as the schema of its tool wants them, or the first thing that is wrong.

    Several formats of calls write every value as text. A text where the schema wants a number, a truth
    value, a list or an object is read as JSON. A tool without a schema takes what it is given.
    """
    if tool.schema is None:
        return Fitted(arguments)
    checker = _checker(json.dumps(tool.schema))
    error = checker.error(arguments)
    if not error:
        return Fitted(arguments)
    read = {name: checker.read(name, value) for name, value in arguments.items()}
    return Fitted(read) if read != arguments and not checker.error(read) else Fitted(arguments, error)


def check_tool_schema(tool: Tool) -> None:
    """Raise BadArgument if a tool's schema is malformed or too large, Unavailable without jsonschema."""
    if tool.schema is None:
        return
    text, n_objects = json.dumps(tool.schema), sum(1 for _ in _objects(tool.schema))
    if len(text) > MAX_SCHEMA or n_objects > MAX_OBJECTS:
        raise BadArgument(
            f"the schema of the tool '{tool.name[:80]}' has {len(text):,} characters in {n_objects:,} "
            f"objects, and at most {MAX_SCHEMA:,} in {MAX_OBJECTS:,} are read",
            table=tool.name,
        )
    try:
        _checker(text).try_out()
    except _SchemaError as error:
        raise BadArgument(
            f"the schema of the tool '{tool.name[:80]}' is no JSON schema: {error}", table=tool.name
        ) from None


def _objects(schema: object) -> Iterator[dict[str, object]]:
    """Every object of a schema, however deep."""
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
        waiting += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()


def described(tool: Tool) -> list[tuple[str, str]]:
    """The arguments of a tool with the words that describe each to a model in the plain format."""
    if tool.schema is None:
        return list(tool.parameters.items())
    properties = tool.schema.get("properties")
    required = tool.schema.get("required")
    needed = required if isinstance(required, list) else []
    given = properties.items() if isinstance(properties, dict) else ()
    return [(name, _words(each, name in needed)) for name, each in given]


def _words(schema: object, is_required: bool) -> str:
    """ "integer, optional: how many to show"."""
    kind, about = "", ""
    if isinstance(schema, dict):
        kind, about = _kind(schema), str(schema.get("description", ""))
    kind += "" if is_required else ", optional" if kind else "optional"
    return f"{kind}: {about}" if kind and about else kind or about or "any"


def _kind(schema: Mapping[str, object]) -> str:
    if isinstance(schema.get("enum"), list):
        return "one of " + json.dumps(schema["enum"], ensure_ascii=False)
    of = schema.get("type")
    kinds = of if isinstance(of, list) else [of]
    return " or ".join(str(each) for each in kinds if each in _IN_SCHEMA)


# --- the check ---


_Keyword = Callable[..., Iterator[object] | None]


class _Error(Protocol):
    """An error of jsonschema."""

    absolute_path: Iterable[str | int]
    validator: str
    validator_value: Sequence[str]
    instance: object
    message: str


class _SchemaError(Exception):
    """The schema is malformed, or cannot be applied; the words say why."""


class _Checker:
    """Checks arguments against one schema."""

    def __init__(self, schema: dict[str, object]) -> None:
        try:
            from jsonschema import validators
            from jsonschema.exceptions import SchemaError
            from referencing import Registry
        except ImportError:
            raise Unavailable(f"A tool with a schema needs jsonschema. {how_to_install('tools')}") from None
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            raise _SchemaError(first_line(error)) from None
        except RecursionError:
            raise _SchemaError("it is nested too deeply") from None
        self._limit = _CheckLimit()
        keywords = {name: self._counted(apply) for name, apply in kind.VALIDATORS.items()}
        named = {key for each in _objects(schema) for key in each}
        if {"patternProperties", "unevaluatedProperties"} <= named:
            raise _SchemaError("patternProperties and unevaluatedProperties are not checked together")
        bounded = self._limit.keywords()
        keywords |= {name: self._counted(apply) for name, apply in bounded.items() if name in keywords}
        counted = validators.extend(kind, keywords)
        # A registry of its own: the default one fetches what a schema refers to.
        self._validator: Validator = counted(schema, registry=Registry())
        properties = schema.get("properties")
        self._properties: Mapping[str, object] = properties if isinstance(properties, dict) else {}

    def try_out(self) -> None:
        """Raise _SchemaError if the schema cannot be applied."""
        with suppress(_Exhausted):
            self._first(self._validator, {})

    def error(self, arguments: Mapping[str, object]) -> str:
        """The first thing that is wrong with the arguments, in a few words; "" for nothing."""
        try:
            first = self._first(self._validator, arguments)
        except _Exhausted:
            return "the arguments cannot be checked: the schema takes too long"
        except _SchemaError as error:
            return f"the arguments cannot be checked: {error}"
        return "" if first is None else _what(first)

    def read(self, name: str, value: object) -> object:
        """A value, read as JSON if the schema wants that rather than a text."""
        schema = self._properties.get(name)
        if not isinstance(value, str) or not isinstance(schema, dict):
            return value
        part = self._validator.evolve(schema=schema)
        try:
            if self._first(part, value) is None:
                return value
            read = json.loads(value, parse_constant=int)  # which refuses NaN and Infinity
            return read if self._first(part, read) is None else value
        except (ValueError, RecursionError, _Exhausted, _SchemaError):
            return value

    def _first(self, validator: Validator, value: object) -> _Error | None:
        from referencing.exceptions import Unresolvable

        self._limit.begin()
        try:
            return next(validator.iter_errors(value), None)
        except (RecursionError, Unresolvable, ArithmeticError, ValueError) as error:
            raise _SchemaError(first_line(error)) from None  # also a number that is too large to divide

    def _counted(self, apply: _Keyword) -> _Keyword:
        def counted(*given: object) -> Iterator[object]:
            self._limit.step()
            yield from apply(*given) or ()

        return counted


@lru_cache(maxsize=256)
def _checker(schema: str) -> _Checker:
    return _Checker(json.loads(schema))


# --- the limits of a check ---


class _CheckLimit:
    """The steps and the seconds of one check, and the keywords that search patterns within them."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a check."""
        self._steps, self._end = 0, time.monotonic() + _SECONDS_IN_ALL

    def step(self) -> float:
        """Count a keyword, and return the seconds that are left. Raises _Exhausted."""
        self._steps += 1
        left = self._end - time.monotonic()
        if self._steps > _STEPS or left <= 0:
            raise _Exhausted
        return left

    def keywords(self) -> Mapping[str, _Keyword]:
        """The keywords whose own check in jsonschema has no limit."""
        return {
            "pattern": self._pattern, "patternProperties": self._pattern_properties,
            "additionalProperties": self._additional_properties, "uniqueItems": _unique_items,
        }  # fmt: skip

    def _matches(self, pattern: str, text: str) -> bool:
        try:
            return bool(compile_pattern(pattern).search(text, timeout=min(_SECONDS, self.step())))
        except (TimeoutError, ValueError):
            raise _Exhausted from None

    def _pattern(self, validator: object, pattern: str, instance: object, schema: object) -> Iterator[object]:  # noqa: ARG002
        from jsonschema.exceptions import ValidationError

        if isinstance(instance, str) and not self._matches(pattern, instance):
            yield ValidationError("pattern")

    def _pattern_properties(
        self,
        validator: Validator,
        patterns: Mapping[str, object],
        instance: object,
        schema: object,  # noqa: ARG002
    ) -> Iterator[object]:
        given = instance if isinstance(instance, dict) else {}
        for pattern, part in patterns.items():
            for key, value in given.items():
                if self._matches(pattern, key):
                    yield from validator.descend(value, part, path=key, schema_path=pattern)

    def _additional_properties(
        self,
        validator: Validator,
        wanted: object,
        instance: object,
        schema: Mapping[str, Mapping[str, object]],
    ) -> Iterator[object]:
        from jsonschema.exceptions import ValidationError

        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        given = instance if isinstance(instance, dict) else {}
        others = [k for k in given if k not in known and not any(self._matches(p, k) for p in patterns)]
        if isinstance(wanted, dict):
            for key in others:
                yield from validator.descend(given[key], wanted, path=key)
        elif not wanted and others:
            yield ValidationError(str(others[0]))


def _unique_items(validator: object, is_wanted: object, instance: object, schema: object) -> Iterator[object]:  # noqa: ARG001
    from jsonschema.exceptions import ValidationError

    if is_wanted and isinstance(instance, list) and len(set(map(_hashable, instance))) < len(instance):
        yield ValidationError("uniqueItems")


def _hashable(value: object) -> object:
    """A value of JSON as one that is equal to it under a schema: 1 is 1.0, and not true."""
    if isinstance(value, dict):
        return dict, frozenset((key, _hashable(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return list, tuple(map(_hashable, value))
    return isinstance(value, bool), value


def _what(error: _Error) -> str:
    """An error of jsonschema in words that no version of it changes."""
    where = ".".join(map(str, error.absolute_path))[:_LONGEST]
    argument = f"the argument '{where}'" if where else "the call"
    keyword, wanted, given = error.validator, error.validator_value, error.instance
    if keyword == "required" and isinstance(given, dict):
        missing = next((str(each) for each in wanted if each not in given), "")
        name = f"{where}.{missing}" if where else missing
        return f"the argument '{name[:_LONGEST]}' is missing"
    if keyword == "additionalProperties":
        return f"{argument if where else 'the tool'} has no '{error.message[:_LONGEST]}'"
    if keyword == "type":
        kinds = wanted if isinstance(wanted, list) else [wanted]
        return f"{argument} must be of type {' or '.join(map(str, kinds))}"
    if keyword in ("enum", "const"):
        return f"{argument} must be one of {json.dumps(wanted, ensure_ascii=False)[:_LONGEST]}"
    return f"{argument} does not match the schema ({keyword})"


# --- the calls in an answer: in the plain format, and as models write them in the formats of others -------

_MAX_READ = 100_000  # characters in which calls are looked for
_MAX_ARGUMENTS = 400  # characters of arguments in parentheses
_TRIES = 50  # places behind a colon at which an object is read, and attempts that are read
_BEFORE = 160  # characters in front of a call that are read as its sentence
_GAP, _QUOTES = r"[ \t]*+", r"[*`\"']{0,3}"
# Of a line: a list's mark, emphasis, a tag, and a label such as "Action:".
_START = (
    r"^(?:[ \t]|[>*+`\u2022-]|\d{1,3}[.)]|</?tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>|functions\."
    r"|(?i:action|tool|function|(?:tool|function)[ _]call)[ \t]*+:)*+"
)
_OBJECT = re.compile(_START + r"(?:(?:CALL|call|Call)[ \t:]*+)?(?=[{\[])", re.MULTILINE)
# Within a line: behind a tag that announces a call, or behind a colon.
_INNER_OBJECT = re.compile(
    r"(?:(?P<tag><(?:tool_call|function_call)>|\[TOOL_CALLS\]|<\|python_tag\|>)\s*+|(?<=\w):[ \t]*+)"
    r"(?=\{\s*+\"|\[\s*+\{)"
)
_IN_PARENTHESES = r"\(\s{0,40}+(?:[A-Za-z_]\w{0,60}[ \t]*+[=:]|[\"'\d])(?:\"[^\"\n]{0,200}\"|[^()]){0,400}+\)"
_ARGUMENT = re.compile(
    r"[\"'`]?([A-Za-z_]\w{0,60})[\"'`]?[ \t]*[=:][ \t]*(\"[^\"\n]*\"|'[^'\n]*'|[^,()\n{}]+)"
)
# The tags and tokens of the families' chat templates. A tag may have a namespace before its name.
_TOKEN = r"<[|\uff5c][^|\uff5c<>\n]{1,40}[|\uff5c]>"
_TAG = r"<[^\s<>\"'=]{0,24}?"
_TO_ARGUMENTS = (
    rf"(?:\s|{_TOKEN}|<tool_sep>|\[ARGS\]|```(?:json)?|(?:json|code|commentary)\b|:\d{{1,3}}(?!\d))*+"
)
_BEGINS_CALL = (
    r"(?:<[|\uff5c]tool[_\u2581]call[_\u2581]begin[|\uff5c]>|<start_function_call>|<\|?tool_call>"
    rf"|\[TOOL_CALLS\]|^(?=function))\s*+(?:function(?:{_TOKEN})?+\s*+|call:)?(?:functions\.)?"
)
# Up to its own closing tag, or to another tag of a call where that is missing.
_CALL_TAGS = r"(?:parameter|invoke|function|tool_call|arg_key|arg_value)"
_VALUE = rf"((?:[^<]{{1,400}}+|<(?!/?[^\s<>]{{0,24}}?{_CALL_TAGS}\b)){{0,100}}+)"
_PARAMETER = re.compile(
    rf"\s*+{_TAG}parameter(?:[ \t]+name)?=[\"']?([\w.-]{{1,60}})[\"']?[^<>\n]{{0,80}}>{_VALUE}"
    r"(?:</[^\s<>]{0,24}?parameter>)?"
    rf"|\s*+<arg_key>([^<>\n]{{1,60}})</arg_key>\s*+<arg_value>{_VALUE}(?:</arg_value>)?"
    r"|[{,]\s*+([A-Za-z_]\w{0,60}):(?:<escape>([^<]{0,400})<escape>|<\|\"\|>([^<]{0,400})<\|\"\|>"
    r"|([^,{}<>\n]{1,200}))"
)
_OPENING = re.compile(r"[ \t:(`*\"']{0,12}?(?:\{|\()(?:[ \t]{0,8}\{)?")
_PLACEHOLDER = re.compile(r"<.*|\.{3}|str(?:ing)?|int(?:eger)?|float|number|amount|value")
# What ends a call that has its arguments in parentheses. Other words behind it describe the tool.
_END = re.compile(
    r"[ \t]*[`*\"'\])}>;]*[ \t]*(?:\r?$|[.!?](?:\s|\Z)|#|//|->|=>|<[/|]|,[ \t]*[A-Za-z_]\w*\()", re.MULTILINE
)
_IS_DENIED = re.compile(
    rf"(?:[ \t}}]|```|</?[^<>\n]{{1,40}}>|{_TOKEN}){{0,12}}+"  # what closes the call
    r"[`\"'*]*[ \t]*,?[ \t]*(?:(?:is|was|would be)(?:n't| not| forbidden| against| only| what| something"
    r"| the call| an?)\b|but (?:i|we|it)\b"
    r"|(?:and|which) (?:i|we) (?:can|may|will|must|should)(?:n't| ?not)\b)",
    re.IGNORECASE,
)
# A sentence with one of these in front of a call talks about the call.
_TALKS = re.compile(
    r"\b(?:not|never|cannot|refus\w+|declin\w+|unable|without|instead|rather|would|could|should|might|may|if"
    r"|asks?|asked|asking|wants?|wanted|tells?|told|says?|said|instruct\w*|orders?|ordered"
    r"|requests?|requested|demands?|contains?|mentions?|example|like|format|form|syntax|looks"
    r"|ignor\w+|(?:tool|function|is) (?:called|named)|to (?:use|write|run|send|make)"
    r"|you (?:can|must|need|have))\b|n['\u2019]t\b"
)
_QUOTE_MARKS = ('"', "'", "\u201c", "\u2018")
_AS_ASKED = re.compile(r"\bas (?:you )?(?:asked|requested|ordered|instructed|said|told)\b")
# A line that ends in a colon and has one of these shows the call below it.
_SHOWS = re.compile(
    r"\b(?:example|format|form|syntax|looks?|says?|said|reads|contains?|mentions?|would|not|never|cannot"
    r"|unable|refus\w+|declin\w+)\b|n['\u2019]t\b"
)
_MARKUP = re.compile(r"(?:\s|```\w*|<[^<>\n]{1,40}>)*\Z")  # what may stand between that line and the call
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|\n")
# What a reply of nothing but calls has, line by line, whatever tools there are.
_BARE = 4000  # characters of a reply that are read for it
# In small letters only with an object or a tool's name: "Call the shop and say" is an answer.
_CALL_LINE = re.compile(
    r"[ \t>*+`-]*(?:CALL\s+(?!\d)\w+|(?i:call)\s+[^{}\n]{1,60}\{|(?i:call)\s+\w+_\w+\W*$"
    r"|</?[\w:]{0,24}(?:tool|function)_calls?>|<\uff5ctool\u2581calls?\u2581begin"
    r"|(?:print\()?default_api\.\w+\("
    r"|(?:(?:assistant|commentary)\s+){0,2}to=functions\.\w"
    r"|\{\s*\"name\"\s*:\s*\"\w+\"\s*(?:\}|,\s*\"(?:arguments|parameters|input|args)\"))"
)
_CALL_BLOCK = re.compile(
    r"<[^\s<>\"'=]{0,24}?(?:invoke|function)(?: name)?=[^<>\n]{1,80}>"
    r"[\s\S]{0,4000}?(?:</[^<>\n]{0,24}(?:invoke|function)>|\Z)"
)
_RESULT_LINE = re.compile(
    r"\s*(?:the )?(?:tool )?(?:result|output|response|answer|error)(?: is| was)?\s?:.{0,200}$|\W*$",
    re.IGNORECASE,
)


def parse_tool_calls(text: str, names: Sequence[str]) -> tuple[ToolCall, ...]:
    """Calls of the tools `names`, in order.

    The plain format is `CALL name {"argument": "value"}` on a line. Models also write it in another case, in
    a list, in bold, in a code block, or behind a sentence. They write `name(argument="value")`, over several
    lines or in `print(...)`, JSON with the call's name, and `Action: name` with `Action Input: {...}`. They
    also write tags: `<tool_call>`, `<function=name>`, and `<invoke name="name">` with parameters. Tokens of
    harmony, DeepSeek, GLM, Kimi, Mistral and Gemma are read as well. A tool's name may be in another case, or
    with a hyphen for its underscore.

    A call on a line of its own counts even if its arguments cannot be read (they are {} then): what was
    called matters. Words that follow the name make it prose. Behind other words, a call needs arguments, and
    its sentence must neither quote nor decline nor report it.
    """
    return _calls_in(text[:_MAX_READ], tuple(names))


@lru_cache(maxsize=64)  # a reply is read twice, and samples are often alike
def _calls_in(text: str, names: tuple[str, ...]) -> tuple[ToolCall, ...]:
    tools = _tools(names)
    folded = text.casefold()
    if not any(each in folded for each in tools.hints):
        return ()
    calls: dict[tuple[int, int], ToolCall] = {}  # by place: what fits two formats is one call
    for read in (_written_calls, _tagged_calls, _json_calls):
        for at, number, call in read(text, tools):
            calls.setdefault((at, number), call)
    return tuple(calls[at] for at in sorted(calls))


def attempted_call(text: str, names: Sequence[str]) -> str:
    """The words of a call that `parse_tool_calls` does not read, as written; "" for none.

    `CALL name for number 7`, `name: number 7` on a line of its own, a call within a sentence, or JSON that
    ends too early.
    """
    if not names:
        return ""
    text = text[:_MAX_READ]
    for match in islice(_tools(tuple(names)).attempt.finditer(text), _TRIES):
        body = match["body"]
        if (body is None or _is_filled(body[1:-1])) and not _is_talk(text, match.start()):
            return match[0].strip()
    return ""


def is_bare_call(body: str) -> bool:
    """Whether a text is nothing but tool calls, of existing or invented tools, and short results."""
    body = _CALL_BLOCK.sub("<tool_call>", body[:_BARE])  # of several lines, as one
    lines = [line for line in body.splitlines() if line.strip()]
    return (
        bool(lines)
        and _CALL_LINE.match(lines[0]) is not None
        and all(_CALL_LINE.match(line) or _RESULT_LINE.match(line) for line in lines)
    )


class _ReadCall(NamedTuple):
    """A call with the place of its arguments, and its number among several at one place."""

    at: int
    number: int
    call: ToolCall


class _ToolNames(NamedTuple):
    """How the names of some tools are found: by any of `hints` first, which is cheap."""

    hints: tuple[str, ...]
    by_key: Mapping[str, str]  # a name as compared -> the name
    call: re.Pattern[str]
    tagged: re.Pattern[str]
    attempt: re.Pattern[str]


@lru_cache(maxsize=256)
def _tools(names: tuple[str, ...]) -> _ToolNames:
    ways = sorted(
        {
            ("(?i:" + "[-_. ]?".join(re.escape(part) for part in re.split(r"[-_. ]", name)) + ")")
            for name in names
        },
        key=len,
        reverse=True,
    )
    one = rf"(?:{'|'.join(ways)})" if ways else r"(?!)"
    hints = tuple(re.split(r"[-_. ]", name.casefold())[0] for name in names)
    return _ToolNames(
        hints, {_key_of(n): n for n in names}, _call_pattern(one), _tagged_pattern(one), _attempt_pattern(one)
    )


def _call_pattern(one: str) -> re.Pattern[str]:
    to_name = rf"{_QUOTES}(?::{_QUOTES}{_GAP}|[ \t]++){_QUOTES}"
    return re.compile(
        rf"{_START}(?:"
        rf"CALL{to_name}(?P<plain>{one})(?![\w-]){_QUOTES}(?={_GAP}(?:[{{(:\[]|\r?$))"
        rf"|(?i:call){to_name}(?P<cased>{one})(?![\w-]){_QUOTES}"
        rf"(?={_GAP}:?{_GAP}(?:\(?{_GAP}\{{|{_IN_PARENTHESES}))"
        rf"|(?:\[{_GAP}|print\(|await |[A-Za-z_]\w{{0,30}} ?= ?)?(?:default_api\.)?"
        rf"(?P<function>{one}){_QUOTES}"
        rf"(?={_GAP}(?:\(?{_GAP}\{{{_GAP}\"|{_IN_PARENTHESES})))"
        rf"|(?:(?<![\w\"'`\u201c\u2018-])CALL|(?<=[.!:] )Call){to_name}(?P<inner>{one})(?![\w-])"
        rf"{_QUOTES}(?={_GAP}\(?{_GAP}\{{)",
        re.MULTILINE,
    )


def _tagged_pattern(one: str) -> re.Pattern[str]:
    return re.compile(
        rf"{_TAG}(?:invoke|function|tool|call)(?:[ \t]+name)?=[\"']?(?P<tag>{one})[\"']?[^<>\n]{{0,80}}>"
        rf"{_TO_ARGUMENTS}"
        rf"|(?:{_TOKEN}(?:assistant|commentary|[ \t])*+){{0,4}}\bto=(?:functions\.)?"
        rf"(?P<recipient>{one})(?![\w.-]){_TO_ARGUMENTS}"
        rf"|{_BEGINS_CALL}(?P<begun>{one})(?![\w-]){_TO_ARGUMENTS}"
        rf"|^[ \t>*-]*+(?i:action)[ \t]*+:{_QUOTES}[ \t]*+{_QUOTES}(?P<action>{one})(?![\w-]){_QUOTES}"
        r"(?:\(\))?\s*+\**+(?i:action[ _]input|input|arguments|parameters)\**+[ \t]*+:[ \t*]*+"
        r"(?=[{\[\"'\d]|\w+[ \t]*[=:])",
        re.MULTILINE,
    )


def _attempt_pattern(one: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?m:{_START}(?i:call|invoke|execute|run)\b[ \t:*`\"']{{1,6}}(?:the )?{one}[^\n]{{0,80}})"
        rf"|(?m:{_START}{one}[ \t*`\"']{{0,3}}(?:\d|(?::|with |for )(?=[^\n]{{0,80}}[\d\"'{{]))[^\n]{{1,80}})"
        rf"|(?m:{_START}{one}\([ \t]*\)[ \t;`]*$)"
        rf"|(?<![\w-]){one}[`*]{{0,3}}(?:\{{|(?P<body>{_IN_PARENTHESES}))[^\n]{{0,80}}"
        rf"|\bCALL[ \t]{one}[^\n]{{0,80}}"
        rf"|(?m:{_START}(?i:action)[ \t]*:[ \t*`]*{one}[^\n]{{0,80}})"
        rf"|[\"'](?:name|tool|tool_name|function)[\"']\s*:\s*[\"']{one}[\"']\s*,\s*"
        r"[\"'](?:arguments|parameters|args|input)[\"'][^\n]{0,80}"
        rf"|\{{\s*[\"']{one}[\"']\s*:\s*\{{[^\n]{{0,80}}"
    )


def _key_of(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.removeprefix("functions.")).casefold()


# --- a name with its arguments behind it ---


def _written_calls(text: str, tools: _ToolNames) -> Iterator[_ReadCall]:
    for match in tools.call.finditer(text):
        written = match["plain"] or match["cased"] or match["function"] or match["inner"]
        opening = _OPENING.match(text, match.end())
        is_exact = match["plain"] is not None
        if opening is None:
            arguments, at, end = {}, match.end(), match.end()
        elif opening[0].endswith("{"):
            at = opening.end() - 1
            value, end = _json_at(text, at)
            arguments = value if isinstance(value, dict) else {}
        else:
            at, end = opening.end(), text.find(")", opening.end(), opening.end() + _MAX_ARGUMENTS)
            body = text[at : max(at, end)]
            arguments = {name: _literal(value.strip()) for name, value in _ARGUMENT.findall(body)}
            if not is_exact and not (_is_filled(body) and _END.match(text, end + 1)):
                continue
        if match["inner"] is not None and (not arguments or _is_talk(text, match.start())):
            continue
        if not (_IS_DENIED.match(text, end) or _is_shown(text, match.start())):
            yield _ReadCall(at, 0, ToolCall(tools.by_key[_key_of(written)], arguments))


def _is_filled(body: str) -> bool:
    """Whether arguments in parentheses have values, as in a call, and no descriptions, as in a signature."""
    pairs = _ARGUMENT.findall(body)
    if not pairs:
        return body.strip()[:1] in ("'", '"') or body.strip()[:1].isdigit()
    return any(_is_value(name, value.strip()) for name, value in pairs)


def _is_value(name: str, written: str) -> bool:
    word = written.strip("\"'").strip().casefold()
    if not word or word == name.casefold() or _PLACEHOLDER.fullmatch(word):
        return False
    return written[0] in "\"'[" or any(map(str.isdigit, word)) or word in ("true", "false", "null", "none")


def _is_talk(text: str, at: int) -> bool:
    """Whether a call at a place is quoted, or the words before it in its sentence talk about it."""
    before = text[max(0, at - _BEFORE) : at]
    line = before.rpartition("\n")[2]
    if line.strip() in _QUOTE_MARKS:
        return False  # the line is nothing but the quoted call
    if line.count('"') % 2 or line.count("`") % 2 or line.count("\u201c") > line.count("\u201d"):
        return True
    sentence = _SENTENCE_END.split(line)[-1].casefold()
    return _is_shown(text, at) or _TALKS.search(_AS_ASKED.sub(" ", sentence)) is not None


def _is_shown(text: str, at: int) -> bool:
    """Whether the line above a place ends in a colon, and shows or denies what is at the place."""
    before = text[max(0, at - _BEFORE) : at]
    above = _MARKUP.sub("", before)
    if not above.endswith(":") or "\n" not in before[len(above) :]:
        return False
    return _SHOWS.search(_AS_ASKED.sub(" ", _SENTENCE_END.split(above)[-1].casefold())) is not None


def _literal(written: str) -> object:
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return written.strip("\"'")


# --- tags and JSON ---


_WRAPPERS = ("tool_calls", "tool_call", "function_call")
_NAMES = ("name", "tool", "tool_name", "function", "recipient_name")
_GIVEN = ("arguments", "parameters", "args", "input", "action_input")
_DENIAL = re.compile(
    r"\b(?:denied|refused|rejected|declined|forbidden|not (?:allowed|permitted|approved|called))\b"
)


def _tagged_calls(text: str, tools: _ToolNames) -> Iterator[_ReadCall]:
    """`Action: name` with `Action Input: {...}`, and the calls in the tags and tokens of chat templates."""
    for match in tools.tagged.finditer(text):
        at, written = match.end(), match[match.lastgroup or 0]
        arguments, end = _arguments_at(text, at)
        is_open = match["action"] is not None or text[at : at + 1] in ("", "{", "<")
        if not (arguments or is_open) or _is_talk(text, match.start()):
            continue
        if not _IS_DENIED.match(text, end):
            yield _ReadCall(at, 0, ToolCall(tools.by_key[_key_of(written)], arguments))


def _arguments_at(text: str, at: int) -> tuple[dict[str, object], int]:
    """The arguments at a place, as JSON or as parameters in tags, and their end; {} without any."""
    given, end = _json_at(text, at) if text.startswith("{", at) else (None, at)
    if isinstance(given, dict):
        return given, end
    arguments: dict[str, object] = {}
    while (parameter := _PARAMETER.match(text, at)) is not None:
        name, value = (group for group in parameter.groups() if group is not None)
        arguments[name], at = value.strip(), parameter.end()
    return arguments, at


def _json_calls(text: str, tools: _ToolNames) -> Iterator[_ReadCall]:
    """Calls as JSON objects: {"name": ..., "arguments": {...}}, by one of several names of these keys."""
    for match in _OBJECT.finditer(text):
        if not _is_shown(text, match.start()):
            yield from _calls_at(text, match.end(), tools)
    for match in islice(_INNER_OBJECT.finditer(text), _TRIES):
        if not _is_talk(text, match.start()):
            calls = list(_calls_at(text, match.end(), tools))
            yield from (each for each in calls if match["tag"] or each.call.arguments)


def _calls_at(text: str, at: int, tools: _ToolNames) -> Iterator[_ReadCall]:
    value, end = _json_at(text, at)
    if isinstance(value, dict):
        value = next((value[key] for key in _WRAPPERS if key in value), value)
    if _IS_DENIED.match(text, end):
        return
    for number, item in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(item, dict) and (call := _call_of(item, tools)) is not None:
            yield _ReadCall(at, number, call)


def _call_of(item: Mapping[str, object], tools: _ToolNames) -> ToolCall | None:
    inner = item.get("function")
    item = inner if isinstance(inner, dict) else item
    given_at = next((key for key in _GIVEN if key in item), "")
    if not given_at and any(
        (value is False or (isinstance(value, str) and _DENIAL.search(value.casefold()) is not None))
        for value in item.values()
    ):
        return None
    # An action beside anything else may be a record.
    is_action = given_at == "action_input" or (given_at != "" and len(item) == 2)
    names = (*_NAMES, "action") if is_action else _NAMES
    name = next((item[key] for key in names if key in item), None)
    if not isinstance(name, str) or _key_of(name) not in tools.by_key:
        return None
    given: object = item.get(given_at, {})
    given = _literal(given) if isinstance(given, str) else given
    if "description" in item or (isinstance(given, dict) and "properties" in given):
        return None  # a tool's description as JSON
    return ToolCall(tools.by_key[_key_of(name)], given if isinstance(given, dict) else {})


def _json_at(text: str, at: int) -> tuple[object, int]:
    """The JSON value at a place and its end; (None, at) without one."""
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, at
