"""A table and sentences about a study with retrieval: retrieved, and broke given retrieved.

Promises: every share has its interval and n.
Leaves to others: the numbers (retrieved.py), and the pages (report/, cli/).
"""

from __future__ import annotations

from collections.abc import Sequence

from heredity.core.records import Estimate
from heredity.study.estimates import ALL, SCOPES, Estimates, RetrievedBreaches
from heredity.study.wording import NONE, TextTable, attack_name, interval, names, percent, scope_name, title

TITLE = "Retrieved, and then broke"
CLAIM = (
    "The breach rate is the share of trials with a retrieved passage, times the breach rate of these, plus "
    "the same for the trials without. Obeying is the model's; retrieving is the index's."
)
HIDDEN_TITLE = "Instructions hidden in data"
HIDDEN_CLAIM = (
    "Executed: the model broke. Used as data: it did not, and its answer carries a part of the instruction. "
    "Ignored: neither. Decided trials in which it was shown the instruction (after SecFid, arXiv 2606.30783)."
)
_HIDDEN_HEAD = ["breaches", "model", "attack", "executed", "used as data", "ignored", "unclear"]
_HEAD = ["breaches", "model", "attack", "retrieved", "broke if retrieved", "broke if not"]


def retrieved_tables(found: Estimates) -> list[TextTable]:
    """The table by scope and technique; [] for a study without retrieval."""
    rows = [_row(found, each) for each in found.retrieved]
    return [TextTable(TITLE, _HEAD, rows)] if rows else []


def hidden_tables(found: Estimates) -> list[TextTable]:
    """The outcomes of instructions hidden in data, by scope and technique; [] without any."""
    rows = [
        [
            _of(found, each.technique), names(found.models)[each.model], _attack(each.attack, found),
            *map(_share, (each.executed, each.used, each.ignored)), f"{each.n_unclear:,}",
        ]
        for each in found.hidden
    ]  # fmt: skip
    return [TextTable(HIDDEN_TITLE, _HIDDEN_HEAD, rows)] if rows else []


def hidden_lines(found: Estimates) -> list[str]:
    """The outcomes of hidden instructions of each scope under all attacks, as sentences; none of no trial."""
    scopes = (
        each
        for each in found.hidden
        if each.technique in SCOPES["breach"] and each.attack == ALL and each.executed.n
    )
    return [
        f"{names(found.models)[each.model]}, instructions in data, {_of(found, each.technique)}: executed "
        f"{_share(each.executed)}; used as data {_share(each.used)}; ignored {_share(each.ignored)}."
        for each in scopes
    ]


def retrieved_lines(found: Estimates) -> list[str]:
    """The rows of the scopes as sentences."""
    rows = (_row(found, each) for each in found.retrieved if each.technique in SCOPES["breach"])
    return [
        f"{model}, {of}, {attack}: retrieved {share}. Broke if retrieved {obeyed}; if not {without}."
        for of, model, attack, share, obeyed, without in rows
    ]


def _row(found: Estimates, each: RetrievedBreaches) -> list[str]:
    shares: Sequence[Estimate] = (each.retrieved, each.obeyed, each.without)
    attack = _attack(each.attack, found)
    if each.n_planted:
        attack = f"{each.n_planted} planted" if each.attack == ALL else f"{attack} ({each.n_planted} planted)"
    return [_of(found, each.technique), names(found.models)[each.model], attack, *map(_share, shares)]


def _of(found: Estimates, technique: str) -> str:
    return scope_name(found, technique) if technique in SCOPES["breach"] else title(technique)


def _attack(attack: str, found: Estimates) -> str:
    return "all attacks" if attack == ALL else attack_name(attack, found.attacks)


def _share(found: Estimate) -> str:
    """A share with its interval and n: `84 % (78 to 89 %), n 200`."""
    if found.value is None:
        return NONE
    return f"{percent(found.value)} ({interval(found)}), n {found.n:,}"
