"""Write the tree of src/heredity into docs/explanation/architecture.md.

    python tools/tree.py            write it
    python tools/tree.py --check    exit 1 if the page is stale

Promises: every package is there with its public files. A description in the page is kept; a new package or
root file gets the first sentence of its docstring.
Leaves to others: what the descriptions say. Edit them in the page.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "heredity"
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
BLOCK = re.compile(r"```text\nsrc/heredity/\n.*?```", re.DOTALL)
TOML = ("probes", "tasks")  # open folders whose plug-ins are TOML files
_COLUMN, _WIDTH = 22, 110


def tree(known: dict[str, str], source: Path = SOURCE) -> str:
    """The block of the page. `known`: a path below the package -> its description."""
    lines = ["```text", "src/heredity/"]
    for path, names in entries(source):
        depth = path.count("/") - path.endswith("/")
        label = "  " * (depth + 1) + (path.rstrip("/").rpartition("/")[2] + "/" * path.endswith("/"))
        described = known.get(path) or _sentence(source / path)
        text = f"{described}: {' '.join(names)}" if names else described
        head = f"{label:{_COLUMN}} "
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
        ) or [label]
    return "\n".join([*lines, "```"])


def entries(source: Path = SOURCE, below: str = "") -> Iterator[tuple[str, list[str]]]:
    """Each root file and each package with its public files, packages in the order of their names."""
    for path in sorted(source.iterdir()):
        if path.is_dir() and (path / "__init__.py").exists():
            yield f"{below}{path.name}/", _public(path)
            yield from entries(path, f"{below}{path.name}/")
        elif not below and path.suffix in (".py", ".toml"):
            yield path.name, []


def _public(package: Path) -> list[str]:
    endings = (".toml",) if package.name in TOML else (".py",)
    return sorted(p.stem for p in package.iterdir() if p.suffix in endings and not p.name.startswith("_"))


def _sentence(path: Path) -> str:
    """The first sentence of a module's docstring, as part of a line."""
    file = path / "__init__.py" if path.is_dir() else path
    if file.suffix != ".py":
        return ""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").split("\n\n")[0].split())
    return re.split(r"[.:;](?: |$)", text)[0]


def descriptions(page: str) -> dict[str, str]:
    """What the page's tree says of each path, without the names of its files."""
    found: dict[str, str] = {}
    above: list[str] = []
    block = BLOCK.search(page)
    for line in block[0].splitlines()[2:-1] if block else ():
        label, text = line[:_COLUMN].rstrip(), line[_COLUMN:].strip()
        if len(label) > _COLUMN - 1 or not label.strip():
            path = next(reversed(found))
            found[path] += f" {line.strip()}"
            continue
        depth = (len(label) - len(label.lstrip())) // 2 - 1
        above = [*above[:depth], label.strip()]
        found["".join(above)] = text
    return {path: _without_names(text) if path.endswith("/") else text for path, text in found.items()}


def _without_names(text: str) -> str:
    return text.rpartition(": ")[0] or text


def rewritten(page: str) -> str:
    """The page with the tree that is on disk."""
    return BLOCK.sub(lambda _: tree(descriptions(page)), page)


def main() -> int:
    """Write the page, or report that it is stale."""
    page = PAGE.read_text("utf-8")
    if rewritten(page) == page:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE.relative_to(ROOT)} is stale: make reference", file=sys.stderr)
        return 1
    PAGE.write_text(rewritten(page), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
