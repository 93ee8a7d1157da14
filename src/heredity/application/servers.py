"""MCP servers of an application: listed as its file is read, and refused if the list changes.

    [[mcp]]
    name = "files"
    command = ["python", "file_server.py"]     # or url = "https://tools.example/mcp"
    tools = ["read", "send"]                   # only these; without the key all that it lists

Promises: names, descriptions and schemas are those that the server listed, or nothing is asked. A server that
lists something else later is refused. So is a name, a description or a schema with characters that hide.

    python -m heredity.application.servers CHARACTERS SERVER      the process that talks to one

The SDK reads what a server sends there, so that a flood ends this process only. A flood before the list ends
it soon. A list that changes is reported before the next call. Requests to a client are refused.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import msgspec

from heredity.application.sandbox import (
    Answer,
    Call,
    ConversationLimits,
    NotOpened,
    Offered,
    Opened,
    SharedToolProcess,
    ToolProcess,
    raised,
    serve,
    settings,
)
from heredity.core.errors import BadArgument, ToolFailure, how_to_install
from heredity.core.records import Record, Tool, digest, encode
from heredity.core.sanitize import clean_text, visible

MAX_TOOLS = 500  # that one server lists
_MAX_PAGES = 50
_MEMORY = 4 * 2**30  # bytes of address space of this process
MAX_DESCRIPTION = 20_000  # characters
_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")


class ServerAddress(Record, frozen=True):
    """The address of an MCP server: a command, or a URL. Values of the environment are given by name.

    at_once: calls that run at once in one session. open_seconds: of the client's processor, to list tools.
    """

    command: tuple[str, ...] = ()
    url: str = ""
    env: tuple[str, ...] = ()
    token_env: str = ""
    at_once: int = 1
    open_seconds: int = 10


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
            ["servers", encode(address).decode()],
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
        accepted = tuple(by_name[name] for name in wanted)
        for each in accepted:
            if not _NAME.fullmatch(each.name):
                raise self._refused(f"lists a tool with the name '{visible(each.name[:80])}'")
            if len(each.description) > MAX_DESCRIPTION:
                n = len(each.description)
                raise self._refused(f"describes the tool '{each.name}' in {n:,} characters")
            if any(visible(text) != text.replace("\r\n", "\n") for text in _texts(each)):
                raise self._refused(
                    f"describes the tool '{each.name}' with characters that hide, reorder or control"
                )
        return accepted

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
            listed = digest_listed(opened.identity, self.server.accepted(opened))
        except BadArgument:
            listed = ""
        if listed != self.listed:
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


# --- the process that talks to a server ---


class _Connection:
    """A session with one server."""

    def __init__(self, address: ServerAddress, stack: ExitStack) -> None:
        self._address, self._stack = address, stack
        self._opened = Opened(())
        self._is_changed, self._fault = False, ""

    def open(self) -> Opened | NotOpened:
        """Connect, and list the tools."""
        try:
            from anyio.from_thread import start_blocking_portal
        except ImportError:
            return _missing()
        try:
            self._portal = self._stack.enter_context(start_blocking_portal())
            _limit_processor(self._address.open_seconds)
            client = self._client()
            self._session = self._stack.enter_context(self._portal.wrap_async_context_manager(client))
            self._opened = self._portal.call(self._list)
        except ImportError:
            return _missing()
        except BaseException as error:
            why = f"it does not answer: {self._fault or _cause(error)}"
            if self._address.command:  # what it prints never reaches a terminal from here
                why += (
                    f". Run its command by itself to see why: {clean_text(shlex.join(self._address.command))}"
                )
            return NotOpened(why)
        _limit_processor(None)
        return self._opened

    def call(self, call: Call) -> Answer:
        """Call a tool."""
        from mcp import MCPError

        try:
            if self._is_changed and self._portal.call(self._list) != self._opened:
                return Answer("the server changed its list of tools", "tool-changed")
            self._is_changed = False
            answer: Answer = self._portal.call(self._call, call)
            return answer
        except MCPError as error:
            is_gone = "closed" in str(error).lower() and not self._is_alive()
            return Answer("the server died", "tool-died") if is_gone else Answer(raised(error), "tool-raised")
        except BaseException as error:
            if self._is_alive():
                return Answer(_cause(error), "tool-raised")
            return Answer("the server died", "tool-died")

    def _is_alive(self) -> bool:
        """Whether the server still lists its tools."""
        try:
            self._portal.call(self._list)
        except BaseException:
            return False
        return True

    def _client(self) -> object:
        import httpx2
        from mcp import Client, StdioServerParameters
        from mcp.client.streamable_http import streamable_http_client

        address = self._address
        if address.command:
            command = ["-P", "-m", "heredity.application.sandbox", *address.command]
            env = {name: os.environ[name] for name in (*address.env, "PYTHONPATH") if name in os.environ}
            server = StdioServerParameters(command=sys.executable, args=command, env=env)
            return Client(server, message_handler=self._noted, cache=None)
        headers = {"Authorization": f"Bearer {os.environ.get(address.token_env, '')}"}
        http = httpx2.AsyncClient(headers=headers if address.token_env else {}, timeout=httpx2.Timeout(None))
        transport = streamable_http_client(address.url, http_client=http)
        return Client(transport, message_handler=self._noted, cache=None)

    async def _noted(self, message: object) -> None:
        if isinstance(message, ValueError) and "recursion limit" in str(message) and not self._opened.tools:
            self._fault = "a message of it is nested too deeply"
            raise _TooDeep  # the SDK would wait for another one
        self._is_changed |= type(message).__name__ == "ToolListChangedNotification"

    async def _list(self) -> Opened:
        tools: list[Offered] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = await self._session.list_tools(cursor=cursor)
            tools += (
                Offered(each.name, each.description or "", dict(each.input_schema)) for each in page.tools
            )
            cursor = page.next_cursor
            if cursor is None or len(tools) > MAX_TOOLS:
                break
        if cursor is not None or len(tools) > MAX_TOOLS:
            raise ValueError(f"it lists more than {MAX_TOOLS} tools")
        info = self._session.server_info
        return Opened(tuple(tools), "" if info is None else f"{info.name} {info.version}")

    async def _call(self, call: Call) -> Answer:
        result = await self._session.call_tool(call.tool, call.arguments)
        parts = [each.text if each.type == "text" else f"[{each.type} left out]" for each in result.content]
        text = "\n".join(parts)
        if not parts and result.structured_content is not None:
            text = msgspec.json.encode(result.structured_content).decode()
        return Answer(text, "tool-raised" if result.is_error else "")


class _TooDeep(BaseException):
    """Ends the session: the SDK logs any other Exception of a handler."""


def _limit_processor(seconds: int | None) -> None:
    """Raise TimeoutError in this thread once the process has computed for so long; None: never."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        def end(*_: object) -> None:
            signal.signal(signal.SIGXCPU, signal.SIG_IGN)
            raise TimeoutError(f"what it sends takes more than {seconds} s to read")

        most = resource.getrlimit(resource.RLIMIT_CPU)[1]
        if seconds is not None:
            signal.signal(signal.SIGXCPU, end)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGXCPU])
        soft = most if seconds is None else int(time.process_time()) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (soft, most))


def _missing() -> NotOpened:
    return NotOpened(f"MCP needs the package mcp. {how_to_install('mcp')}")


def _cause(error: BaseException) -> str:
    """The innermost error of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return raised(error)


if __name__ == "__main__":
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        # For the main thread alone: in another one the signal would not end its waiting.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGXCPU])
    _most, (_server,) = settings()
    _address = msgspec.json.decode(_server, type=ServerAddress)
    with ExitStack() as _stack:
        _connection = _Connection(_address, _stack)
        serve(_connection.open, _connection.call, _most, _address.at_once)
