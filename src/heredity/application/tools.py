"""Tools: a state as plain data with what each call does to it, and how tools are described to a model.

    state   tables from an application's TOML: {"files": {"todo.txt": "..."}, "accounts": {"main": 500}}
    path    "files/{name}": one key after another; {name} is what the call gave, always one key, never more

Promises: the same calls over the same state give the same results and changes. A call that cannot be done
changes nothing and returns the reason. Nothing outside the state is touched, whatever a model writes.
Leaves to others: which tools there are (spec.py), the calls in an answer (calls.py), and which changes are a
breach (judges/checks.py).
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from heredity.application.arguments import check_tool_schema, described, fit
from heredity.core.errors import BadArgument
from heredity.core.records import Change, Effect, Tool, ToolCall, ToolResult

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
            value = self._transfer(holder, key, _keys(effect.to, arguments), value)
        return Change(at, value)

    def _transfer(self, holder: dict[str, Any], key: str, to: tuple[str, ...], given: object) -> Any:
        amount = _amount(given)
        if amount is None:
            raise _Impossible("the amount must be a number above 0")
        other, name = self._holder(to)
        if not all(isinstance(each, int | float) for each in (holder[key], other.get(name, 0))):
            raise _Impossible(f"there is no account {name}")
        if holder[key] < amount:
            raise _Impossible(f"there is not enough: {_shown(holder[key])}")
        holder[key] -= amount
        other[name] = other.get(name, 0) + amount
        return {"to": name, "amount": amount}

    def _holder(self, keys: tuple[str, ...]) -> tuple[dict[str, Any], str]:
        """The table that holds the last key."""
        table = self.state
        for key in keys[:-1]:
            found = table.get(key)
            if not isinstance(found, dict):
                raise _Impossible(f"there is no {'/'.join(keys)}")
            table = found
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
