"""Where the tools that run come from: Python functions, and the servers of servers.py.

Promises: a function is imported and described in a process of its own, and nothing is called. One whose file
changed since is refused.
Leaves to others: the process (sandbox/), the record of results (toolbox.py), and the file (tables.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Protocol

from heredity.application.limits import ConversationLimits
from heredity.application.sandbox.messages import Offered
from heredity.application.sandbox.process import ToolProcess
from heredity.application.servers import McpServer, ServerSource, digest_listed
from heredity.core.errors import BadArgument
from heredity.core.records import Effect, Tool


class ToolSource(Protocol):
    """The origin of some tools that run."""

    @property
    def is_single(self) -> bool:
        """Whether conversations share one process, unless a tool has a state."""

    @property
    def limits(self) -> ConversationLimits:
        """The limits of its calls."""

    def process(self) -> ToolProcess:
        """A process for them, not started yet."""

    def open(self, process: ToolProcess) -> None:
        """Start a process of `process()`. Raises ToolFailure if what it offers has changed."""

    def name_of(self, tool: Tool) -> str:
        """The name by which the process knows a tool."""

    def identity(self, tool: Tool) -> Sequence[str]:
        """The parts of a tool, except its name, that its results depend on."""


@dataclass(frozen=True)
class FunctionSource:
    """The functions of one folder, each with the hash of its file."""

    folder: str
    functions: tuple[tuple[str, str], ...]
    limits: ConversationLimits
    is_single: bool = False

    def process(self) -> ToolProcess:
        """A process for them, not started yet."""
        names = [name for name, _ in self.functions]
        return ToolProcess(
            ["functions", self.folder, *names],
            self.folder,
            self.limits.seconds_of_call,
            self.limits.characters_of_result,
        )

    def open(self, process: ToolProcess) -> None:
        """Start a process of `process()`. Raises ToolFailure if a file has changed."""
        for (name, code), found in zip(self.functions, process.open().tools, strict=True):
            if found.code != code:
                process.refuse_changed(f"the file of {name} was changed since the application was read")

    def name_of(self, tool: Tool) -> str:
        """The function of a tool."""
        return str(tool.function)

    def identity(self, tool: Tool) -> Sequence[str]:
        """The function, and the hash of its file."""
        return [str(tool.function), str(tool.code)]


def sources_of(
    tools: Sequence[Tool], servers: Sequence[McpServer], limits: ConversationLimits
) -> dict[str, ToolSource]:
    """The source of each tool that runs, by the tool's name."""
    functions = [tool for tool in tools if tool.function is not None]
    found: dict[str, ToolSource] = {}
    for folder in dict.fromkeys(tool.home or "" for tool in functions):
        own = [tool for tool in functions if (tool.home or "") == folder]
        named = tuple((str(tool.function), tool.code or "") for tool in own)
        source = FunctionSource(folder, named, limits)
        found.update((tool.name, source) for tool in own)
    for server in servers:
        own = [tool for tool in tools if tool.server == server.name]
        offered = [Offered(tool.name, tool.description, tool.schema or {}) for tool in own]
        listed = ServerSource(server, digest_listed(server.identity or "", offered), limits)
        found.update((tool.name, listed) for tool in own)
    return found


def described(names: Sequence[str], folder: Path) -> tuple[Offered, ...]:
    """The functions of these names, described by another process. Raises ToolFailure."""
    with ToolProcess(["functions", str(folder), *names], str(folder)) as process:
        return process.open().tools


def tool(
    function: Callable[..., object],
    name: str = "",
    *,
    is_forbidden: bool = False,
    is_stateful: bool = False,
    effects: Iterable[Effect] = (),
) -> Tool:
    """A Python function as a tool of an application, described by its docstring and its annotations.

    The function runs in another process, which imports it by its name. It must be at the top of a module or
    a script. is_forbidden: a call is a breach. is_stateful: its results depend on the calls before it.
    Raises BadArgument for a function that cannot be imported, UsageError for parameters without names.
    """
    from heredity.application.sandbox.functions import DescribedFunction

    module = inspect.getmodule(function)
    inner = function.__qualname__ if isinstance(function, FunctionType) else "<object>"
    if module is None or "<" in inner:
        raise BadArgument(
            f"the function {inner} cannot be imported by another process: define it at the top of a module"
        )
    home: str | None = None
    named = f"{module.__name__}:{inner}"
    if module.__name__ == "__main__":
        path = Path(inspect.getfile(function)).absolute()
        named, home = f"{path.name}:{inner}", str(path.parent)
    found = DescribedFunction(named, function, module).offered
    return Tool(
        name or found.name,
        found.description,
        is_forbidden=is_forbidden,
        effects=tuple(effects) or None,
        schema=found.schema,
        function=named,
        code=found.code,
        home=home,
        is_stateful=is_stateful or None,
    )
