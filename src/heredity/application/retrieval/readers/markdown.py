"""Markdown: headings in both forms, paragraphs between blank lines, and fenced code as one block."""

from __future__ import annotations

import re

from heredity.application.retrieval.readers import TextBlock, Unit, decode, paragraphs

SUFFIXES = (".md", ".markdown", ".mdx")
UNIT: Unit = "line"
IS_ISOLATED = False

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def read(data: bytes, max_unpacked: int) -> list[TextBlock]:  # noqa: ARG001
    """The headings, paragraphs and fenced blocks of the file."""
    lines = decode(data).split("\n")
    blocks: list[TextBlock] = []
    start = at = 0  # the first line that is in no block yet, and the current one
    while at < len(lines):
        if fence := _FENCE.match(lines[at]):
            end = _end_of_fence(lines, at, fence[1])
            blocks += paragraphs(lines[start:at], start + 1)
            blocks.append(TextBlock("\n".join(lines[at : end + 1]), at + 1, end + 1))
            start = at = end + 1
        elif heading := _heading(lines, at, start):
            blocks += paragraphs(lines[start : heading.start - 1], start + 1)
            blocks.append(heading)
            start = at = at + 1
        else:
            at += 1
    return blocks + paragraphs(lines[start:], start + 1)


def _end_of_fence(lines: list[str], start: int, fence: str) -> int:
    """The index of the line that closes a fence, or of the last line."""
    for at in range(start + 1, len(lines)):
        line = lines[at].strip()
        if len(line) >= len(fence) and line == fence[0] * len(line):
            return at
    return len(lines) - 1


def _heading(lines: list[str], at: int, start: int) -> TextBlock | None:
    """The heading that ends at this line, if there is one. `start`: the first line it may take."""
    if atx := _ATX.match(lines[at]):
        return TextBlock(lines[at], at + 1, at + 1, len(atx[1]))
    under = _UNDERLINE.match(lines[at])
    if under is None or at <= start or not lines[at - 1].strip():
        return None
    if at - 1 > start and lines[at - 2].strip():  # the last line of a longer paragraph, or of a table
        return None
    return TextBlock("\n".join(lines[at - 1 : at + 1]), at, at + 1, 1 if under[1][0] == "=" else 2)
