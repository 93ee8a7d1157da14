"""A prefill makes the assistant's answer begin with agreement: the strongest cheap attack on open weights.

Source: Qi et al. 2024 (arXiv 2406.05946): safety alignment is a few tokens deep. A benign twin gets the same
opening, so that the application layer and the attack are equal for both. Only the answer to the turn with the
probe's demand gets it. Adds no query; needs an engine that supports prefill.
"""

from __future__ import annotations

import msgspec

from heredity.core.records import Turn
from heredity.redteam.attacks._words import say
from heredity.redteam.attacks.protocols import AttackContext, TurnTransform


class Prefill:
    """Begins the assistant's answer."""

    cost = "adds none; needs an engine that can begin the assistant's answer"

    def transform(self, turn: Turn, context: AttackContext, at: int) -> Turn:  # noqa: ARG002
        """The turn; if it makes the probe's demand, its answer begins with agreement."""
        if not turn.asks:
            return turn
        return msgspec.structs.replace(turn, prefill=say("prefill", "opening", context))


ATTACK: TurnTransform = Prefill()
