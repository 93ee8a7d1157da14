"""Everything around the model that a study holds constant: prompt, passages, tools, secrets, decoding.

Promises: an application is frozen and has a digest. With rendering "plain" (the default) every model sees
the same words for tools and passages, so that the layer is constant. An error in a file names its line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application import functions
from heredity.application.guards import MODEL_KIND, GuardFacts, GuardSpec, parse_guard
from heredity.application.retrieval import Retrieval
from heredity.application.sandbox import ConversationLimits, Offered
from heredity.application.servers import McpServer, listed
from heredity.application.tools import check_world, parse_tool_calls, plain_tools
from heredity.core.errors import (
    BadArgument,
    BadInput,
    ToolFailure,
    UsageError,
    code_of,
    did_you_mean,
    first_line,
)
from heredity.core.readers import in_words, toml_line, toml_line_of, toml_of
from heredity.core.records import (
    Decoding,
    Effect,
    Message,
    Probe,
    Record,
    Reply,
    Request,
    Secret,
    Tool,
    ToolCall,
    digest,
    encode,
    encoded,
)

if TYPE_CHECKING:
    from heredity.lineage.store import Store

SECRET_MIN = 4  # letters and digits of a secret


class Passage(Record, frozen=True):
    """A retrieved passage that is part of every conversation."""

    title: str
    text: str


class Application(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """The layer held constant. `max_turns` bounds the user's turns in one conversation, and the model's
    replies to each turn. A turn has several replies if the model calls tools; these do not count as turns.

    system: the system prompt. "" sends an empty one. None sends none, and the model's chat template decides:
    some insert a default of their own. Tools and passages in the plain format need a system message, which
    replaces that default, so they are refused without `system`.

    rendering: "plain": tools and passages in one format for every model. "native": tools by each model's
    own template. "theirs": the target is the user's own application, and is sent only the user's words.
    System prompt, tools and secrets are listed here for the judges. "recorded": an import, whose
    application is not known.
    """

    name: str
    # What is None is not encoded, and the other defaults are: digests of stored studies have them.
    system: str | None = None
    company: str = encoded("the company")
    few_shot: tuple[Message, ...] = encoded(())
    passages: tuple[Passage, ...] = encoded(())
    tools: tuple[Tool, ...] = encoded(())
    secrets: tuple[Secret, ...] = encoded(())
    decoding: Decoding = encoded(Decoding())
    max_turns: int = encoded(4)
    rendering: Literal["plain", "native", "theirs", "recorded"] = encoded("plain")
    state: dict[str, Any] | None = None  # what the tools read and change; see tools.py
    guards: tuple[GuardSpec, ...] | None = None  # see guards/
    retrieval: Retrieval | None = None
    limits: ConversationLimits | None = None
    mcp: tuple[McpServer, ...] | None = None  # see servers.py

    def __post_init__(self) -> None:
        if not 1 <= self.max_turns <= 64:
            raise BadArgument(f"max_turns must be from 1 to 64, not {self.max_turns}", key="max_turns")
        check_decoding(self.decoding)
        if self.tools and self.decoding.json_schema is not UNSET:
            raise BadArgument(
                "an answer that matches decoding.json_schema calls no tools: leave out one of the two",
                key="decoding.json_schema",
            )
        is_needed = self.passages or (self.tools and self.rendering == "plain")
        if self.is_default_system and is_needed and self.rendering in ("plain", "native"):
            what = "passages" if self.passages else "tools in the plain format"
            raise BadArgument(
                f"{what} need a system message, which would replace the model's own default. Write `system`; "
                '"" is one without words',
                code="missing-key",
                key="system",
            )
        _check_tools(self.tools, () if self.mcp is None else self.mcp)
        for secret in self.secrets:  # a shorter one is in any answer by chance
            if sum(map(str.isalnum, secret.value)) < SECRET_MIN:
                raise BadArgument(
                    f"the secret named '{secret.name}' must have at least {SECRET_MIN} letters or digits",
                    table=secret.name,
                )
        if self.tools:
            check_world(self.state, self.tools)
        labels = [guard.label for guard in self.all_guards]
        if twice := next((label for i, label in enumerate(labels) if label in labels[:i]), None):
            raise BadArgument(
                f"two guards are named '{twice}'; give each a name of its own",
                code="name-twice",
                key="guards",
            )
        if self.retrieval is not None and self.rendering in ("theirs", "recorded"):
            raise BadArgument(
                f'rendering "{self.rendering}" retrieves by itself: leave out [retrieval]', key="retrieval"
            )

    @classmethod
    def load(cls, path: Path | str, store: Store | None = None) -> Application:
        """Read an application from TOML. Raises BadInput with the line; a wrong key names the nearest.

        store: with its embedding models and rerankers, if that is not the usual one.
        """
        from heredity.lineage.store import searching_in

        path = Path(path)
        with searching_in(store):
            return parse(toml_of(path), path)

    @cached_property
    def digest(self) -> str:
        """Names this layer: two studies compare only under equal digests.

        Raises BadArgument for an index that was not read, or a guard model that was not identified.
        """
        for spec in self.all_guards:  # a name without an identity may mean another model tomorrow
            if spec.kind == MODEL_KIND and not spec.settings.get("identity"):
                raise BadArgument(
                    f"the model of guard '{spec.label}' is not identified: use guard_models.identified",
                    key="guards",
                )
        layer = self
        if any(tool.home is not None for tool in self.tools):
            bare = tuple(msgspec.structs.replace(tool, home=None) for tool in self.tools)
            layer = msgspec.structs.replace(layer, tools=bare)
        if self.mcp is not None:
            layer = msgspec.structs.replace(layer, mcp=tuple(server.bare for server in self.mcp))
        if self.retrieval is not None:
            _ = self.retrieval.read_hash
            layer = msgspec.structs.replace(layer, retrieval=self.retrieval.bare)
        return digest(layer)

    @cached_property
    def facts(self) -> GuardFacts:
        """The parts that its guards may use."""
        return GuardFacts(self.secrets, self.tools, self.retrieval)

    @property
    def runs_tools(self) -> bool:
        """Whether it has tools that run, so that a conversation needs a Toolbox."""
        return any(tool.runs for tool in self.tools)

    @property
    def is_default_system(self) -> bool:
        """Whether no system message is sent, so that each model's own default applies."""
        return self.system is None

    @property
    def instructions(self) -> str:
        """The application's own system prompt; "" if it has none."""
        return "" if self.system is None else self.system

    @property
    def all_guards(self) -> tuple[GuardSpec, ...]:
        """Its guards, also those that hold only where a study names them."""
        return () if self.guards is None else self.guards

    @property
    def standing_guards(self) -> tuple[GuardSpec, ...]:
        """Those of its guards that hold for every model."""
        return tuple(guard for guard in self.all_guards if guard.is_on)

    @property
    def has_guard_models(self) -> bool:
        """Whether a guard has a model. Then it needs a GuardReaders."""
        return any(guard.kind == MODEL_KIND for guard in self.all_guards)

    def system_text(self) -> str:
        """The system message: the prompt, then passages and tools in the plain format."""
        parts = [self.instructions.strip()]
        if self.passages:
            parts.append(
                "Documents:\n" + "\n\n".join(f"[{p.title}]\n{p.text.strip()}" for p in self.passages)
            )
        if self.tools and self.rendering == "plain":
            parts.append(plain_tools(self.tools))
        return "\n\n".join(parts)

    def messages(self) -> tuple[Message, ...]:
        """The messages before the user's first word, the same in every trial.

        None if rendering is "theirs". No system message if the model's own default applies.
        """
        return self._opening

    @cached_property
    def _opening(self) -> tuple[Message, ...]:
        if self.rendering == "theirs":
            return ()
        system = () if self.is_default_system else (Message("system", self.system_text()),)
        return (*system, *self.few_shot)

    def for_probe(self, probe: Probe) -> Application:
        """This application as one probe shows it: itself, unless the probe plants a tool's description.

        The result has another digest. A study is named by the digest of the unchanged application.
        """
        planted = probe.tool_description
        if isinstance(planted, UnsetType):
            return self
        if planted.is_added:
            tools = (*self.tools, Tool(planted.tool, planted.text))
        else:
            tools = tuple(
                msgspec.structs.replace(tool, description=planted.text) if tool.name == planted.tool else tool
                for tool in self.tools
            )
        return msgspec.structs.replace(self, tools=tools)

    def request(
        self,
        messages: Sequence[Message],
        prefill: str = "",
        seed: int = 0,
        decoding: Decoding | None = None,
        is_shared: bool = True,
    ) -> Request:
        """A request for the next reply, under this application's decoding unless another is given.

        is_shared: whether the first messages are those of every other trial, so that an engine keeps them.
        """
        tools = self.tools if self.rendering == "native" else ()
        n_shared = 0
        if is_shared and self.rendering != "theirs":
            n_shared = len(self.few_shot) + (not self.is_default_system)
        drawn = self.decoding if decoding is None else decoding
        names = None if is_shared else tuple(tool.name for tool in self.tools)
        return Request(0, tuple(messages), drawn, seed, prefill, tools, n_shared, tool_names=names)

    def calls(self, prefill: str, reply: Reply, names: Sequence[str] | None = None) -> tuple[ToolCall, ...]:
        """The tool calls in a reply: in the plain format, and in the model's own as its engine read them.

        names: of the tools that were shown; None: the application's.
        """
        if names is None:
            names = [tool.name for tool in self.tools]
        plain = parse_tool_calls(prefill + reply.text, names) if names else ()
        return plain + tuple(call for call in reply.tool_calls if call not in plain)

    def answer_message(self, text: str, calls: tuple[ToolCall, ...] = ()) -> Message:
        """The model's text as a message of the conversation."""
        return Message("assistant", text, calls if self.rendering == "native" else ())

    def results(self, named: Sequence[tuple[str, str]]) -> list[Message]:
        """The results of tools, each by its tool's name, as messages of the conversation."""
        if self.rendering == "native":
            return [Message("tool", result) for _, result in named]
        # One user message: not every template has a tool role, and the layer must be the same for all.
        text, spans = "", []
        for name, result in named:
            text += ("\n\n" if text else "") + f"Result of {name}:\n"
            spans.append((len(text), len(text) + len(result)))
            text += result
        return [Message("user", text, data=tuple(spans))] if named else []


def _with_index(retrieval: Retrieval, path: Path | str) -> Retrieval:
    """`retrieval.of` the file's folder. Raises BadInput with the line for an index that does not fit."""
    try:
        return retrieval.of(Path(path).parent)
    except UsageError as error:
        if not error.key:
            raise
        line = toml_line(path, f"retrieval.{error.key}")
        raise BadInput(path, str(error), line) from None


def parse(data: dict[str, Any], path: Path | str) -> Application:
    """An application from parsed TOML; raises BadInput naming the key, and the nearest known one."""
    try:
        data = completed(data, Path(path).parent)
        application = msgspec.convert(data, Application, strict=True)
        if application.retrieval is not None:
            read = _with_index(application.retrieval, path)
            application = msgspec.structs.replace(application, retrieval=read)
        _ = digest(application)  # values nested too deeply to be encoded fail here, not in a study
        return application
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise BadInput(path, _explain(str(error)), toml_line_of(path, error), code=code_of(error)) from None
    except RecursionError:
        raise BadInput(path, "its values are nested too deeply") from None


def decoding_with(application: Application | None, given: Mapping[str, float | None]) -> Decoding:
    """The decoding of an application, with the settings that are given. Raises UsageError."""
    decoding = Decoding() if application is None else application.decoding
    decoding = msgspec.structs.replace(decoding, **{k: v for k, v in given.items() if v is not None})
    try:
        check_decoding(decoding)
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    return decoding


def check_decoding(decoding: Decoding) -> None:
    """Raise BadArgument for a setting out of its range."""
    if not isinstance(decoding.json_schema, UnsetType):
        try:
            value = msgspec.json.decode(decoding.json_schema)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadArgument(
                f"decoding.json_schema is not JSON: {error}", code="not-json", key="decoding.json_schema"
            ) from None
        if not isinstance(value, dict):
            raise BadArgument("decoding.json_schema must be a JSON object", key="decoding.json_schema")
    if decoding.max_tokens < 1:
        raise BadArgument(
            f"decoding.max_tokens must be at least 1, not {decoding.max_tokens}", key="decoding.max_tokens"
        )
    if not 0 <= decoding.temperature < math.inf:  # nan compares false
        raise BadArgument(
            f"decoding.temperature must be a number of 0 or more, not {decoding.temperature}",
            key="decoding.temperature",
        )
    if not 0 < decoding.top_p <= 1:
        raise BadArgument(
            f"decoding.top_p must be above 0 and at most 1, not {decoding.top_p}", key="decoding.top_p"
        )


def _check_tools(tools: Sequence[Tool], servers: Sequence[McpServer]) -> None:
    known = [server.name for server in servers]
    for tool in tools:
        if tool.server is not None and tool.server not in known:
            raise BadArgument(
                f"the tool named '{tool.name}' is of the MCP server '{tool.server}': [[mcp]] has none such",
                table=tool.name,
            )
    names = [tool.name for tool in tools]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise BadArgument(
            f"two tools are named '{twice}'; give each a name of its own", code="name-twice", table=twice
        )


_STRUCTS = (
    Application, Retrieval, ConversationLimits, McpServer, Secret, Passage, Tool, Effect, Decoding, Message,
)  # fmt: skip


def _explain(message: str) -> str:
    unknown = re.search(r"unknown field `([^`]+)`", message)
    if unknown is None:
        return in_words(message)
    known = [field for struct in _STRUCTS for field in struct.__struct_fields__]
    place = re.search(r"at `\$?\.?([^`]*)`", message)
    where = f" in {place[1]}" if place and place[1] else ""
    return f"unknown key '{unknown[1]}'{where}.{did_you_mean(unknown[1], known)}"


# --- what the tables of a file refer to ---

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
        schema = msgspec.json.decode(str(_schema_text(table["schema"], folder, "schema")))
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadArgument(
            f"the schema of a tool is not JSON: {error}",
            code="not-json",
            table=str(table.get("name", "")),
        ) from None
    return {**table, "schema": schema}


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
        described = dict(zip(named, functions.described(named, folder), strict=True))
    except ToolFailure as error:
        raise BadArgument(str(error), code=error.code, key="tools") from None
    return [
        _of_function(each, described[str(each["function"])], folder) if _has_function(each) else each
        for each in tables
    ]


def _with_servers(data: dict[str, object], tables: list[object], folder: Path) -> dict[str, object]:
    """The tables with the tools that MCP servers list, each with what the file says of it."""
    given = data.get("tools")
    tools: list[object] = given if isinstance(given, list) else []
    servers: list[object] = []
    for table in tables:
        server = msgspec.convert(table, McpServer)
        if server.home or server.identity:
            raise BadArgument("[[mcp]] has no key `home` or `identity`", code="unknown-key", key="mcp")
        server = msgspec.structs.replace(server, home=str(folder))
        identity, offered = listed(server)
        tools = _joined(server, tools, {each.name: each for each in offered})
        servers.append(msgspec.to_builtins(msgspec.structs.replace(server, identity=identity)))
    return {**data, "tools": tools, "mcp": servers}


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
