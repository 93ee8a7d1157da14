"""A tree of messages by an attacker model: several rephrase the demand, and the best are refined further.

Source: Mehrotra et al. 2023 (arXiv 2312.02119), tree of attacks with pruning. The root is the unchanged
probe. On each level every leaf gets new messages from the attacker. A message that drops the demand is pruned
before it is asked; a comparison of words decides, not a judge model. The better half of those asked are the
next leaves.
The variant is WIDTHxDEPTH, up to 10x10: messages per level, and levels.
"""

from __future__ import annotations

import re

from heredity.core.records import Probe
from heredity.redteam.attacks import _words
from heredity.redteam.attacks._words import BROKEN, AttackTry
from heredity.redteam.attacks.protocols import DEFAULT_CONTEXT, AttackContext, AttackerStrategy, Turns

MAX_TREE = 10
_SEEN = 2  # of a branch, the latest tries: what its attacker is shown


class Tap:
    """A tree of tries, pruned level by level."""

    cost = "at most 1 + width x depth, for each turn of the probe; as many questions to the attacker"
    variants = ("4x3", "2x2", "10x10")
    needs_attacker = True

    def resolve(self, variant: str) -> str:
        """WIDTHxDEPTH."""
        match = re.fullmatch(r"(\d{1,2})x(\d{1,2})", variant)
        if match is None or not all(1 <= int(n) <= MAX_TREE for n in match.groups()):
            raise ValueError(f"it is WIDTHxDEPTH, each from 1 to {MAX_TREE}, such as 4x3")
        return f"{int(match[1])}x{int(match[2])}"

    def queries(self, probe: Probe, context: AttackContext) -> int:
        """The root and every message of every level, each with all turns of the probe."""
        width, depth = self._size(context)
        return (1 + width * depth) * len(probe.turns)

    def turns(self, probe: Probe, context: AttackContext = DEFAULT_CONTEXT) -> Turns:
        """Level by level: branch, prune, ask, keep the better half; stop at the first breach."""
        width, depth = self._size(context)
        root = yield from _words.attempt(probe, probe.turns[-1], context)
        leaves = [[root]]
        for _ in range(depth):
            if leaves[0][-1].score >= BROKEN:
                return
            grown: list[list[AttackTry]] = []
            for at in range(width):  # the branches in turn, so that no level asks more than its width
                branch = leaves[at % len(leaves)]
                reply = yield _words.ask(probe, context, branch[-_SEEN:], at)
                if not (text := _words.read_message(reply, probe, context)):
                    continue
                tried = yield from _words.attempt(probe, text, context)
                if tried.score >= BROKEN:
                    return
                grown.append([*branch, tried])
            # Sorting keeps the order of equals. A level that was pruned whole is grown again from its parent.
            best = sorted(grown, key=lambda branch: -branch[-1].score)
            leaves = best[: max(1, width // 2)] or leaves

    def _size(self, context: AttackContext) -> tuple[int, int]:
        width, _, depth = (context.variant or self.variants[0]).partition("x")
        return int(width), int(depth)


ATTACK: AttackerStrategy = Tap()
