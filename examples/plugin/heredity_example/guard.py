"""A guard of answers."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import heredity as h


class CalmGuard(h.GuardRule, frozen=True):
    """Takes exclamation marks out of answers."""

    SIDES: ClassVar[tuple[Literal["answer"], ...]] = ("answer",)

    @property
    def acts(self) -> Literal["redact"]:
        return "redact"

    def find(self, text: str, side: str, facts: h.GuardFacts) -> Sequence[h.GuardSpan]:
        return [
            h.GuardSpan(i, i + 1, "an exclamation mark") for i, letter in enumerate(text) if letter == "!"
        ]
