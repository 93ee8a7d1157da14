"""An attacker model rephrases the demand, sees the answer and its score, and tries again.

Source: Chao et al. 2023 (arXiv 2310.08419). The first try is the unchanged probe, so a model that breaks at
once costs no more than with `direct`. Each further try is the attacker's, in a conversation of its own, until
one breaks. The score is that of the probe's own check, or else of the rules judge; it never comes from a
model. The variant is the maximum number of tries, up to 20; a message that drops the demand uses one up
without being asked.
"""

from __future__ import annotations

from heredity.core.records import Probe
from heredity.redteam.attacks import _words
from heredity.redteam.attacks.protocols import DEFAULT_CONTEXT, AttackContext, AttackerStrategy, Turns

MAX_TRIES = 20
_REMEMBERED = 3  # tries that the attacker sees: a small one has a small context


class Pair:
    """Tries one after the other, each written by the attacker model."""

    cost = (
        "at most as many as the variant says, for each turn of the probe; as many questions to the attacker"
    )
    variants = ("5", "3", "20")
    needs_attacker = True

    def resolve(self, variant: str) -> str:
        """The maximum number of tries."""
        if not variant.isdecimal() or not 2 <= int(variant) <= MAX_TRIES:
            raise ValueError(f"the most tries are from 2 to {MAX_TRIES}")
        return str(int(variant))

    def queries(self, probe: Probe, context: AttackContext) -> int:
        """Each try asks all turns of the probe."""
        return int(context.variant or self.variants[0]) * len(probe.turns)

    def turns(self, probe: Probe, context: AttackContext = DEFAULT_CONTEXT) -> Turns:
        """Ask, read the score, and let the attacker rephrase."""
        tries = [(yield from _words.attempt(probe, probe.turns[-1], context))]
        for _ in range(int(context.variant or self.variants[0]) - 1):
            if tries[-1].score >= _words.BROKEN:
                return
            reply = yield _words.ask(probe, context, tries[-_REMEMBERED:])
            if text := _words.read_message(reply, probe, context):
                tries.append((yield from _words.attempt(probe, text, context)))


ATTACK: AttackerStrategy = Pair()
