"""Behaviours that broke in the same conversation: they are one observation, and so one cluster.

An attack that leads up to a demand may cause the breach before it makes the demand. If its steps are the same
for two behaviours, their conversations are the same up to that breach.

Promises: nothing is read for a study without such an attack, or without a breach that a check decided.
Intervals and tests of a plan that declares its analysis count such behaviours as one cluster.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np

from heredity.core.records import Exchange, Record, Response, digest
from heredity.core.sanitize import label, plural
from heredity.core.sections import Cell, ModelName, Section, TextTable
from heredity.redteam.judges import default_verdict, needs_judge
from heredity.study.estimates import Estimates
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.outcomes import BROKE, OneConversation, Outcomes
from heredity.study.plan import Plan
from heredity.study.storage import open_responses
from heredity.study.wording import attack_name, names

NAME, ORDER = "same_conversations", 75
_REPEATED = 0.1  # above this share of repeated conversations, the report warns of them
_CLAIM = (
    "Up to its breach, the conversation of a behaviour is that of another, word for word: one observation. "
    "Intervals and tests count them as one cluster."
)


class SameConversations(Record, frozen=True):
    """Behaviours of one technique that broke in the same conversation as another, word for word.

    n_same      behaviours whose conversation, up to the breach, is also that of another behaviour
    n_distinct  different conversations among those
    n           behaviours in the rate of this model, attack and technique
    """

    model: str
    attack: str
    technique: str
    n_same: int
    n_distinct: int
    n: int


Row = SameConversations
_Cell = tuple[int, int, str]  # places of the model and of the attack, and the technique


def note_conversations(outcomes: Outcomes, folder: Path) -> None:
    """Set `conversations` of the outcomes: where two behaviours or more broke in the same conversation."""
    outcomes.conversations = tuple(
        OneConversation(m, a, technique, frozenset(behaviours))
        for (m, a, technique), by_words in sorted(_broken(outcomes, folder).items())
        for behaviours in by_words.values()
        if len(behaviours) > 1
    )


def compute(evidence: StudyEvidence) -> Iterator[SameConversations]:
    """By model, attack and technique, where two behaviours or more broke in the same conversation."""
    outcomes, plan = evidence.outcomes, evidence.plan
    for (m, a, technique), same in groupby(outcomes.conversations, lambda each: each[:3]):
        groups = [each.clusters for each in same]
        asked = [
            i for i in outcomes.probes(technique, "breach") if outcomes.in_rate(outcomes.array[m, a, i]).any()
        ]
        n = len(np.unique(outcomes.clusters[asked]))
        n_same = len(frozenset().union(*groups))
        yield SameConversations(plan.models[m].id, plan.attacks[a], technique, n_same, len(groups), n)


def _broken(outcomes: Outcomes, folder: Path) -> dict[_Cell, dict[str, set[int]]]:
    """By cell, then by digest of the conversation up to the breach: the behaviours that broke in it."""
    by_cell: dict[_Cell, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    plan, wanted = outcomes.plan, _wanted(outcomes)
    if not wanted:
        return by_cell
    for row in open_responses(folder):
        if row.index in wanted and (exchanges := _until_breach(plan, row)):
            m, a, place, _ = (int(x) for x in np.unravel_index(row.index, plan.shape))
            words = digest([[e.prefix, e.prompt, e.prefill, e.text, e.tool_calls] for e in exchanges])
            by_cell[m, a, plan.probes[place].technique][words].add(int(outcomes.clusters[place]))
    return by_cell


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
        exchanges = row.exchanges[:n]
        so_far = msgspec.structs.replace(row, exchanges=exchanges)
        if default_verdict(probe, so_far, plan.application).outcome == "broke":
            return exchanges
    return ()


def show(rows: Sequence[SameConversations], study: RecordedStudy) -> Section | None:
    """A row for each model, attack and technique."""
    called, attacks_of_study = names(study.estimates.models), study.estimates.attacks
    cells: list[list[Cell]] = [
        [
            ModelName(row.model, called[row.model]), attack_name(row.attack, attacks_of_study), row.technique,
            f"{row.n_same:,} of {row.n:,}", f"{row.n_distinct:,}",
        ]
        for row in rows
    ]  # fmt: skip
    head = ["model", "attack", "technique", "behaviours that share one", "different conversations"]
    title = "Behaviours in the same conversation"
    return Section(NAME, title, _CLAIM, (TextTable(title, head, cells),)) if rows else None


def same_conversations_words(estimates: Estimates) -> Iterator[str]:
    """Breaches of several behaviours that are one conversation, if they are more than a few."""
    called, counts = names(estimates.models), "and its intervals and tests count each as one cluster"
    if estimates.analysis is None:
        counts = "so the interval of this rate is too narrow"
    elif estimates.analysis.stopping == "until_decided":
        counts = "but each interim analysis counts one of them again, so they look more certain than they are"
    for each in estimates.rows(NAME, Row):
        if each.n_same - each.n_distinct > _REPEATED * each.n:
            attack = label(attack_name(each.attack, estimates.attacks))
            who = called.get(each.model, label(each.model))
            distinct = plural(each.n - each.n_same + each.n_distinct, "conversation")
            yield (
                f"{label(each.technique)} under {attack}: {each.n_same:,} of {each.n:,} behaviours broke in"
                f" the same conversation of {who} as another behaviour, word for word. The {each.n:,} are"
                f" only {distinct}, {counts}."
            )
