"""Find a plug-in by its name: to add a probe, an attack, a judge or an engine, add one file to its folder.

Promises: listing a folder imports nothing. The error for an unknown name suggests the nearest known one. A
plug-in that lacks a member of its folder's protocol is refused.
Leaves to others: the members of a plug-in (the folder's __init__ or protocols.py).
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from heredity.core.errors import HeredityError, Unavailable, UnknownName, first_line

_ROOT = Path(__file__).parents[1]
_LISTING_VERBS = {"engines", "attacks", "judges", "probes"}  # verbs that list an open folder
_RESERVED = frozenset({"protocols"})  # a module that says what the folder's plug-ins are

T = TypeVar("T")


def names(folder: str, suffix: str = ".py") -> list[str]:
    """The plug-ins of an open folder ("engines", "redteam.attacks"), sorted.

    A plug-in is a file `NAME.py`, or a package `NAME/` with a file of the folder's kind
    (`engines/torch/engine.py`). Names with a leading underscore are private; `protocols.py` is reserved.
    """
    root = _folder(folder)
    found = {p.stem for p in root.glob(f"*{suffix}")}
    if suffix == ".py":
        found |= {p.parent.name for p in root.glob(f"*/{_kind(folder)}.py")}
    return sorted(name for name in found - _RESERVED if not name.startswith("_"))


def load(folder: str, name: str) -> ModuleType:
    """The module of a plug-in.

    Raises UnknownName with the nearest known name, and Unavailable with file and line if the file raises an
    error while it is imported. An ImportError stays as it is: the caller knows which package to name.
    """
    known = names(folder)
    if name not in known:
        last = folder.rpartition(".")[2]
        lister = f"heredity {last}" if last in _LISTING_VERBS else ", ".join(known)
        raise UnknownName(_kind(folder), name, known, lister)
    try:
        return importlib.import_module(f"heredity.{folder}.{name}{_inside(folder, name)}")
    except (HeredityError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise _broken(folder, name, error) from error


def _broken(folder: str, name: str, error: Exception) -> Unavailable:
    """The error for a plug-in whose file raises `error`; the line is the last one in that file."""
    import traceback

    path = source(folder, name)
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno
    place = path if line is None else f"{path}:{line}"
    return Unavailable(
        f"The plug-in '{name}' in {folder} cannot be loaded: {place}: {first_line(error)}.",
        code="plugin-broken",
    )


def load_as(protocol: type[T], folder: str, name: str) -> T:
    """The module of a plug-in as the runtime-checkable protocol that its folder's plug-ins follow.

    Raises UnknownName as `load` does, and Unavailable if the module lacks a member of the protocol.
    """
    module = load(folder, name)
    if not isinstance(module, protocol):
        missing = [member for member in members(protocol) if not hasattr(module, member)]
        raise Unavailable(
            f"The plug-in '{name}' in {folder} does not define {', '.join(missing)}.",
            code="plugin-incomplete",
        )
    return module


def source(folder: str, name: str) -> Path:
    """The file of a plug-in, which can be read without importing it."""
    root = _folder(folder)
    return root / name / f"{_kind(folder)}.py" if _inside(folder, name) else root / f"{name}.py"


def purposes(folder: str) -> dict[str, str]:
    """Map each plug-in of an open folder to the first paragraph of its docstring; none is imported.

    Raises Unavailable for a file that is not Python.
    """
    return {name: _first_paragraph(folder, name) for name in names(folder)}


def _first_paragraph(folder: str, name: str) -> str:
    path = source(folder, name)
    try:
        docstring = ast.get_docstring(ast.parse(path.read_bytes(), str(path))) or ""
    except (SyntaxError, ValueError) as error:
        raise _broken(folder, name, error) from None
    return " ".join(docstring.split("\n\n")[0].split())


def members(protocol: type) -> list[str]:
    """The names of a protocol's members."""
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    found = {name for base in bases for name in (*vars(base), *vars(base).get("__annotations__", {}))}
    return sorted(name for name in found if not name.startswith("_"))


def _folder(folder: str) -> Path:
    root = _ROOT.joinpath(*folder.split("."))
    if not root.is_dir():
        raise ValueError(f"heredity has no folder {folder!r}")
    return root


@cache
def declaring(folder: str, name: str) -> tuple[str, ...]:
    """The plug-ins of an open folder that assign `name` at the top level of their file; none is imported."""
    return tuple(each for each in names(folder) if _declares(source(folder, each), name))


def _declares(path: Path, name: str) -> bool:
    text = path.read_bytes()
    if name.encode() not in text:
        return False
    targets: list[ast.expr] = []
    for line in ast.parse(text).body:
        targets += line.targets if isinstance(line, ast.Assign) else ()
        targets += [line.target] if isinstance(line, ast.AnnAssign) and line.value is not None else ()
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _kind(folder: str) -> str:
    return folder.rpartition(".")[2].removesuffix("s")


def _inside(folder: str, name: str) -> str:
    is_package = _folder(folder).joinpath(name, f"{_kind(folder)}.py").is_file()
    return f".{_kind(folder)}" if is_package else ""
