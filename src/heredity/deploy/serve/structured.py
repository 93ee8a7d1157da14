"""The JSON schema that a caller wants answers to match: of `response_format`, or of a call that `tool_choice`
demands.

Promises: a schema that the engine cannot hold answers to is refused, with the reason. An application keeps
its own.
Leaves to others: the tokens that may come next (engines/torch/constrained.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UNSET, UnsetType

from heredity.core.errors import BadArgument, UsageError
from heredity.core.records import Tool, encode
from heredity.deploy.serve.schema import Rules

FIELD, CHOICE = "response_format", "tool_choice"
_LONGEST = 1 << 14  # bytes of a schema: a longer one takes seconds to compile, and time in each step
_ANY_OBJECT = '{"type":"object"}'
_VALUES = ("const", "enum", "default", "examples")  # of a schema: what is in them is no schema


def read_schema(form: Mapping[str, object] | None, rules: Rules, has_tools: bool) -> str | UnsetType:
    """Return the schema of a `response_format` as JSON text; unset for plain text. Raises UsageError."""
    schema = _schema(form or {"type": "text"})
    if isinstance(schema, UnsetType):
        return UNSET
    layer = rules.application
    if layer is not None and not rules.may_draw and schema != layer.decoding.json_schema:
        raise UsageError(
            f"the application '{layer.name}' holds the form of its answers. Leave {FIELD} out, or serve with"
            " --free-decoding",
            code="decoding-held",
            key=FIELD,
        )
    if has_tools:
        raise UsageError(
            f"an answer that matches {FIELD} calls no tools: leave out `tools`",
            code="field-not-supported",
            key=FIELD,
        )
    return _checked(schema, FIELD, rules)


def nested(form: object) -> object:
    """Return the form of an answer as /v1/chat/completions takes it, from an API that has it less nested."""
    if isinstance(form, dict) and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": form}
    return form


def demanded_call(choice: object, tools: Sequence[Tool], rules: Rules) -> str | UnsetType:
    """Return the schema of an answer that is the call which `tool_choice` demands; unset if none is.

    The call is written as a bare JSON object, {"name": ..., "arguments": ...}, which is read back as one.
    Raises UsageError.
    """
    if choice in ("auto", "none"):
        return UNSET
    known = [tool.name for tool in tools]
    match choice:
        case "required":
            demanded = list(tools)
        case {"type": "function", "function": {"name": str(name)}} if name in known:
            demanded = [tools[known.index(name)]]
        case _:
            demanded = []
    if not demanded:
        raise UsageError(
            "tool_choice takes 'auto', 'none', 'required' with tools, or the function of one of the tools",
            code="tool-choice-not-supported",
            key=CHOICE,
        )
    if rules.application is not None or rules.schemas is None:
        why = "this engine cannot hold it to one"
        if rules.application is not None:
            why = f"the application '{rules.application.name}' leaves that to it"
        raise UsageError(
            f"the model cannot be forced to call a tool here: {why}. Use 'auto'",
            code="tool-choice-not-supported",
            key=CHOICE,
        )
    return _checked(encode(_call(demanded)).decode(), CHOICE, rules)


def _call(tools: Sequence[Tool]) -> dict[str, object]:
    """Return the schema of a call of one of the tools. The schema of each tool is a part of its own."""
    parts: dict[str, object] = {}
    calls: list[dict[str, object]] = []
    for number, tool in enumerate(tools):
        given = {key: value for key, value in tool.arguments_schema.items() if key not in ("$schema", "$id")}
        parts[str(number)] = _moved(given, f"#/$defs/{number}")
        calls.append({
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/{number}"}},
            "required": ["name", "arguments"], "additionalProperties": False,
        })  # fmt: skip
    call: dict[str, object] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {"$defs": parts, **call}


def _moved(schema: object, place: str) -> object:
    """Return a part of a schema whose root is at this place of another one: references to it move along."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: value if key in _VALUES else _moved(value, place) for key, value in schema.items()}
    if isinstance(to := schema.get("$ref"), str) and to.startswith("#"):
        moved["$ref"] = place + to[1:]
    return moved


def _checked(schema: str, key: str, rules: Rules) -> str:
    """Return a schema that the engine can hold answers to. Raises UsageError for another."""
    if rules.schemas is None:
        raise UsageError(
            f"this model's engine cannot hold answers to a {key}", code="field-not-supported", key=key
        )
    if len(schema) > _LONGEST:
        raise UsageError(f"the schema of {key} has at most {_LONGEST:,} bytes", code="bad-setting", key=key)
    try:
        rules.schemas.check_schema(schema)
    except BadArgument as error:
        raise UsageError(str(error), code=error.code, key=key) from None
    return schema


def _schema(form: Mapping[str, object]) -> str | UnsetType:
    match form:
        case {"type": "text"}:
            return UNSET
        case {"type": "json_object"}:
            return _ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return encode(schema).decode()
    raise UsageError(
        f"{FIELD} takes the types text, json_object, and json_schema with a schema",
        code="bad-setting",
        key=FIELD,
    )
