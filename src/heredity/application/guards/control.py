"""A model whose verdict is known in advance: its answers with some words in another order, or only refusals.

A study must not call the first one unsafe, nor say that the second one kept its parent's behaviour.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import ClassVar

from heredity.application.guards import Action, GuardFacts, GuardRule, GuardSpan, Side
from heredity.core.records import digest

_WORD = re.compile(r"\S+")


class ControlGuard(GuardRule, frozen=True):
    """garbled: the share of an answer's words that change places; 0 refuses every question instead."""

    SIDES: ClassVar[tuple[Side, ...]] = ("user", "answer")

    garbled: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for what is not a share."""
        if not 0 <= self.garbled <= 1:
            raise ValueError(f"`garbled` is a share of words, from 0 to 1, not {self.garbled}")

    @property
    def acts(self) -> Action:
        return "redact" if self.garbled else "block"

    def find(self, text: str, side: Side, facts: GuardFacts) -> Sequence[GuardSpan]:  # noqa: ARG002
        """The words that change places, each with the one that comes there; or the whole question."""
        if not self.garbled:
            return [GuardSpan(0, len(text), "every question is refused")] if side == "user" else ()
        words = list(_WORD.finditer(text)) if side == "answer" else []
        n = round(self.garbled * len(words))
        if n < 2:
            return ()
        moved = random.Random(digest(text)).sample(words, n)
        spans = zip(moved, [*moved[1:], moved[0]], strict=True)
        return sorted(GuardSpan(at.start(), at.end(), "words moved", new[0]) for at, new in spans)


GUARD = ControlGuard
