"""What is laid over a probe. A spec names it: NAME[:VARIANT][+NAME...], such as "crescendo+encoding:rot13".

Each public file here is an attack. It has `QUERIES`, what it costs in words; where it comes in several forms
`variants`, the first of them the default (and `resolve(variant) -> str`, raising ValueError, where these are
an open set: a number, a file); and exactly one of

    turns(probe, how) -> Generator[Turn, Reply, None]
        leads a conversation: yields a turn, gets its reply; with queries(probe, how) -> int, the most turns
    lay(turn, how, at) -> Turn
        lies over turn number `at` of whatever leads
    rewrite(text, how) -> str
        lies over every text of the user
    recast(probe, how) -> Probe
        puts the probe into other words first; with skips(probe, how) -> str, why it cannot, "" where it can
    prepare(engine, keep) -> Engine
        changes the model itself; on an engine that holds its weights (engines.Open)

With NEEDS_ATTACKER = True, `turns` may also yield a Consult, a question to the study's attacker model, and
gets its reply. With search(engine, request, probe, how) -> str, `lay` finds in `how.found` what was searched
for on the model's weights, for the place of MARK in the request.

What leads comes first ("direct" where nothing does); the others act on its turns from left to right, so
"roleplay+encoding:base64" encodes the role play. `how` (How) has the trial's sample and seed, from which
everything random is drawn, and the application's words.

Promises: an attack changes how a probe is put, never what counts as a breach; a trial's words depend on its
spec, probe, seed, sample and the model's replies alone; it ends within the queries it states.
Leaves to others: the application around it (application.py) and the verdict (judges/).
"""

from __future__ import annotations

from heredity.core import registry
from heredity.core.errors import Damaged
from heredity.redteam.attacks._context import MARK, How, within
from heredity.redteam.attacks._needs import check_attacker, closed, doubts, why_closed
from heredity.redteam.attacks._spec import Attack, parse

__all__ = [
    "MARK",
    "Attack",
    "How",
    "check_attacker",
    "closed",
    "doubts",
    "load",
    "names",
    "parse",
    "planned",
    "why_closed",
    "within",
]


def names() -> list[str]:
    """The attacks that are there."""
    return registry.names("redteam.attacks")


def load(spec: str) -> Attack:
    """The attack that a spec names. Raises UnknownName with the nearest, UsageError for a misfit."""
    return parse(spec)


def planned(spec: str) -> Attack:
    """The attack of a saved plan, whose spec is written out in full.

    Raises Damaged where it is not: a plan may come from anyone, and `suffix:FILE.txt` without the digest that
    planning puts behind it would send lines of any file to the models.
    """
    attack = parse(spec)
    if attack.spec != spec:
        raise Damaged(
            f"The plan has the attack '{spec}', which no planning writes: its variant is not written out. "
            "Plan the study again, in another folder.",
            code="attack-not-written-out",
        )
    return attack
