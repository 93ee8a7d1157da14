"""Tools: a state as plain data with what each call does to it, and how tools are described to a model.

    state   tables from an application's TOML: {"files": {"todo.txt": "..."}, "accounts": {"main": 500}}
    path    "files/{name}": one key after another; {name} is what the call gave, always one key, never more

Promises: the same calls over the same state give the same results and changes. A call that cannot be done
changes nothing and returns the reason. Nothing outside the state is touched, whatever a model writes.
Arguments are checked against the tool's JSON schema before the tool sees them. A schema, which a server may
have written, reaches no network, and neither a pattern nor a reference keeps the check busy.
Leaves to others: which tools there are (spec.py), the calls in an answer (calls.py), and which changes are a
breach (judges/checks.py).
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
