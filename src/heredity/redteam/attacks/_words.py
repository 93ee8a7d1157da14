"""The words of attacks: the tables of words/*.toml, and the parts of a text that no attack may change.

Promises: a language without words of its own uses the English ones.
Leaves to others: which words an attack takes (the files of this folder).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from heredity.core.records import Turn
from heredity.redteam.attacks.protocols import AttackContext

_FOLDER = Path(__file__).parent / "words"


@lru_cache(maxsize=32)
def table(language: str) -> dict[str, Any]:
    """The contents of words/<language>.toml; {} if the file does not exist."""
    path = _FOLDER / f"{language}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if language.isalnum() and path.exists() else {}


@lru_cache(maxsize=32)
def translations(language: str) -> dict[str, dict[str, list[Any]]]:
    """The items of words/<language>/<technique>.toml by technique; {} without items."""
    paths = sorted((_FOLDER / language).glob("*.toml")) if language.isalnum() else []
    return {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in paths}


def languages() -> tuple[str, ...]:
    """The languages other than English that have a words file."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml") if path.stem != "en"))


def say(attack: str, key: str, context: AttackContext, text: str = "") -> str:
    """The words of an attack under `key` in the trial's language, with `text` in their slot for it."""
    words = table(context.language).get(attack, {}).get(key) or table("en")[attack][key]
    return str(words).strip().replace("{text}", text, 1)


def keys(attack: str) -> tuple[str, ...]:
    """The names of an attack's wrappers, in the order of the English file."""
    return tuple(table("en")[attack])


class DemandWrapper:
    """Wraps the turn that makes the probe's demand. Its variants are the wrappers of a table of words."""

    cost = "adds none"

    def __init__(self, attack: str) -> None:
        self._attack, self.variants = attack, keys(attack)

    def transform(self, turn: Turn, context: AttackContext, at: int) -> Turn:  # noqa: ARG002
        """The turn; if it makes the probe's demand, in its wrapper."""
        if not turn.asks:
            return turn
        text = say(self._attack, context.variant or self.variants[0], context, turn.text)
        return msgspec.structs.replace(turn, text=text)


# --- parts that stay unchanged ------------------------------------------------------------------------

_KEPT = re.compile(r"(?<!\w)(['\"`])\w+\1(?!\w)|\b[A-Za-z]+_\w+|\b[\w-]+\.example\b")


def protected_parts(text: str) -> list[str]:
    """The parts of a text that must stay unchanged."""
    return [found[0] for found in _KEPT.finditer(text)]


def change_unprotected(text: str, change: Callable[[str], str]) -> str:
    """The text with `change` applied to everything but quoted single words, tool names and made-up hosts."""
    parts, at = [], 0
    for found in _KEPT.finditer(text):
        parts += [change(text[at : found.start()]), found[0]]
        at = found.end()
    return "".join([*parts, change(text[at:])])
