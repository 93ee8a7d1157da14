"""The attacks' own words by language, read once from words/, and the probes' translations beside them.

Promises: a wrapper that has no words in a language says them in English; {text} is put in once, so braces
and quotes in a probe change nothing.
Leaves to others: which wrapper lies over which turn (the attacks).
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

from heredity.attacks._how import How

_FOLDER = Path(__file__).parent / "words"


@lru_cache(maxsize=32)
def table(language: str) -> dict[str, Any]:
    """Everything that words/<language>.toml says; {} where there is no such file."""
    path = _FOLDER / f"{language}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if language.isalnum() and path.exists() else {}


@lru_cache(maxsize=32)
def translations(language: str) -> dict[str, dict[str, list[Any]]]:
    """By technique, what words/<language>/<technique>.toml says of its items; {} where there is none."""
    paths = sorted((_FOLDER / language).glob("*.toml")) if language.isalnum() else []
    return {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in paths}


def languages() -> tuple[str, ...]:
    """The languages other than English that there are words in."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml") if path.stem != "en"))


def say(attack: str, key: str, how: How, text: str = "") -> str:
    """The words of an attack under `key` in the trial's language, with `text` in their place for it."""
    words = table(how.language).get(attack, {}).get(key) or table("en")[attack][key]
    return str(words).strip().replace("{text}", text, 1)


def keys(attack: str) -> tuple[str, ...]:
    """The names of an attack's wrappers, in the order of the English file."""
    return tuple(table("en")[attack])
