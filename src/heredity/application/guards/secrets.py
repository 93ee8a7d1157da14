"""Keeps the application's secrets out of answers.

A secret is found by its letters and digits, so that spaces, dashes, capitals and wide letters hide nothing.
It is found backwards too. An encoding of it (base64, a riddle) is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar
from unicodedata import normalize

from heredity.application.guards.protocols import Action, GuardRule, GuardSpan, Side, apart

if TYPE_CHECKING:
    from heredity.application.spec import Application


class SecretGuard(GuardRule, frozen=True):
    """action: "block" the answer, or "redact" the secret in it."""

    SIDES: ClassVar[tuple[Side, ...]] = ("answer",)

    action: Action = "block"

    @property
    def acts(self) -> Action:
        return self.action

    def find(self, text: str, side: Side, application: Application) -> Sequence[GuardSpan]:  # noqa: ARG002
        """The secrets of the application in a text."""
        places = [i for i, character in enumerate(text) if character.isalnum()]
        plain = "".join([_plain(text[i]) for i in places])
        found: list[GuardSpan] = []
        for secret in application.secrets:
            sought = "".join([_plain(c) for c in secret.value if c.isalnum()])
            for order in dict.fromkeys((sought, sought[::-1])):
                at = plain.find(order)
                while at >= 0:
                    found.append(GuardSpan(places[at], places[at + len(order) - 1] + 1, secret.name))
                    at = plain.find(order, at + len(order))
        return apart(found)


def _plain(character: str) -> str:
    """A letter or digit as one that looks alike: lower case, not wide, bold or in a circle."""
    return normalize("NFKC", character).casefold()[0]


GUARD = SecretGuard
