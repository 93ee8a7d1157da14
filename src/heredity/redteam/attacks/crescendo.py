"""A friendly conversation that goes from the general to the demand, and backs off from a refusal.

Source: Russinovich et al. 2024 (arXiv 2404.01833). This version needs no attacker model: the steps are
written for each kind of breach. The model's replies only decide whether to back off. Unlike the paper's, it
removes nothing from the chat.
The variant is the maximum number of turns, from 2 to 10; an application's `max_turns` may allow fewer.
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
    """Talk about the subject, closer with every turn; then make the probe's demand."""
    return _ladder.climb("crescendo", probe, context)
