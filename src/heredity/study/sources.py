"""Where a study's questions are written: the application's file and a user's own probe files, with lines.

A report for a code host (sarif.py, gate.py) can then point at a line that exists.

Promises: a path is relative to the repository around the working folder, else to that folder. Of a file
outside of both only the name is kept. Nothing of it is part of the plan.
Leaves to others: reading the files (application/spec.py, redteam/probes/), and showing the places.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from heredity.application.spec import Application
from heredity.core.errors import Damaged
from heredity.core.files import read_file, write_atomic
from heredity.core.readers import toml_line
from heredity.core.records import SCHEMA, Probe, Record, encode

SOURCES = "sources.json"
_HEAD = re.compile(r"\s*\[\[\s*probe\s*\]\]")


class SourcePlace(Record, frozen=True):
    """A line of a file; lines count from 1. `path` has slashes on every system."""

    path: str
    line: int = 1


class StudySources(Record, frozen=True):
    """sources.json: where the application is written, and the user's own probes by id.

    lines: of the application, what a breach is about: "system", "secrets", "tools" (the first forbidden one)
        and "tools.NAME".
    """

    application: SourcePlace
    lines: dict[str, int]
    probes: dict[str, SourcePlace]
    schema: int = SCHEMA

    def of_probe(self, probe: Probe) -> SourcePlace:
        """The line of a user's own probe; else that of the application which a breach of it is about."""
        if (own := self.probes.get(probe.id)) is not None:
            return own
        what = {"secret": "secrets", "tool": "tools", "state": "tools"}.get(probe.check.kind, "system")
        wanted = (f"{what}.{probe.check.tool}", what, "system")
        line = next((self.lines[name] for name in wanted if name in self.lines), self.application.line)
        return SourcePlace(self.application.path, line)


def locate_sources(
    path: Path, application: Application, probes: Sequence[str | Probe] | str = ()
) -> StudySources:
    """The places of an application in `path`, and of the probes in files that are named among `probes`."""
    lines = {"system": toml_line(path, "system"), "secrets": toml_line(path, head="secrets")}
    tools = {f"tools.{tool.name}": toml_line(path, table=tool.name) for tool in application.tools}
    forbidden = (tools[f"tools.{tool.name}"] for tool in application.tools if tool.is_forbidden)
    lines |= {"tools": next(forbidden, 0)} | tools
    known = {name: line for name, line in lines.items() if line}
    named = [probes] if isinstance(probes, str) else probes
    files = [Path(name) for name in named if isinstance(name, str) and name.endswith(".toml")]
    own = {name: place for file in files for name, place in _probe_places(file)}
    return StudySources(SourcePlace(_shown_path(path), known.get("system", 1)), known, own)


def save_sources(folder: Path, sources: StudySources) -> None:
    """Write sources.json into a study's folder."""
    write_atomic(folder / SOURCES, encode(sources) + b"\n")


def read_sources(folder: Path) -> StudySources | None:
    """The places of a study; None if its folder has none. Raises Damaged for a broken file."""
    path = folder / SOURCES
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(read_file(path), type=StudySources)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"{path}: {error}. Delete it: reports then name no line."
        raise Damaged(message) from None


def _probe_places(file: Path) -> Iterator[tuple[str, SourcePlace]]:
    """The id and the place of each probe of a file that was read before."""
    text = file.read_text("utf-8")
    data, shown = tomllib.loads(text.removeprefix("\ufeff")), _shown_path(file)
    heads = [n for n, line in enumerate(text.splitlines(), 1) if _HEAD.match(line)]
    for line, item in zip(heads, data.get("probe", ()), strict=False):
        yield f"{data.get('technique') or file.stem}/{item['id']}", SourcePlace(shown, line)


def _shown_path(path: Path) -> str:
    here, whole = Path.cwd(), path.resolve()
    repository = next((each for each in (here, *here.parents) if (each / ".git").exists()), here)
    for root in (repository, here):
        with suppress(ValueError):
            return whole.relative_to(root.resolve()).as_posix()
    return path.name
