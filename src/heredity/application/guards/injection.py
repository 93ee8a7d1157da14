"""Finds orders to the model where data or a question should be: "ignore all previous instructions".

A list of phrases, markers of a chat template, and invisible characters. It is quick, and it is easily evaded:
another wording or another language passes. Measure what it buys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Literal

from heredity.application.guards import Action, GuardFacts, GuardRule, GuardSpan, Side, apart

_WORD = r"[\w'-]{1,20}"
_PATTERNS = {
    "an order to ignore instructions": re.compile(
        rf"\b(?:ignore|disregard|forget|override|bypass)\s{{1,4}}(?:{_WORD}\s{{1,4}}){{0,4}}?"
        r"(?:instructions?|prompts?|rules?|guidelines?|directions?|restrictions?|policy|policies)\b",
        re.IGNORECASE,
    ),
    "an order about the system prompt": re.compile(
        r"\b(?:print|reveal|repeat|show|output|reproduce|recite|display)\s{1,4}"
        rf"(?:{_WORD}\s{{1,4}}){{0,4}}?"
        r"(?:system|hidden|initial)\s{1,4}(?:prompt|message|instructions?)\b",
        re.IGNORECASE,
    ),
    "a new role": re.compile(
        rf"\b(?:you are now|from now on,? you|act as (?:if|though)|pretend (?:to be|that you))\s{_WORD}",
        re.IGNORECASE,
    ),
    "a note to the assistant": re.compile(
        r"(?:\b(?:note|message|instructions?|attention|important)\b.{0,20}\b(?:to|for)\b.{0,8}"
        r"\b(?:assistants?|AI|model|LLM|chatbot|bot)\b|^\s{0,8}(?:system|assistant)\s?:)",
        re.IGNORECASE | re.MULTILINE,
    ),
    "a marker of a chat template": re.compile(
        r"<\|[\w ]{2,24}\|>|\[/?INST\]|<</?SYS>>|</?start_of_turn>|<\uff5c[^<>]{2,24}\uff5c>"
    ),
    "invisible characters": re.compile(
        r"[\u200b\u200c\u2060-\u2064\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]{2,}"
    ),
}
_END_OF_SENTENCE = re.compile(r"[.!?\n]")


class InjectionGuard(GuardRule, frozen=True):
    """action: "block" the question, or "redact" the sentence.

    sides: "data" from outside, and what the "user" says.
    """

    SIDES: ClassVar[tuple[Side, ...]] = ("data", "user")

    sides: tuple[Literal["data", "user"], ...] = ("data", "user")
    action: Action = "block"

    @property
    def acts(self) -> Action:
        return self.action

    def find(self, text: str, side: Side, facts: GuardFacts) -> Sequence[GuardSpan]:  # noqa: ARG002
        """The sentences with such an order."""
        if side not in self.sides:
            return ()
        matches = [
            GuardSpan(match.start(), match.end(), why)
            for why, pattern in _PATTERNS.items()
            for match in pattern.finditer(text)
        ]
        guard_spans: list[GuardSpan] = []
        for match in sorted(matches):
            if guard_spans and match.end <= guard_spans[-1].end:
                continue  # in a sentence that was found: its end is not sought again
            end = _END_OF_SENTENCE.search(text, match.end)
            guard_spans.append(match._replace(end=len(text) if end is None else end.end()))
        return apart(guard_spans)


GUARD = InjectionGuard
