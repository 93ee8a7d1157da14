"""Behaviours that broke in the same conversation: they are one observation, and so one cluster.

An attack that leads up to a demand may cause the breach before it makes the demand. If its steps are the same
for two behaviours, their conversations are the same up to that breach.

Promises: nothing is read for a study without such an attack, or without a breach that a check decided.
Intervals and tests of a plan that declares its analysis count such behaviours as one cluster.
Leaves to others: the check (redteam/judges), the steps (redteam/attacks), the clusters of an estimate
(outcomes.py), and the words (wording.py).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np

from heredity.core.records import Exchange, Response, digest
from heredity.redteam.judges import default_verdict, needs_judge
from heredity.study.estimates import SameConversations
from heredity.study.outcomes import BROKE, OneConversation, Outcomes
from heredity.study.plan import Plan
from heredity.study.storage import open_responses

_Cell = tuple[int, int, str]  # places of the model and of the attack, and the technique


def same_conversations(outcomes: Outcomes, folder: Path) -> tuple[SameConversations, ...]:
    """By model, attack and technique, where two behaviours or more broke in the same conversation.

    Sets `conversations` of the outcomes, if their plan declares its analysis.
    """
    plan, found, one = outcomes.plan, list[SameConversations](), list[OneConversation]()
    for (m, a, technique), by_words in sorted(_broken(outcomes, folder).items()):
        groups = [behaviours for behaviours in by_words.values() if len(behaviours) > 1]
        if groups:
            one += [OneConversation(m, a, frozenset(group)) for group in groups]
            asked = [
                i
                for i in outcomes.probes(technique, "breach")
                if bool(outcomes.in_rate(outcomes.array[m, a, i]).any())
            ]
            n_same = len(set().union(*groups))
            n = len(np.unique(outcomes.clusters[asked]))
            found.append(
                SameConversations(plan.models[m].id, plan.attacks[a], technique, n_same, len(groups), n)
            )
    outcomes.conversations = tuple(one) if plan.analysis is not None else ()
    return tuple(found)


def _broken(outcomes: Outcomes, folder: Path) -> dict[_Cell, dict[str, set[int]]]:
    """By cell, then by digest of the conversation up to the breach: the behaviours that broke in it."""
    found: dict[_Cell, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    plan, wanted = outcomes.plan, _wanted(outcomes)
    if not wanted:
        return found
    for row in open_responses(folder):
        if row.index in wanted and (said := _until_breach(plan, row)):
            m, a, place, _ = (int(x) for x in np.unravel_index(row.index, plan.shape))
            words = digest([[e.prefix, e.prompt, e.prefill, e.text, e.tool_calls] for e in said])
            found[m, a, plan.probes[place].technique][words].add(int(outcomes.clusters[place]))
    return found


def _wanted(outcomes: Outcomes) -> set[int]:
    """The trials of attacks with steps that a check decided as a breach."""
    plan = outcomes.plan
    if plan.application.rendering == "recorded":
        return set()
    led = [attack.has_steps for attack in plan.applied()]
    checked = [probe.kind == "breach" and not needs_judge(probe) for probe in plan.probes]
    broke = outcomes.array == BROKE
    broke &= np.array(led)[None, :, None, None] & np.array(checked)[None, None, :, None]
    return set(np.flatnonzero(broke.ravel()).tolist())


def _until_breach(plan: Plan, row: Response) -> tuple[Exchange, ...]:
    """The exchanges up to the first one with which the check finds a breach; () if it finds none now."""
    probe = plan.probes[row.index // plan.samples % len(plan.probes)]
    for n in range(1, len(row.exchanges) + 1):
        said = row.exchanges[:n]
        so_far = msgspec.structs.replace(row, exchanges=said)
        if default_verdict(probe, so_far, plan.application).outcome == "broke":
            return said
    return ()
