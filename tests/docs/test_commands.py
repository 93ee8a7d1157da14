"""Every command that a document shows is one that heredity has, with options that it has."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from heredity.cli import heredity
from tests.support.documents import ROOT, pages

_OLD = ("docs/reference/cli.md", "docs/reference/api.md")  # written from the code
_INLINE = re.compile(r"`(heredity [^`]+)`")
_SHOWN = re.compile(r"^\s*(?:\$ )?((?:torchrun .*-m )?heredity (?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)


def commands(page: Path) -> Iterator[str]:
    """The command lines of a page: in code blocks, and in sentences."""
    text = page.read_text("utf-8")
    in_blocks = "\n".join(re.findall(r"^```.*?^```|^    .*?$", text, re.MULTILINE | re.DOTALL))
    yield from (match[1].replace("\\\n", " ") for match in _SHOWN.finditer(in_blocks))
    yield from (" ".join(found.split()) for found in _INLINE.findall(text))


def wrong(line: str) -> str:
    """What is wrong with a command line; "" for nothing. Arguments and values are not looked at."""
    words = shlex.split(line.partition("heredity ")[2], comments=True)
    command: click.Command = heredity
    context = click.Context(heredity, info_name="heredity")
    options: list[str] = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            options.append(word.partition("=")[0])
        elif isinstance(command, click.Group) and not options:
            if re.fullmatch(r"[A-Z.…]+|<\w+>", word):
                return ""  # a placeholder: heredity derive RECIPE
            below = command.get_command(context, word)
            if below is None:
                return f"no verb '{word}'"
            command, context = below, click.Context(below, context, info_name=word)
    given = [
        param for param in command.get_params(context) if isinstance(param, click.Option) and not param.hidden
    ]
    known = {name for param in given for name in [*param.opts, *param.secondary_opts]} | {"--help"}
    return ", ".join(f"no option {name}" for name in options if name not in known)


@pytest.mark.parametrize(
    "page",
    [page for page in pages() if str(page.relative_to(ROOT)) not in _OLD],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    assert [f"{line}: {why}" for line in commands(page) if (why := wrong(line))] == []


def test_a_wrong_verb_and_a_wrong_option_are_found() -> None:
    assert wrong("heredity studdy") == "no verb 'studdy'"
    assert wrong("heredity study plan.toml --modle x") == "no option --modle"
    assert wrong("heredity judges calibrate rules --task harm") == ""
    assert wrong("heredity derive RECIPE --help") == ""


def test_the_settings_of_the_bases_in_the_guide_exist() -> None:
    text = (ROOT / "docs" / "how-to" / "children.md").read_text("utf-8").split("\n## Pre-train a base\n")[1]
    command = heredity.get_command(click.Context(heredity), "pretrain")
    assert command is not None
    given = {param.name for param in command.get_params(click.Context(command)) if not _is_hidden(param)}
    found = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(found) == 3
    assert [key for block in found for key in tomllib.loads(block) if key not in given] == []


def _is_hidden(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and param.hidden
