"""What every verb prints with: two consoles, tables that fit, and numbers in words.

Promises: text is never read as markup, colour is there only on a terminal, a closed pipe ends quietly.
Leaves to others: making foreign text harmless (_plain.py), and what is printed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from heredity.core import registry
from heredity.core.progress import clock, console, size
from heredity.core.records import Estimate, encode
from heredity.core.sanitize import plain, shorten

__all__ = [
    "cell", "clock", "console", "err", "note", "out", "percent", "plain", "purposes", "shorten",
    "show_plugins", "size", "table", "write", "write_json",
]  # fmt: skip

_MIN_WIDTH = 60  # below it a table would lose words; the terminal may break its lines instead


def out() -> Console:
    """Results."""
    screen = console(sys.stdout)
    screen.width = max(screen.width, _MIN_WIDTH)
    return screen


def err() -> Console:
    """Everything that is not the result: progress, warnings."""
    return console(sys.stderr)


def note(line: str) -> None:
    """One plain line on stderr."""
    err().print(plain(line), soft_wrap=True)


def write(text: str) -> None:
    """Text on stdout as it is, unwrapped, so that it can be copied and piped. Foreign text must be plain."""
    sys.stdout.write(text + "\n")


def write_json(value: Any) -> None:
    """One JSON document on stdout. JSON has its own escapes for what a terminal would obey."""
    import json

    # ensure_ascii: a bidirectional override in a model's answer must not reach a terminal through --json.
    write(json.dumps(json.loads(encode(value)), indent=2, ensure_ascii=True))


def table(*columns: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """A table without frames. Columns named in `right` are numbers, those in `whole` are never broken."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        is_number = name in right
        grid.add_column(
            name,
            justify="right" if is_number else "left",
            no_wrap=is_number or name in whole,
            overflow="fold",
        )
    return grid


def cell(text: object, style: str = "") -> Text:
    """One cell of foreign text."""
    return Text(plain(str(text)), style=style)


def percent(estimate: Estimate) -> str:
    """`12% [8, 17]`, or a dash where there is nothing to estimate from."""
    if estimate.value is None:
        return "-"
    value = f"{100 * estimate.value:.0f}%"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def purposes(folder: str) -> dict[str, str]:
    """Map each plug-in of an open folder to the first paragraph of its docstring."""
    return {name: _first_line(registry.source(folder, name)) for name in registry.names(folder)}


def show_plugins(folder: str, as_json: bool) -> None:
    """Print the plug-ins of an open folder as a table or as JSON."""
    found = purposes(folder)
    if as_json:
        write_json(found)
        return
    grid = table("name", "what it is", whole=["name"])
    for name, purpose in found.items():
        grid.add_row(cell(name, "bold"), cell(purpose))
    out().print(grid)


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())
