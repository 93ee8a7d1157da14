"""A name to a file in an open folder: to add a probe, an attack, a judge or an engine, add one file.

Promises: listing a folder imports nothing; an unknown name is answered with the nearest known one.
Leaves to others: what a file must hold (the folder's own __init__ says so).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from heredity.errors import UnknownName

_ROOT = Path(__file__).parent


def names(folder: str, suffix: str = ".py") -> list[str]:
    """The names that an open folder ("engines", "train.architectures") holds, sorted, private ones not."""
    return sorted(
        p.stem for p in _ROOT.joinpath(*folder.split(".")).glob(f"*{suffix}") if not p.stem.startswith("_")
    )


def load(folder: str, name: str) -> ModuleType:
    """The module `heredity.<folder>.<name>`.

    Raises UnknownName with the nearest known name where the folder has no such file.
    """
    known = names(folder)
    if name not in known:
        raise UnknownName(folder.rstrip("s"), name, known, f"heredity {folder}")
    return importlib.import_module(f"heredity.{folder}.{name}")
