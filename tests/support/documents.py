"""Read the examples of a Markdown page, and run them as a reader would type them.

Promises: the blocks of a page run in order, in one temporary folder with a copy of `examples/`. Outputs are
compared line by line. A line `...` matches any number of lines, and `...` inside a line any text.
Leaves to others: which pages there are (test_examples.py).

Run one page: python -m tests.support.documents [--models] PAGE.md
Rewrite the outputs of a page after a change: python -m tests.support.documents --write PAGE.md

What a page marks (a comment on the line above a fence):

    <!-- needs: models -->     a block that needs real models; run by `pytest -m models tests/docs`
    <!-- file: plan.toml -->   the block is written to that file
    <!-- run -->               a ```python block is executed; a ```sh block too, and it must exit with 0
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from heredity.lineage.store import Store
from tests.support import forked_shell

ROOT = Path(__file__).parents[2]
WIDTH = "96"  # columns of the terminal that a page shows
_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"^<!-- (needs|file|run)(?:: (.*?))? -->$")


@dataclass(frozen=True, slots=True)
class Command:
    """One line after `$ `, its continuation lines, and what the page says that it prints."""

    text: str
    output: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block with its marks. `first` and `last` are the line numbers of its content, from 0."""

    language: str
    content: tuple[str, ...]
    first: int
    marks: dict[str, str]

    @property
    def last(self) -> int:
        return self.first + len(self.content)

    def commands(self) -> Iterator[Command]:
        """The commands of a console block, in order."""
        starts = [at for at, line in enumerate(self.content) if line.startswith("$ ")]
        for start, end in zip(starts, [*starts[1:], len(self.content)], strict=True):
            typed = start + 1
            while typed < end and self.content[typed - 1].endswith("\\"):
                typed += 1
            text = "\n".join([self.content[start][2:], *self.content[start + 1 : typed]])
            yield Command(text, self.content[typed:end], self.first + start + 1)


def blocks(page: str) -> Iterator[Block]:
    """Every fenced block of a page."""
    lines = page.split("\n")
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        if fence is None:
            at += 1
            continue
        end = next(n for n in range(at + 1, len(lines)) if lines[n] == "```")
        marks, above = {}, at - 1
        while above >= 0 and (mark := _MARK.match(lines[above])):
            marks[mark[1]] = mark[2] or ""
            above -= 1
        yield Block(fence[1], tuple(lines[at + 1 : end]), at + 1, marks)
        at = end + 1


def matches(expected: tuple[str, ...], found: list[str]) -> bool:
    """Whether an output is the one that the page shows."""
    pattern = ""
    for line in expected:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += r".*?".join(re.escape(part.rstrip()) for part in line.split("...")) + r"[ ]*\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in found)) is not None


class Session:
    """A shell in a folder of its own, as a reader's who has installed heredity; its commands are forked."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(ROOT / "examples", folder / "examples")
        (folder / ".bin").mkdir()
        program = folder / ".bin" / "heredity"
        program.write_text(forked_shell.program())
        program.chmod(0o755)
        self.folder, self.code = folder, 0
        path = os.pathsep.join([str(folder / ".bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        self._env = {
            **os.environ, "PATH": path, "COLUMNS": WIDTH, "NO_COLOR": "1", "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(ROOT / "src"), "HEREDITY_STORE": str(folder / ".store"),
        }  # fmt: skip
        for name in [name for name in self._env if name.endswith("_API_KEY")]:
            del self._env[name]

    def link_foundations(self) -> None:
        """Put the pulled models of the user's store into the page's own, so that none is downloaded again.

        What the page makes stays in its folder.
        """
        users, pages_own = Store(), Path(self._env["HEREDITY_STORE"])
        for model in users.models():
            if model.recipe.kind == "pull":
                target = pages_own / "models" / model.id
                shutil.copytree(users.folder(model), target, copy_function=_link)

    def run(self, command: str) -> list[str]:
        """Output and errors of one command, as a terminal shows them."""
        done = subprocess.run(
            ["bash", "-c", f"(exit {self.code})\n{command}"], cwd=self.folder, env=self._env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1800,
        )  # fmt: skip
        self.code = done.returncode
        text = done.stdout.replace("\N{NO-BREAK SPACE}", " ")  # nobody can type what looks like a space
        return [line.rstrip() for line in text.removesuffix("\n").split("\n")] if text else []

    def python(self, code: str) -> None:
        """Execute a block of Python. Raises CalledProcessError if it fails."""
        command = [sys.executable, "-c", code]
        subprocess.run(command, cwd=self.folder, env=self._env, check=True, capture_output=True, timeout=1800)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def run(page: Path, folder: Path, with_models: bool = False) -> list[str]:
    """Run a page's examples in `folder`. Gives what is not as the page says, one text for each."""
    session, wrong = Session(folder), []
    if with_models:
        session.link_foundations()
    for block in blocks(page.read_text("utf-8")):
        if "needs" in block.marks and not with_models:
            continue
        if "file" in block.marks:
            path = folder / block.marks["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(block.content) + "\n", "utf-8")
        elif block.language == "python" and "run" in block.marks:
            session.python("\n".join(block.content))
        elif block.language == "sh" and "run" in block.marks:
            found = session.run("set -e\n" + "\n".join(block.content))
            if session.code:
                wrong.append(f"{page.name}:{block.first}: exits {session.code}\n" + "\n".join(found))
        elif block.language == "console":
            wrong += _wrong(page, session, list(block.commands()))
    return wrong


def _wrong(page: Path, session: Session, commands: list[Command]) -> list[str]:
    wrong = []
    for at, command in enumerate(commands):
        found = session.run(command.text)
        where = f"{page.relative_to(ROOT)}:{command.line}: $ {command.text}"
        if not matches(command.output, found):
            shown = "\n".join(found)
            expected = "\n".join(command.output)
            wrong.append(f"{where}\n--- the page shows\n{expected}\n--- it prints\n{shown}")
        shows_code = commands[at + 1 : at + 2] and commands[at + 1].text == "echo $?"
        if session.code and not shows_code:
            wrong.append(f"{where}\n--- it exits {session.code}; show that with `$ echo $?`")
    return wrong


def has_examples(page: Path, needs_models: bool = False) -> bool:
    """Whether a page has something to run, and whether that needs models."""
    found = [
        block
        for block in blocks(page.read_text("utf-8"))
        if block.language == "console" or "run" in block.marks
    ]
    return any(("needs" in block.marks) == needs_models for block in found)


def pages() -> list[Path]:
    """Every page for readers."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def rewrite(page: Path, folder: Path) -> None:
    """Put what the commands print now into the page, where it is not what the page says."""
    session, lines = Session(folder), page.read_text("utf-8").split("\n")
    changes: list[tuple[int, int, list[str]]] = []
    for block in blocks("\n".join(lines)):
        if "needs" in block.marks:
            continue
        if "file" in block.marks:
            path = folder / block.marks["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(block.content) + "\n", "utf-8")
        elif block.language == "console":
            for command in block.commands():
                found = session.run(command.text)
                if not matches(command.output, found):
                    start = command.line + command.text.count("\n")
                    changes.append((start, start + len(command.output), found))
    for start, end, found in reversed(changes):
        lines[start:end] = found
    page.write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    import tempfile

    for name in [each for each in sys.argv[1:] if not each.startswith("--")]:
        with tempfile.TemporaryDirectory() as place:
            if "--write" in sys.argv:
                rewrite(Path(name).resolve(), Path(place))
            else:
                with_models = "--models" in sys.argv
                print("\n\n".join(run(Path(name).resolve(), Path(place), with_models)))  # noqa: T201
