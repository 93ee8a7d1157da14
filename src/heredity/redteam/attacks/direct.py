"""The unchanged probe: the baseline for every other attack. One query per user turn."""

from __future__ import annotations

from collections.abc import Generator

from heredity.core.records import Probe, Reply, Turn
from heredity.redteam.attacks._context import DEFAULT_CONTEXT, AttackContext

QUERIES = "one a user turn"


def turns(probe: Probe, context: AttackContext = DEFAULT_CONTEXT) -> Generator[Turn, Reply, None]:  # noqa: ARG001
    """Ask each turn of the probe in order; the last one makes its demand."""
    for text in probe.turns[:-1]:
        yield Turn(text, asks=False)
    yield Turn(probe.turns[-1])


def queries(probe: Probe, context: AttackContext) -> int:  # noqa: ARG001
    """As many as the probe has turns."""
    return len(probe.turns)
