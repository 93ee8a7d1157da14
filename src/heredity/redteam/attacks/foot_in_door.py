"""Small favours that are easily granted, each a little larger, before the demand.

Source: Freedman and Fraser 1966, and for models Weng et al. 2025 (arXiv 2502.19820). This version needs no
attacker model: the favours are written for each kind of breach. The model's replies only decide whether to
back off. The variant is the maximum number of turns, from 2 to 10; an application's `max_turns` may allow
fewer.
"""

from __future__ import annotations

from collections.abc import Generator

from heredity.core.records import Probe, Reply, Turn
from heredity.redteam.attacks import _ladder
from heredity.redteam.attacks._context import AttackContext

QUERIES = "up to as many as the variant says, and as the application's max_turns allows"
variants = ("5", "3", "10")
resolve, queries = _ladder.resolve, _ladder.queries


def turns(probe: Probe, context: AttackContext) -> Generator[Turn, Reply, None]:
    """Ask for favours, each larger than the last; then make the probe's demand."""
    return _ladder.climb("foot_in_door", probe, context)
