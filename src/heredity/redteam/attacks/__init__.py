"""Attacks: ways to ask a model a probe. A spec names one: NAME[:VARIANT][+NAME...].

"crescendo+encoding:rot13" is two parts. The part that leads the conversation comes first ("direct" if none
does). The others act on its turns from left to right, so "roleplay+encoding:base64" encodes the role play.

To add an attack, add one file here. It has `QUERIES`, its cost in words. An attack with several forms has
`variants`; the first is the default. If the variants are an open set (a number, a file), it also has
`resolve(variant) -> str`, which raises ValueError. It has exactly one of:

    turns(probe, context) -> Generator[Turn, Reply, None]
        leads a conversation: yields a turn, receives its reply.
        Needs queries(probe, context) -> int, the most turns.
    lay(turn, context, at) -> Turn
        changes turn number `at`
    rewrite(text, context) -> str
        changes every text of the user
    recast(probe, context) -> Probe
        rewords the probe first. May have skips(probe, context) -> str, why it cannot; "" if it can.
    prepare(engine, keep) -> Engine
        changes the model itself; on an engine that holds its weights (engines.protocols.WhiteBoxEngine)

With NEEDS_ATTACKER = True, `turns` may also yield a Consult, a question to the study's attacker model, and
receives its reply. An attack with search(engine, request, probe, context) -> str searches the model's
weights. Its `lay` finds the result in `context.found`, for the place of MARK in the request.

`context` (AttackContext) has the trial's sample and seed, the source of everything random, and the
application's words.

Promises: an attack changes how a probe is asked, never what counts as a breach. A trial's words depend only
on its spec, probe, seed, sample and the model's replies. It ends within the queries it states.
Leaves to others: the application around it (application/) and the verdict (judges/).
"""

from __future__ import annotations

from heredity.core import registry
from heredity.core.errors import Damaged
from heredity.redteam.attacks._context import MARK, AttackContext, context_for
from heredity.redteam.attacks._spec import (
    Attack,
    check_attacker,
    parse,
    unsupported,
    warnings,
    why_unsupported,
)

__all__ = [
    "MARK",
    "Attack",
    "AttackContext",
    "check_attacker",
    "context_for",
    "load",
    "names",
    "parse",
    "planned",
    "unsupported",
    "warnings",
    "why_unsupported",
]


def names() -> list[str]:
    """The names of the available attacks."""
    return registry.names("redteam.attacks")


def load(spec: str) -> Attack:
    """The attack that a spec names. Raises UnknownName with the nearest, UsageError for a misfit."""
    return parse(spec)


def planned(spec: str) -> Attack:
    """The attack of a saved plan, whose spec is written out in full.

    Raises Damaged if it is not. Anyone can write a plan: `suffix:FILE.txt` without the digest that planning
    adds could send the lines of any file to the models.
    """
    attack = parse(spec)
    if attack.spec != spec:
        raise Damaged(
            f"The plan has the attack '{spec}', which no planning writes: its variant is not written out. "
            "Plan the study again, in another folder.",
            code="attack-not-written-out",
        )
    return attack
