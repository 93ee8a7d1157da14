"""The files of an open folder as a table: each name with the first sentence of its docstring.

Promises: nothing is imported to list it, so listing the engines loads no torch.
Leaves to others: what the folder holds.
"""

from __future__ import annotations

import ast
from pathlib import Path

from heredity.core import registry


def purposes(folder: str) -> dict[str, str]:
    """Each name of an open folder, with what its module's docstring says first."""
    return {name: _first_line(registry.source(folder, name)) for name in registry.names(folder)}


def show(folder: str, as_json: bool) -> None:
    """Print them, for people or for a machine."""
    from heredity.cli import _terminal

    found = purposes(folder)
    if as_json:
        _terminal.write_json(found)
        return
    grid = _terminal.table("name", "what it is", whole=["name"])
    for name, purpose in found.items():
        grid.add_row(_terminal.cell(name, "bold"), _terminal.cell(purpose))
    _terminal.out().print(grid)


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())
