"""A name to a file in an open folder: to add a probe, an attack, a judge or an engine, add one file.

Promises: listing a folder imports nothing; an unknown name is answered with the nearest known one.
Leaves to others: what a file must hold (the folder's own __init__ says so).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from heredity.core.errors import UnknownName

_ROOT = Path(__file__).parents[1]


def names(folder: str, suffix: str = ".py") -> list[str]:
    """The plug-ins of an open folder ("engines", "redteam.attacks"), sorted.

    A plug-in is a file `NAME.py`, or a package `NAME/` with a file of the folder's kind
    (`engines/torch/engine.py`). Names with a leading underscore are private.
    """
    root = _ROOT.joinpath(*folder.split("."))
    found = {p.stem for p in root.glob(f"*{suffix}")}
    if suffix == ".py":
        found |= {p.parent.name for p in root.glob(f"*/{_kind(folder)}.py")}
    return sorted(name for name in found if not name.startswith("_"))


def load(folder: str, name: str) -> ModuleType:
    """The module of a plug-in. Raises UnknownName with the nearest known name where there is none."""
    known = names(folder)
    if name not in known:
        last = folder.rpartition(".")[2]
        raise UnknownName(last.rstrip("s"), name, known, f"heredity {last}")
    return importlib.import_module(f"heredity.{folder}.{name}{_inside(folder, name)}")


def source(folder: str, name: str) -> Path:
    """The file of a plug-in, which need not be imported to be read."""
    root = _ROOT.joinpath(*folder.split("."))
    return root / name / f"{_kind(folder)}.py" if _inside(folder, name) else root / f"{name}.py"


def _kind(folder: str) -> str:
    return folder.rpartition(".")[2].removesuffix("s")


def _inside(folder: str, name: str) -> str:
    is_package = _ROOT.joinpath(*folder.split("."), name, f"{_kind(folder)}.py").is_file()
    return f".{_kind(folder)}" if is_package else ""
