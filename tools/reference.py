"""Write docs/reference/cli.md and docs/reference/api.md from the code itself.

    python tools/reference.py            write both
    python tools/reference.py --check    exit 1 where a page is not what the code says

Promises: nothing in these pages is written by hand; the same code gives the same bytes.
Leaves to others: the help texts (click) and the docstrings.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
NOTE = "<!-- Written by tools/reference.py. Change help texts or docstrings, then run `make reference`. -->\n"


def cli() -> str:
    """The page of the command line: every verb with its arguments, options and example."""
    from heredity.cli import SECTIONS, heredity

    context = click.Context(heredity, info_name="heredity")
    lines = [NOTE, "# Command line", ""]
    lines += ["Every verb also takes `--help` and `--debug`, which shows the traceback of an error."]
    lines += ["", "| verb | what it does |", "|---|---|"]
    for verbs in SECTIONS.values():
        lines += [f"| [`heredity {verb}`](#heredity-{verb}) | {what} |" for verb, what in verbs.items()]
    for title, verbs in SECTIONS.items():
        lines += ["", f"## {title}"]
        for verb in verbs:
            command = heredity.get_command(context, verb)
            assert command is not None
            lines += _verb(command, click.Context(command, context, info_name=verb), 3)
    return "\n".join(lines) + "\n"


def _verb(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    """One verb, and below it the verbs of its own."""
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("", f"{'#' * level} {context.command_path}", "", f"    {context.command_path} {usage}", "")
    yield _prose(command.help or "")
    rows = [
        _option(param, context) for param in command.get_params(context) if isinstance(param, click.Option)
    ]
    if rows := [row for row in rows if row]:
        yield from ("", "| option | what it sets | default |", "|---|---|---|", *rows)
    if example := getattr(command, "example", ""):
        yield from ("", "Example:", "", *(f"    {line.strip()}" for line in example.splitlines()))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _verb(below, click.Context(below, context, info_name=name), level + 1)


def _option(param: click.Option, context: click.Context) -> str:
    """A row of the table; "" for an option that every verb has."""
    if param.hidden or param.name == "debug" or "--help" in param.opts:
        return ""
    names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
    value = "" if param.is_flag else f" `{param.make_metavar(context)}`".replace("|", "\\|")
    help_text, _, shown = (param.help or "").partition("[default:")
    default = shown.rstrip("] ") or _default(param, context)
    return f"| {names}{value} | {_cell(help_text)} | {_cell(default)} |"


def _default(param: click.Option, context: click.Context) -> str:
    if param.is_flag or not param.show_default:
        return "required" if param.required else ""
    if isinstance(param.show_default, str):
        return param.show_default
    found = param.get_default(context, call=False)
    if found is None or callable(found):
        return ""
    return ", ".join(map(str, found)) if isinstance(found, tuple) else str(found)


def _prose(text: str) -> str:
    """A help text as Markdown; a paragraph that click leaves unwrapped (\\b) stays as it is typed."""
    parts = []
    for part in inspect.cleandoc(text).split("\n\n"):
        is_typed = part.startswith(("\b", "    "))
        typed = "\n".join(f"    {line}" for line in part.lstrip("\b\n").splitlines())
        parts.append(typed if is_typed else _plain(part))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def api() -> str:
    """The page of the library: every public name with its signature, docstring and public methods."""
    import heredity

    names = [name for name in heredity.__all__ if not name.startswith("_")]
    lines = [NOTE, "# Library", "", "Everything public is in the package itself: `import heredity as h`.", ""]
    lines += ["| name | what it is |", "|---|---|"]
    for name in names:
        paragraph = " ".join(_docstring(getattr(heredity, name)).split("\n\n")[0].split())
        first, stop, _ = paragraph.partition(". ")
        lines.append(f"| [`{name}`](#{name.lower()}) | {_cell(first + stop.strip())} |")
    for name in names:
        thing = getattr(heredity, name)
        lines += ["", f"## {name}", "", *_signature(name, thing), "", _docs(thing)]
        if inspect.isclass(thing):
            for method, each in _methods(thing):
                lines += ["", f"### {name}.{method}", "", *_signature(method, each), "", _docs(each)]
    return "\n".join(lines) + "\n"


def _methods(thing: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that the class itself defines and documents."""
    for name, member in vars(thing).items():
        each = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        is_shown = inspect.isfunction(each) or isinstance(each, property)
        if is_shown and not name.startswith("_") and each.__doc__:
            yield name, each


def _signature(name: str, thing: Any) -> list[str]:
    """The call as it is written, one argument a line where it is long."""
    if isinstance(thing, property):
        return ["```python", name, "```"]
    try:
        found = inspect.signature(thing)
    except ValueError:
        return []
    given = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    shown = [p if p.default is p.empty else p.replace(default=_Shown(p.default)) for p in given]
    text = str(found.replace(parameters=shown))
    text = re.sub(r"ForwardRef\('(.*?)'(?:, module='[^']*')?\)", r"\1", text).replace("'", "")
    text = re.sub(r"\b(?:heredity|collections|pathlib|typing)\.(?:\w+\.)*", "", text)
    if len(name + text) > 100:
        inside, _, after = text[1:].rpartition(")")
        text = "(\n" + "".join(f"    {part},\n" for part in _split(inside)) + ")" + after
    return ["```python", name + text, "```"]


class _Shown:
    """A default as it stands in the page: an object's address would be another one each time."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        text = json.dumps(self.value) if isinstance(self.value, str) else repr(self.value)
        return "..." if " at 0x" in text or len(text) > 60 else text


def _split(inside: str) -> list[str]:
    """Arguments apart at commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(inside):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(inside[start:at].strip())
            start = at + 1
    return [*parts, inside[start:].strip()]


def _docstring(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def _docs(thing: Any) -> str:
    """A docstring as Markdown: its indented examples stay, all else is text."""
    parts = []
    for part in _docstring(thing).split("\n\n"):
        is_code = part.startswith("    ")
        parts.append(part if is_code else part.replace("<", "&lt;").replace("*", "\\*"))
    return "\n\n".join(parts)


PAGES = {"cli.md": cli, "api.md": api}


def main() -> int:
    """Write the pages, or say which are stale."""
    stale = [name for name, page in PAGES.items() if _read(FOLDER / name) != page()]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/reference/{name} is stale: make reference", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(PAGES[name](), "utf-8")
        print(f"wrote docs/reference/{name}")
    return 0


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
