"""Hostile text made safe to look at: what a model said is shown, never obeyed.

Promises: the result has no control code, no bidirectional override, no invisible or unassigned character and
no lone surrogate (each is replaced by a visible name); it can be encoded as UTF-8; what is cut is counted.
Leaves to others: escaping for HTML or Markdown (the template's autoescape, markdown.py).
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

LIMIT = (
    4000  # characters of one text in a report: enough for any answer of a study, too little to drown a page
)

# Joiners are needed by emoji and by several scripts; any other format character only hides or reorders.
_ALLOWED = {"\n", "\t", "\u200c", "\u200d"}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SUSPECT = re.compile(r"[^\n\t\x20-\x7e]")


class Shown(NamedTuple):
    """A text as shown, and how many characters of the original were left out at its end."""

    text: str
    n_cut: int


def visible(text: str) -> str:
    """`text` with every character that hides, reorders or controls replaced by a visible name."""
    return _SUSPECT.sub(_name, text.replace("\r\n", "\n"))


def shown(text: str, limit: int = LIMIT) -> Shown:
    """The first `limit` characters of `text`, made visible, and how many were cut."""
    # Cut first: a text of a megabyte costs no more than one of a page.
    return Shown(visible(text[:limit]), max(0, len(text) - limit))


def label(text: str, limit: int = 80) -> str:
    """One short line for a name, an id or a reason: no line break, at most `limit` characters."""
    line = " ".join(visible(text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _name(match: re.Match[str]) -> str:
    character = match[0]
    if character in _ALLOWED:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures: ESC is shown as one sign
    if code == 0x7F:
        return "\u2421"
    # Selectors above U+E0100 smuggle bytes behind a letter; the sixteen lower ones are part of emoji.
    is_smuggler = 0xE0000 <= code <= 0xE0FFF
    return f"⟨U+{code:04X}⟩" if is_smuggler or unicodedata.category(character) in _HIDDEN else character
