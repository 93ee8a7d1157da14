"""Attacks: ways to ask a model a probe. A spec names one: NAME[:VARIANT][+NAME...].

"crescendo+encoding:rot13" is two parts. The part that leads the conversation comes first ("direct" if none
does). The others act on its turns from left to right, so "roleplay+encoding:base64" encodes the role play.

To add an attack, add one file here that names its attack `ATTACK`. It has `cost`, in words, and the members
of exactly one of these protocols (protocols.py, with an example):

    Strategy          turns, queries     leads a conversation: yields a turn, receives its reply
    TurnTransform     transform          changes a turn
    TextTransform     rewrite            changes every text of the user
    ProbeTransform    recast, skips      words the probe differently first
    ModelTransform    prepare            changes the model itself, in an engine that holds its weights

An attack with several forms also has `variants`, and `resolve` if they are an open set (a number, a file). A
strategy with `needs_attacker` may yield a question to the study's attacker model. A TurnTransform with
`search` searches the model's weights for text.

Promises: an attack changes how a probe is asked, never what counts as a breach. A trial's words depend only
on its spec, probe, seed, sample and the model's replies. It ends within the queries it states.
Leaves to others: the application around it (application/) and the verdict (judges/).
"""

from __future__ import annotations

from heredity.core import registry
from heredity.core.errors import Damaged
from heredity.redteam.attacks._spec import (
    Attack,
    check_attacker,
    context_for,
    parse,
    unsupported,
    warnings,
    why_unsupported,
)
from heredity.redteam.attacks.protocols import MARK, AttackContext

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
