"""A friendly conversation that goes from the general to the demand, and backs off from a refusal.

Source: Russinovich et al. 2024 (arXiv 2404.01833). Ours needs no attacker model: the steps are written for
each kind of breach, and the model's replies decide only whether to back off; nothing is taken back from the
chat, as the paper's does. The variant is the most turns, from 2 to 10; an application's `max_turns` may
allow fewer.
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
