"""The tables of an application's file, completed by what they refer to: schemas in files, and functions.

    [[tools]]
    function = "my_tools:lookup"     # a module, or a file, in the folder of the application's file

Promises: relative names are looked up in the folder of the application's file. A function's own schema is
not given twice.
Leaves to others: the values of the tables (spec.py), and the process that knows the functions (sources.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from heredity.application import sources
from heredity.application.sandbox.messages import Offered
from heredity.core.errors import BadArgument, ToolFailure, first_line
from heredity.core.records import encode

_OF_FUNCTION = ("schema", "parameters", "reads", "code", "home")  # known from the function, or not for one


def completed(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tables of a file with what they refer to: JSON schemas, and what their functions are.

    A schema is given as a table, as text, or as the name of a file. That of `decoding` becomes text, those of
    tools become tables. Raises BadArgument.
    """
    decoding, tools = data.get("decoding"), data.get("tools")
    if isinstance(decoding, dict) and "json_schema" in decoding:
        text = _schema_text(decoding["json_schema"], folder, "decoding.json_schema")
        data = {**data, "decoding": {**decoding, "json_schema": text}}
    if isinstance(tools, list):
        tables = [_tool_table(each, folder) for each in tools]
        data = {**data, "tools": _with_functions(tables, folder.absolute())}
    return data


def _tool_table(table: object, folder: Path) -> object:
    if not isinstance(table, dict) or not isinstance(table.get("schema"), str):
        return table
    try:
        found = msgspec.json.decode(str(_schema_text(table["schema"], folder, "schema")))
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadArgument(
            f"the schema of a tool is not JSON: {error}",
            code="malformed-json",
            table=str(table.get("name", "")),
        ) from None
    return {**table, "schema": found}


def _schema_text(given: object, folder: Path, key: str) -> object:
    if isinstance(given, dict):
        return encode(given).decode()
    if not isinstance(given, str) or given.lstrip().startswith("{"):
        return given
    try:
        return (folder / given).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise BadArgument(
            f"{key} names the file {given[:200]}, which does not read ({first_line(error)})",
            code="path-missing",
            key=key,
        ) from None


def _with_functions(tables: list[object], folder: Path) -> list[object]:
    """The tables of tools, those of functions with description, schema and the hash of their file."""
    named = [str(each["function"]) for each in tables if _has_function(each)]
    if not named:
        return tables
    try:
        found = dict(zip(named, sources.described(named, folder), strict=True))
    except ToolFailure as error:
        raise BadArgument(str(error), code=error.code, key="tools") from None
    return [
        _of_function(each, found[str(each["function"])], folder) if _has_function(each) else each
        for each in tables
    ]


def _has_function(table: object) -> TypeGuard[dict[str, object]]:
    return isinstance(table, dict) and isinstance(table.get("function"), str)


def _of_function(table: dict[str, object], found: Offered, folder: Path) -> dict[str, object]:
    if other := next((key for key in _OF_FUNCTION if key in table), None):
        raise BadArgument(
            f"the tool of the function {str(table['function'])[:200]} has the key '{other}', which "
            "is not for a function",
            code="function-with-key",
            key=other,
            table=str(table.get("name", "")),
        )
    known = {"name": found.name, "description": found.description, "schema": found.schema}
    return {**known, **table, "code": found.code, "home": str(folder)}
