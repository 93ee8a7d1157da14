"""The tables of an application's file, completed by what they refer to: files and functions.

    [[tools]]
    function = "my_tools:lookup"     # a module, or a file, in the folder of the application's file

Promises: relative names are looked up in the folder of the application's file. A function's own schema is
not given twice.
Leaves to others: the values of the tables (spec.py), and the process that knows the functions (sources.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from heredity.application import functions
from heredity.application.guards import parse_guard
from heredity.application.sandbox import Offered
from heredity.application.servers import McpServer, listed
from heredity.core.errors import BadArgument, ToolFailure, first_line
from heredity.core.records import encode

_OF_FUNCTION = ("schema", "parameters", "reads", "code", "home")  # known from the function, or not for one


def completed(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tables of a file with what they refer to: examples, JSON schemas, and what their functions are.

    A schema is given as a table, as text, or as the name of a file. That of `decoding` becomes text, those of
    tools become tables. Raises BadArgument, and BadInput for a file of examples.
    """
    if isinstance(guards := data.get("guards"), list):
        data = {**data, "guards": [msgspec.to_builtins(parse_guard(table, folder)) for table in guards]}
    decoding, tools = data.get("decoding"), data.get("tools")
    if isinstance(decoding, dict) and "json_schema" in decoding:
        text = _schema_text(decoding["json_schema"], folder, "decoding.json_schema")
        data = {**data, "decoding": {**decoding, "json_schema": text}}
    if isinstance(tools, list):
        tables = [_tool_table(each, folder) for each in tools]
        data = {**data, "tools": _with_functions(tables, folder.absolute())}
    servers = data.get("mcp")
    return _with_servers(data, servers, folder.absolute()) if isinstance(servers, list) else data


def _tool_table(table: object, folder: Path) -> object:
    if not isinstance(table, dict) or not isinstance(table.get("schema"), str):
        return table
    try:
        found = msgspec.json.decode(str(_schema_text(table["schema"], folder, "schema")))
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadArgument(
            f"the schema of a tool is not JSON: {error}",
            code="not-json",
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
            code="unreadable-file",
            key=key,
        ) from None


def _with_functions(tables: list[object], folder: Path) -> list[object]:
    """The tables of tools, those of functions with description, schema and the hash of their file."""
    named = [str(each["function"]) for each in tables if _has_function(each)]
    if not named:
        return tables
    try:
        found = dict(zip(named, functions.described(named, folder), strict=True))
    except ToolFailure as error:
        raise BadArgument(str(error), code=error.code, key="tools") from None
    return [
        _of_function(each, found[str(each["function"])], folder) if _has_function(each) else each
        for each in tables
    ]


def _with_servers(data: dict[str, object], tables: list[object], folder: Path) -> dict[str, object]:
    """The tables with the tools that MCP servers list, each with what the file says of it."""
    given = data.get("tools")
    tools: list[object] = given if isinstance(given, list) else []
    found: list[object] = []
    for table in tables:
        server = msgspec.convert(table, McpServer)
        if server.home or server.identity:
            raise BadArgument("[[mcp]] has no key `home` or `identity`", code="unknown-key", key="mcp")
        server = msgspec.structs.replace(server, home=str(folder))
        identity, offered = listed(server)
        tools = _joined(server, tools, {each.name: each for each in offered})
        found.append(msgspec.to_builtins(msgspec.structs.replace(server, identity=identity)))
    return {**data, "tools": tools, "mcp": found}


def _joined(server: McpServer, tables: list[object], offered: dict[str, Offered]) -> list[object]:
    """The tables of tools, with those of a server: what it lists, and what the file says of it."""
    made: list[object] = []
    for table in tables:
        if not isinstance(table, dict) or table.get("server") != server.name:
            made.append(table)
            continue
        _refuse_keys(table, (*_OF_FUNCTION, "description", "function"), "an MCP server")
        name = str(table.get("name", ""))
        if name not in offered:
            raise BadArgument(
                f"the MCP server '{server.name[:80]}' has no tool named '{name[:80]}'", table=server.name
            )
        made.append({**_of_server(server, offered.pop(name)), **table})
    return made + [_of_server(server, each) for each in offered.values()]


def _of_server(server: McpServer, offered: Offered) -> dict[str, object]:
    """The table of a tool that a server lists."""
    table = {"server": server.name, "name": offered.name, "description": offered.description}
    more = {} if server.is_stateful is None else {"is_stateful": server.is_stateful}
    return {**table, "schema": offered.schema, **more}


def _refuse_keys(table: dict[str, object], keys: Sequence[str], of: str) -> None:
    if other := next((key for key in keys if key in table), None):
        raise BadArgument(
            f"the tool '{str(table.get('name', ''))[:80]}' has the key '{other}', which is not for {of}",
            key=other,
            table=str(table.get("name", "")),
        )


def _has_function(table: object) -> TypeGuard[dict[str, object]]:
    return isinstance(table, dict) and isinstance(table.get("function"), str)


def _of_function(table: dict[str, object], offered: Offered, folder: Path) -> dict[str, object]:
    _refuse_keys(table, _OF_FUNCTION, "a function")
    known = {"name": offered.name, "description": offered.description, "schema": offered.schema}
    return {**known, **table, "code": offered.code, "home": str(folder)}
