"""The same words with other decoding: each sample has its own temperature or its own top-p.

Source: Huang et al. 2023 (arXiv 2310.06987): 20 temperatures and as many values of top-p, at most 1. The
paper's nine values of top-k are left out, since an application's decoding has no top-k.
Sample i takes setting i. The order is such that a few samples already span the whole range, so ask for
several: `--samples 10`. Adds no query to a sample.
"""

from __future__ import annotations

import msgspec

from heredity.core.records import Turn
from heredity.redteam.attacks.protocols import AttackContext, TurnTransform

_STEPS = 20


def _spread(n: int) -> list[int]:
    """The numbers 0 to n - 1 in an order in which every prefix is spread out (van der Corput)."""
    places = sorted(range(n), key=lambda i: int(f"{i:08b}"[::-1], 2))
    order = [0] * n
    for rank, i in enumerate(places):
        order[i] = rank
    return order


_ORDER = [round((rank + 1) / _STEPS, 2) for rank in _spread(_STEPS)]
SETTINGS = {
    "temperature": [(value, 1.0) for value in _ORDER],
    "top_p": [(1.0, value) for value in _ORDER],
    "both": [pair for value in _ORDER for pair in ((value, 1.0), (1.0, value))],
}


class DecodingSweep:
    """Answers each sample under a setting of its own."""

    cost = "adds none to a sample; meant for up to 40 samples"
    variants = ("both", "temperature", "top_p")

    def transform(self, turn: Turn, context: AttackContext, at: int) -> Turn:  # noqa: ARG002
        """The turn, to be answered under this sample's setting."""
        settings = SETTINGS[context.variant or self.variants[0]]
        temperature, top_p = settings[context.sample % len(settings)]
        decoding = msgspec.structs.replace(context.decoding, temperature=temperature, top_p=top_p)
        return msgspec.structs.replace(turn, decoding=decoding)


ATTACK: TurnTransform = DecodingSweep()
