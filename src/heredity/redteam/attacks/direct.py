"""The unchanged probe: the baseline for every other attack. One query per user turn."""

from __future__ import annotations

from heredity.core.records import Probe, Turn
from heredity.redteam.attacks.protocols import DEFAULT_CONTEXT, AttackContext, Strategy, Turns


class Direct:
    """Asks each turn of the probe in order."""

    cost = "one a user turn"

    def turns(self, probe: Probe, context: AttackContext = DEFAULT_CONTEXT) -> Turns:  # noqa: ARG002
        """The turns of the probe; the last one makes its demand."""
        for text in probe.turns[:-1]:
            yield Turn(text, asks=False)
        yield Turn(probe.turns[-1])

    def queries(self, probe: Probe, context: AttackContext) -> int:  # noqa: ARG002
        """As many as the probe has turns."""
        return len(probe.turns)


ATTACK: Strategy = Direct()
