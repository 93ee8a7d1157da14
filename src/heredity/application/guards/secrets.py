"""Keeps the application's secrets out of answers.

A secret is found by its letters and digits, so that spaces, dashes, capitals and wide letters hide nothing.
It is found backwards too. An encoding of it (base64, a riddle) is not found. If the limit on tokens ends an
answer within a secret, its beginning is found from LEAST_CUT letters and digits on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar
from unicodedata import normalize

from heredity.application.guards import Action, GuardFacts, GuardRule, GuardSpan, Side, apart

LEAST_CUT = 4  # as few as a secret has


class SecretGuard(GuardRule, frozen=True):
    """action: "block" the answer, or "redact" the secret in it."""

    SIDES: ClassVar[tuple[Side, ...]] = ("answer",)

    action: Action = "block"

    @property
    def acts(self) -> Action:
        return self.action

    def find(self, text: str, side: Side, facts: GuardFacts) -> Sequence[GuardSpan]:  # noqa: ARG002
        """The secrets of the application in a text."""
        places, plain = _plain_text(text)
        guard_spans: list[GuardSpan] = []
        for name, sought in _sought(facts):
            at = plain.find(sought)
            while at >= 0:
                guard_spans.append(GuardSpan(places[at], places[at + len(sought) - 1] + 1, name))
                at = plain.find(sought, at + len(sought))
        return apart(guard_spans)

    def find_cut(self, text: str, facts: GuardFacts) -> Sequence[GuardSpan]:
        """The beginning of a secret at the end of a text."""
        places, plain = _plain_text(text)
        guard_spans: list[GuardSpan] = []
        for name, sought in _sought(facts):
            lengths = range(min(len(sought) - 1, len(plain)), LEAST_CUT - 1, -1)
            if n := next((n for n in lengths if plain.endswith(sought[:n])), 0):
                guard_spans.append(GuardSpan(places[-n], places[-1] + 1, f"the beginning of {name}"))
        return apart(guard_spans)


def _sought(facts: GuardFacts) -> Iterator[tuple[str, str]]:
    """The name of each secret with its letters and digits, as they are and backwards."""
    for secret in facts.secrets:
        sought = "".join([_plain(c) for c in secret.value if c.isalnum()])
        for order in dict.fromkeys((sought, sought[::-1])):
            yield secret.name, order


def _plain_text(text: str) -> tuple[list[int], str]:
    """The letters and digits of a text: where each is, and as one that looks alike."""
    places = [i for i, character in enumerate(text) if character.isalnum()]
    return places, "".join([_plain(text[i]) for i in places])


def _plain(character: str) -> str:
    """A letter or digit as one that looks alike: lower case, not wide, bold or in a circle."""
    return normalize("NFKC", character).casefold()[0]


GUARD = SecretGuard
