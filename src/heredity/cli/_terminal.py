"""Printing for every verb: stdout and stderr, tables that fit, JSON, and formatted numbers.

Promises: text is never read as markup; colour appears only on a terminal; a closed pipe ends quietly.
Leaves to others: making untrusted text harmless (core/sanitize.py), and the content.
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

_MIN_WIDTH = 60  # a narrower table would lose words, so the terminal breaks its lines instead


def out() -> Console:
    """The console for results: stdout."""
    screen = console(sys.stdout)
    screen.width = max(screen.width, _MIN_WIDTH)
    return screen


def err() -> Console:
    """The console for progress and warnings: stderr."""
    return console(sys.stderr)


def note(line: str) -> None:
    """Print one plain line on stderr."""
    err().print(plain(line), soft_wrap=True)


def write(text: str) -> None:
    """Print text on stdout, unwrapped, so that it can be copied and piped. Untrusted text must be plain."""
    sys.stdout.write(text + "\n")


def write_json(value: Any) -> None:
    """Print one JSON document on stdout, with control characters escaped."""
    import json

    # ensure_ascii: a bidirectional override in a model's answer must not reach a terminal through --json.
    write(json.dumps(json.loads(encode(value)), indent=2, ensure_ascii=True))


def table(*columns: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """A table without frames. Columns in `right` hold numbers; those in `whole` are never wrapped."""
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
    """A cell of untrusted text, made plain."""
    return Text(plain(str(text)), style=style)


def percent(estimate: Estimate) -> str:
    """An estimate as `12% [8, 17]`, or a dash if there is no data."""
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
