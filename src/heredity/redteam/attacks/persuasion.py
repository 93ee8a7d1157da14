"""The demand with a reason to give in: an authority, an emotion, a favour owed, what others do, a proof.

Source: Zeng et al. 2024 (arXiv 2401.06373), five of its forty techniques. The words are our own and the same
for every probe; in the paper a model writes them for each. Only the turn that makes the probe's demand is
wrapped. Adds no query.
"""

from __future__ import annotations

import msgspec

from heredity.core.records import Turn
from heredity.redteam.attacks._context import AttackContext, keys, say

QUERIES = "adds none"
variants = keys("persuasion")


def lay(turn: Turn, context: AttackContext, at: int) -> Turn:  # noqa: ARG001
    """The turn; if it makes the probe's demand, with a reason."""
    if not turn.asks:
        return turn
    return msgspec.structs.replace(
        turn, text=say("persuasion", context.variant or variants[0], context, turn.text)
    )
