"""An MCP server's tools: listed and called through the official SDK, in a process of their own.

Promises: the SDK reads what a server sends here, and not in the study, so that a flood ends this process
only. A flood before the list ends it soon. A list that changes is reported before the next call. The server's
requests to a client are refused.
Leaves to others: the pipe (child.py), and what of the list is accepted (servers.py).

    python -m heredity.application.sandbox.mcp_client CHARACTERS SERVER      in a process of its own
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from contextlib import ExitStack, suppress

import msgspec

from heredity.application.sandbox.child import raised, serve, settings
from heredity.application.sandbox.messages import Answer, Call, NotOpened, Offered, Opened, ServerAddress
from heredity.core.errors import how_to_install
from heredity.core.sanitize import clean_text

MAX_TOOLS = 500  # that one server lists
_MAX_PAGES = 50
_MEMORY = 4 * 2**30  # bytes of address space of this process


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
            command = ["-P", "-m", "heredity.application.sandbox.leash", *address.command]
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
        found: list[Offered] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = await self._session.list_tools(cursor=cursor)
            found += (
                Offered(each.name, each.description or "", dict(each.input_schema)) for each in page.tools
            )
            cursor = page.next_cursor
            if cursor is None or len(found) > MAX_TOOLS:
                break
        if cursor is not None or len(found) > MAX_TOOLS:
            raise ValueError(f"it lists more than {MAX_TOOLS} tools")
        info = self._session.server_info
        return Opened(tuple(found), "" if info is None else f"{info.name} {info.version}")

    async def _call(self, call: Call) -> Answer:
        found = await self._session.call_tool(call.tool, call.arguments)
        parts = [each.text if each.type == "text" else f"[{each.type} left out]" for each in found.content]
        text = "\n".join(parts)
        if not parts and found.structured_content is not None:
            text = msgspec.json.encode(found.structured_content).decode()
        return Answer(text, "tool-raised" if found.is_error else "")


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
