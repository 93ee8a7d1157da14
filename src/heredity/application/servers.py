"""MCP servers of an application: listed as its file is read, and refused if the list changes.

    [[mcp]]
    name = "files"
    command = ["python", "file_server.py"]     # or url = "https://tools.example/mcp"
    tools = ["read", "send"]                   # only these; without the key all that it lists

Promises: names, descriptions and schemas are those that the server listed, or nothing is asked. A server that
lists something else later is refused. So is a name, a description or a schema with characters that hide.
Leaves to others: the process that talks to the server (sandbox/mcp_client.py), and schemas (arguments.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from heredity.application.limits import ConversationLimits
from heredity.application.sandbox.messages import Offered, Opened, ServerAddress
from heredity.application.sandbox.process import SharedToolProcess, ToolProcess
from heredity.core.errors import BadArgument, ToolFailure
from heredity.core.records import Record, Tool, digest, encode
from heredity.core.sanitize import visible

MAX_DESCRIPTION = 20_000  # characters
_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")


class McpServer(Record, frozen=True, omit_defaults=True):
    """An MCP server whose tools an application has.

    The digest of the application has the name, and the name and version that the server gives itself. It
    leaves the address out. Of the environment, a command gets `env` and what the SDK passes to every server.
    token_env names the variable of a bearer token for a URL. is_stateful: as of a tool, for all of them.
    """

    name: str
    command: tuple[str, ...] | None = None
    url: str | None = None
    env: tuple[str, ...] | None = None
    token_env: str | None = None
    tools: tuple[str, ...] | None = None
    is_stateful: bool | None = None
    home: str | None = None  # the folder in which the command runs
    identity: str | None = None  # its own name and version

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise BadArgument(
                f"the MCP server '{self.name[:80]}' needs `command` or `url`, and not both", table=self.name
            )
        if isinstance(self.url, str) and not self.url.startswith(("http://", "https://")):
            raise BadArgument(
                f"the url of the MCP server '{self.name[:80]}' must begin with http:// or https://",
                table=self.name,
            )

    @property
    def bare(self) -> McpServer:
        """This server as the application's digest has it."""
        return McpServer(self.name, command=("-",), is_stateful=self.is_stateful, identity=self.identity)

    def process(self, limits: ConversationLimits) -> ToolProcess:
        """A process that talks to it, not started yet."""
        address = ServerAddress(
            self.command or (), self.url or "", self.env or (), self.token_env or "", limits.most_calls
        )
        return SharedToolProcess(
            ["mcp_client", encode(address).decode()],
            self.home or "",
            limits.seconds_of_call,
            limits.characters_of_result,
        )

    def accepted(self, opened: Opened) -> tuple[Offered, ...]:
        """The tools that an application takes from a list. Raises BadArgument."""
        by_name = {each.name: each for each in opened.tools}
        wanted = tuple(by_name) if self.tools is None else self.tools
        if missing := next((name for name in wanted if name not in by_name), None):
            raise self._refused(f"lists no tool '{visible(missing[:80])}'")
        found = tuple(by_name[name] for name in wanted)
        for each in found:
            if not _NAME.fullmatch(each.name):
                raise self._refused(f"lists a tool with the name '{visible(each.name[:80])}'")
            if len(each.description) > MAX_DESCRIPTION:
                n = len(each.description)
                raise self._refused(f"describes the tool '{each.name}' in {n:,} characters")
            if any(visible(text) != text.replace("\r\n", "\n") for text in _texts(each)):
                raise self._refused(
                    f"describes the tool '{each.name}' with characters that hide, reorder or control"
                )
        return found

    def _refused(self, what: str) -> BadArgument:
        return BadArgument(
            f"the MCP server '{self.name[:80]}' {what}: name the tools to take in `tools`", table=self.name
        )


@dataclass(frozen=True)
class ServerSource:
    """The tools of one server, which must be those that it listed as the application was read."""

    server: McpServer
    listed: str  # a digest of what the application took from the list
    limits: ConversationLimits

    @property
    def is_single(self) -> bool:
        """Whether all conversations talk to one server: a command may hold what no second one can have."""
        return bool(self.server.command)

    def process(self) -> ToolProcess:
        """A process that talks to the server, not started yet."""
        return self.server.process(self.limits)

    def open(self, process: ToolProcess) -> None:
        """Connect. Raises ToolFailure if the server lists other tools than before, or has another version."""
        is_open = process.opened is not None
        opened = process.open()
        if is_open:
            return
        try:
            found = digest_listed(opened.identity, self.server.accepted(opened))
        except BadArgument:
            found = ""
        if found != self.listed:
            process.refuse_changed(
                f"the MCP server '{self.server.name}' lists other tools, or has another version, than as the "
                "application was read"
            )

    def name_of(self, tool: Tool) -> str:
        """The tool's name at its server."""
        return tool.name

    def identity(self, tool: Tool) -> Sequence[str]:  # noqa: ARG002
        """The server, and the name and version that it gives itself."""
        return ["mcp", self.server.name, self.server.identity or ""]


def _texts(tool: Offered) -> Iterator[str]:
    """The description of a tool, and every text in its schema: names, words and values."""
    waiting: list[object] = [tool.description, tool.schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        waiting += (
            [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else ()
        )


def digest_listed(identity: str, tools: Sequence[Offered]) -> str:
    """A digest of what an application takes from a server's list."""
    return digest([identity, sorted((each.name, each.description, digest(each.schema)) for each in tools)])


def listed(server: McpServer) -> tuple[str, tuple[Offered, ...]]:
    """The name and version of a server, and the tools that it lists. Raises BadArgument."""
    with server.process(ConversationLimits()) as process:
        try:
            opened = process.open()
        except ToolFailure as error:
            raise BadArgument(
                f"the MCP server '{server.name[:80]}': {error}", code=error.code, table=server.name
            ) from None
        return opened.identity, server.accepted(opened)
