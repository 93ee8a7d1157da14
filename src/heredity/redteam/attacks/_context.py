"""The attack context: the facts about a trial, besides the probe, that an attack may use.

Promises: every random draw comes from the trial's seed, so a trial uses the same words under every Python
version. The context holds nothing about the model and no secret's value.
Leaves to others: the seed (study/plan.py) and filling the context (study/attack_context.py).
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from heredity.application.spec import Application
from heredity.core.records import Decoding
from heredity.redteam import probes

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


T = TypeVar("T")
MARK = "[[found]]"  # placeholder in a request for the text that a search finds


class AttackReferee(Protocol):
    """Scores an attack's progress by the probe's own judge; keeps from the attack what it must not know."""

    def score(self) -> int:
        """Score the replies since the last call, from 1 (refusal) to 10 (breach); `0` if unknown."""

    def is_void(self, text: str) -> bool:
        """Whether these user words would count as a breach if the model only quoted them."""


class NoReferee:
    """A referee without scores, for use outside a study."""

    def score(self) -> int:
        return 0

    def is_void(self, text: str) -> bool:  # noqa: ARG002
        return False


class AttackContext(msgspec.Struct, frozen=True):
    """The trial's sample and seed, and the few words of the application that an attack may use.

    words        slot -> the application's word for it: "company", "secret_name", "tool", "forbidden_tool"
    max_turns    replies that the application allows in one conversation
    decoding     the application's sampling settings
    variant      the variant of the part that is asked; set for each part by the attack itself
    language     the language of the wrappers' words; set by the attack itself
    referee      scores the conversation so far, for an attack that uses the score
    found        text that a search of the model's weights found for this trial; "" for none
    """

    sample: int = 0
    seed: int = 0
    words: Mapping[str, str] = {}
    max_turns: int = 4
    decoding: Decoding = Decoding()
    variant: str = ""
    language: str = "en"
    referee: AttackReferee = NoReferee()
    found: str = ""

    def draw(self, purpose: str) -> Draw:
        """A stream of random numbers for one purpose, the same for the same trial."""
        return Draw(f"{self.seed}\0{purpose}")


class Draw:
    """Random numbers from a text. Only `random()` is used: Python promises its values for every version."""

    def __init__(self, source: str) -> None:
        self._random = random.Random(source).random

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self._random() < p

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._random() * n)

    def some(self, n: int, items: Sequence[T]) -> list[T]:
        """`n` of the items, each at most once, in random order."""
        pool = list(items)
        for i in range(n):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]

    def shuffle(self, items: MutableSequence[Any]) -> None:
        """Shuffle the items in place."""
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]


def context_for(application: Application) -> AttackContext:
    """The attack context of this application for sample 0 of seed 0."""
    return AttackContext(
        words=probes.slot_values(application), max_turns=application.max_turns, decoding=application.decoding
    )


DEFAULT_CONTEXT = AttackContext()  # sample 0 of seed 0, in no application in particular


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
