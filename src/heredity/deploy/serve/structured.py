"""The JSON schema that a caller wants answers to match: `response_format` of OpenAI's API.

Promises: a schema that the engine cannot hold answers to is refused, with the reason. An application keeps
its own.
Leaves to others: the tokens that may come next (engines/torch/constrained.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, UnsetType

from heredity.core.errors import BadArgument, UsageError
from heredity.core.records import encode
from heredity.deploy.serve.schema import Rules

FIELD = "response_format"
_LONGEST = 1 << 14  # bytes of a schema: a longer one takes seconds to compile, and time in each step
_ANY_OBJECT = '{"type":"object"}'


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
    if rules.schemas is None:
        raise UsageError(
            f"this model's engine cannot hold answers to a {FIELD}", code="field-not-supported", key=FIELD
        )
    if len(schema) > _LONGEST:
        raise UsageError(
            f"the schema of {FIELD} has at most {_LONGEST:,} bytes", code="bad-setting", key=FIELD
        )
    try:
        rules.schemas.check_schema(schema)
    except BadArgument as error:
        raise UsageError(str(error), code=error.code, key=FIELD) from None
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
