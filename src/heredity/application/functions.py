"""Python functions as tools: described by their signatures, and called in a process of their own.

    def lookup(number: int, *, verbose: bool = False) -> str: ...      "my_tools:lookup", "my_tools.py:lookup"

    python -m heredity.application.functions CHARACTERS FOLDER NAME...    in a process of its own

Promises: the description and the schema of a function are those of its docstring and its annotations. A
function whose file changed since is not called.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Annotated, cast

import msgspec

from heredity.application.sandbox import (
    Answer,
    Call,
    ConversationLimits,
    NotOpened,
    Offered,
    Opened,
    ToolProcess,
    raised,
    serve,
    settings,
)
from heredity.core.errors import BadArgument, UsageError
from heredity.core.records import Effect, Tool

Function = Callable[..., object]
_PLAIN = (str, int, float, bool, type(None))


class DescribedFunction:
    """A function with the type that its arguments make up."""

    def __init__(self, name: str, function: Function, module: ModuleType | None) -> None:
        self.name, self._function = name, function
        try:
            parameters = inspect.signature(function).parameters.values()
            hints = typing.get_type_hints(function, include_extras=True)
        except (TypeError, ValueError, NameError) as error:
            raise UsageError(f"the signature of '{name}' is not known: {raised(error)}") from None
        fields: list[tuple[str, type] | tuple[str, type, object]] = []
        for each in parameters:
            if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
                raise UsageError(
                    f"'{name}' takes '{each}', which a model cannot name: give each parameter a name"
                )
            kind = _documented(hints.get(each.name, object))
            if each.default is each.empty:
                fields.append((each.name, kind))
            elif isinstance(each.default, _PLAIN):
                fields.append((each.name, kind, each.default))
            else:
                fields.append((each.name, kind, msgspec.field(default_factory=_always(each.default))))
        self._arguments = msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True, kw_only=True)
        self.offered = Offered(
            name.rpartition(":")[2].rpartition(".")[2],
            _description(function),
            _schema(name, self._arguments),
            _code(module),
        )

    def call(self, given: dict[str, object]) -> Answer:
        """Call the function with arguments that match its schema."""
        try:
            arguments = msgspec.convert(given, self._arguments)
        except msgspec.ValidationError as error:
            return Answer(str(error), "arguments-invalid")
        named = {name: getattr(arguments, name) for name in self._arguments.__struct_fields__}
        value = self._function(**named)
        if inspect.isawaitable(value):
            import asyncio  # 7 MiB that most studies do not need

            value = asyncio.run(_awaited(value))
        return Answer(_text(value))


def find(name: str, folder: str = "") -> DescribedFunction:
    """The function of a name, "module:function" or "file.py:function". Raises UsageError.

    folder: where files and modules are looked for first.
    """
    module_name, separator, inner = name.partition(":")
    if not (separator and module_name and inner):
        raise UsageError(f"'{name[:200]}' names no function: write module:function")
    try:
        module = _module(module_name, folder)
    except BaseException as error:  # a module may raise anything, and exit
        raise UsageError(f"{module_name} does not import: {raised(error)}") from None
    target: object = module
    for part in inner.split("."):
        if (target := getattr(target, part, None)) is None:
            raise UsageError(f"{module_name} has no '{inner[:80]}'")
    if not callable(target):
        raise UsageError(f"'{inner[:80]}' of {module_name} is not a function")
    return DescribedFunction(name, target, module)


def _module(name: str, folder: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(folder, name).absolute()
    as_name = f"tools_of_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if as_name in sys.modules:
        return sys.modules[as_name]
    spec = importlib.util.spec_from_file_location(as_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[as_name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[as_name]
        raise
    return module


def _documented(kind: object) -> type:
    """A type with the description that its annotation has: Annotated[int, "of the order"]."""
    if typing.get_origin(kind) is not Annotated:
        return cast(type, kind)
    inner, *more = typing.get_args(kind)
    made = [msgspec.Meta(description=each) if isinstance(each, str) else each for each in more]
    return cast(type, Annotated[(inner, *made)])


def _always(value: object) -> Callable[[], object]:
    return lambda: value


def _schema(name: str, arguments: type[msgspec.Struct]) -> dict[str, object]:
    try:
        schema = msgspec.json.schema(arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the parameters of '{name}' make no JSON schema: {raised(error)}") from None
    others = dict(schema["$defs"])
    own = others.pop("Arguments")
    del own["title"]
    return {**own, "$defs": others} if others else own


def _description(function: Function) -> str:
    paragraph = (inspect.getdoc(function) or "").strip().partition("\n\n")[0]
    return " ".join(paragraph.split())


def _code(module: ModuleType | None) -> str:
    try:
        path = None if module is None else inspect.getsourcefile(module)
        return "" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return "" if value is None else msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError, OverflowError):
        return str(value)


async def _awaited(result: Awaitable[object]) -> object:
    return await result


class _Functions:
    """The functions of one process."""

    def __init__(self, folder: str, names: Iterable[str]) -> None:
        self._folder, self._names = folder, list(names)
        self._by_name: dict[str, DescribedFunction] = {}

    def open(self) -> Opened | NotOpened:
        """Import and describe all of them."""
        if self._folder:
            sys.path.insert(0, self._folder)
        try:
            self._by_name = {name: find(name, self._folder) for name in self._names}
        except UsageError as error:
            return NotOpened(str(error))
        return Opened(tuple(each.offered for each in self._by_name.values()))

    def call(self, call: Call) -> Answer:
        """Call the function of this name."""
        return self._by_name[call.tool].call(call.arguments)


# --- this side of the pipe ---


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
        for (name, code), offered in zip(self.functions, process.open().tools, strict=True):
            if offered.code != code:
                process.refuse_changed(f"the file of {name} was changed since the application was read")

    def name_of(self, tool: Tool) -> str:
        """The function of a tool."""
        return str(tool.function)

    def identity(self, tool: Tool) -> Sequence[str]:
        """The function, and the hash of its file."""
        return [str(tool.function), str(tool.code)]


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
    offered = DescribedFunction(named, function, module).offered
    return Tool(
        name or offered.name,
        offered.description,
        is_forbidden=is_forbidden,
        effects=tuple(effects) or None,
        schema=offered.schema,
        function=named,
        code=offered.code,
        home=home,
        is_stateful=is_stateful or None,
    )


if __name__ == "__main__":
    _most, (_folder, *_names) = settings()
    _functions = _Functions(_folder, _names)
    serve(_functions.open, _functions.call, _most)
