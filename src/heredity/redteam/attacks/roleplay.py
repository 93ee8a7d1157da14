"""The demand inside a scene: a play, a story, or a character who answers everything.

Source: Shen et al. 2023 (arXiv 2308.03825) and Wei et al. 2023 (arXiv 2307.02483), as kinds; the words are
our own. Only the turn that makes the probe's demand is wrapped. Adds no query.
"""

from __future__ import annotations

import msgspec

from heredity.core.records import Turn
from heredity.redteam.attacks._context import AttackContext, keys, say

QUERIES = "adds none"
variants = keys("roleplay")


def lay(turn: Turn, context: AttackContext, at: int) -> Turn:  # noqa: ARG001
    """The turn; if it makes the probe's demand, inside the scene."""
    if not turn.asks:
        return turn
    return msgspec.structs.replace(
        turn, text=say("roleplay", context.variant or variants[0], context, turn.text)
    )
