"""Which words of a text a disguise leaves alone, so that a breach can still show.

A marker is put together from quoted parts, and a tool is called by its name: a model that obeys writes them
as it read them. What would come out of "z0r" and "qu1nt" is no marker, and the trial would prove nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_KEPT = re.compile(r"(?<!\w)(['\"`])\w+\1(?!\w)|\b[A-Za-z]+_\w+|\b[\w-]+\.example\b")


def kept(text: str) -> list[str]:
    """The parts of a text that stay as they are."""
    return [found[0] for found in _KEPT.finditer(text)]


def between(text: str, change: Callable[[str], str]) -> str:
    """The text with `change` applied to everything but quoted single words, tool names and made-up hosts."""
    parts, at = [], 0
    for kept in _KEPT.finditer(text):
        parts += [change(text[at : kept.start()]), kept[0]]
        at = kept.end()
    return "".join([*parts, change(text[at:])])
