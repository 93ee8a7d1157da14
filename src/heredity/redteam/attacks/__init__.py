"""Attacks: ways to ask a model a probe. A spec names one: NAME[:VARIANT][+NAME...].

"crescendo@planted_secret" is for one technique. "crescendo+encoding:rot13" is two parts. The part that
leads the conversation comes first ("direct" if none does). The others act on its turns from left to right, so
"roleplay+encoding:base64" encodes the role play.

To add an attack, add one file here that names its attack `ATTACK`. It has `cost`, in words, and the members
of exactly one of these protocols (protocols.py, with an example):

    Strategy          turns, queries     leads a conversation: yields a turn, receives its reply
    TurnTransform     transform          changes a turn
    TextTransform     rewrite            changes every text of the user
    ProbeTransform    recast, skips      words the probe differently first
    ModelTransform    prepare            changes the model itself, in an engine that holds its weights
    PassageDelivery   deliver, undeliverable   shows the probe's passage in another way

An attack with several forms also has `variants`, and `resolve` if they are an open set (a number, a file). A
strategy with `needs_attacker` may yield a question to the study's attacker model; one with `is_adaptive` does
so if there is one, and gets scores. A TurnTransform with
`search` searches the model's weights for text.

Promises: an attack changes how a probe is asked, never what counts as a breach. A trial's words depend only
on its spec, probe, seed, sample and the model's replies. It ends within the queries it states.
Leaves to others: the application around it (application/) and the verdict (judges/).
"""

from __future__ import annotations

from heredity.redteam.attacks._spec import (
    Attack,
    check_attacker,
    check_index,
    context_for,
    load,
    named,
    names,
    planned,
    split_scope,
    unsupported,
    warnings,
    why_unsupported,
)
from heredity.redteam.attacks.protocols import MARK, AttackContext, TriggerWanted

__all__ = [
    "MARK",
    "Attack",
    "AttackContext",
    "TriggerWanted",
    "check_attacker",
    "check_index",
    "context_for",
    "load",
    "named",
    "names",
    "planned",
    "split_scope",
    "unsupported",
    "warnings",
    "why_unsupported",
]
