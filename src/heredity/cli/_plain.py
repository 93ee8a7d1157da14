"""The one door between foreign text and a terminal.

Promises: what comes out moves no cursor, changes no colour, title or clipboard, reorders nothing and hides
nothing: every control, format and bidirectional character is shown as a visible name.
Leaves to others: which characters those are (report/_text.py, one list for both) and what the text means.
"""

from __future__ import annotations

from heredity.study.wording import visible


def plain(text: str, lines: bool = False) -> str:
    """`text` with everything a terminal would obey made visible; on one line unless `lines`."""
    shown = visible(text)
    return shown if lines else shown.replace("\n", "\u240a").replace("\t", " ")


def shorten(text: str, width: int) -> str:
    """`plain` text on one line, cut to `width` characters with an ellipsis."""
    text = plain(" ".join(text[: 8 * width].split()))
    return text if len(text) <= width else text[: width - 1] + "…"
