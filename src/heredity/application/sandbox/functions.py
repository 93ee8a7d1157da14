"""Python functions as tools: described by their signatures, and called in a process of their own.

    def lookup(number: int, *, verbose: bool = False) -> str: ...      "my_tools:lookup", "my_tools.py:lookup"

Promises: the description and the schema of a function are those of its docstring and its annotations. A
function whose file changed since is not called.
Leaves to others: the pipe (child.py), and the check against the schema (arguments.py).

    python -m heredity.application.sandbox.functions CHARACTERS FOLDER NAME...    in a process of its own
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, cast

import msgspec

from heredity.application.sandbox.child import raised, serve, settings
from heredity.application.sandbox.messages import Answer, Call, NotOpened, Offered, Opened
from heredity.core.errors import UsageError

Function = Callable[..., object]
_PLAIN = (str, int, float, bool, type(None))


class DescribedFunction:
    """A function with the type that its arguments make up."""

    def __init__(self, name: str, function: Function, module: ModuleType | None) -> None:
        self.name, self._function = name, function
        self._arguments = _arguments_of(name, function)
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
        found = self._function(**named)
        if inspect.isawaitable(found):
            found = asyncio.run(_awaited(found))
        return Answer(_text(found))


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
    found: object = module
    for part in inner.split("."):
        if (found := getattr(found, part, None)) is None:
            raise UsageError(f"{module_name} has no '{inner[:80]}'")
    if not callable(found):
        raise UsageError(f"'{inner[:80]}' of {module_name} is not a function")
    return DescribedFunction(name, found, module)


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


def _arguments_of(name: str, function: Function) -> type[msgspec.Struct]:
    """A struct with the function's parameters. Raises UsageError for parameters that no call can name."""
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
    return msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True, kw_only=True)


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
        found = msgspec.json.schema(arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the parameters of '{name}' make no JSON schema: {raised(error)}") from None
    others = dict(found["$defs"])
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


def _text(found: object) -> str:
    if isinstance(found, str):
        return found
    try:
        return "" if found is None else msgspec.json.encode(found).decode()
    except (TypeError, ValueError, RecursionError, OverflowError):
        return str(found)


async def _awaited(found: Awaitable[object]) -> object:
    return await found


class _Functions:
    """The functions of one process."""

    def __init__(self, folder: str, names: Iterable[str]) -> None:
        self._folder, self._names = folder, list(names)
        self._found: dict[str, DescribedFunction] = {}

    def open(self) -> Opened | NotOpened:
        """Import and describe all of them."""
        if self._folder:
            sys.path.insert(0, self._folder)
        try:
            self._found = {name: find(name, self._folder) for name in self._names}
        except UsageError as error:
            return NotOpened(str(error))
        return Opened(tuple(each.offered for each in self._found.values()))

    def call(self, call: Call) -> Answer:
        """Call the function of this name."""
        return self._found[call.tool].call(call.arguments)


if __name__ == "__main__":
    _most, (_folder, *_names) = settings()
    _functions = _Functions(_folder, _names)
    serve(_functions.open, _functions.call, _most)
