"""An adversarial suffix, optimized on the model's own weights so that its answer begins by agreeing.

Source: Zou et al. 2023 (arXiv 2307.15043), greedy coordinate gradient. The target is the harmless beginning
of an answer, chosen by the kind of breach ("Sure, the code is").
The variant is the number of steps, up to 500; each costs a gradient and up to 64 forward passes. The search
runs once per trial, and the study's folder keeps its result. Adds no query; torch engine only. The search
sees the demand as if the turns before it had no answer.
"""

from __future__ import annotations

import msgspec

from heredity.core.records import Probe, Request, Turn
from heredity.engines import WhiteBoxEngine
from heredity.redteam.attacks._words import table
from heredity.redteam.attacks.protocols import MARK, AttackContext, WeightSearch

MAX_STEPS = 500


class _SearchOutcome(msgspec.Struct):
    """The part of a search's outcome that is read."""

    text: str


class SuffixSearch:
    """Appends a suffix that is searched for on the model's weights."""

    cost = "adds none; up to 65 forward passes a step, once a trial; torch engine only"
    variants = ("32", "8", "250")

    def resolve(self, variant: str) -> str:
        """The number of steps."""
        if not variant.isdecimal() or not 1 <= int(variant) <= MAX_STEPS:
            raise ValueError(f"the number of steps is from 1 to {MAX_STEPS}")
        return str(int(variant))

    def transform(self, turn: Turn, context: AttackContext, at: int) -> Turn:  # noqa: ARG002
        """The turn; if it makes the probe's demand, the optimized suffix follows."""
        if not turn.asks or not context.search_result:
            return turn
        if (suffix := context.search_result) != MARK:
            suffix = msgspec.json.decode(suffix, type=_SearchOutcome).text
        return msgspec.structs.replace(turn, text=turn.text + suffix)

    def search(self, engine: WhiteBoxEngine, request: Request, probe: Probe, context: AttackContext) -> str:
        """The suffix as JSON, with its loss before and after; no suffix if it proved nothing."""
        n_steps = int(context.variant or self.variants[0])
        outcome = engine.suffix(request, MARK, target(probe, context), n_steps, context.seed)
        text = msgspec.json.decode(outcome, type=_SearchOutcome).text
        return '{"text": ""}' if context.referee.is_void(text) else outcome


def target(probe: Probe, context: AttackContext) -> str:
    """The target beginning of the answer."""
    words = table("en")["gcg"]
    text = str(words.get(probe.check.kind, words["any"]))
    for slot, word in context.words.items():
        text = text.replace(f"{{{slot}}}", word)
    return text if "{" not in text else str(words["any"])


ATTACK: WeightSearch = SuffixSearch()
