"""A table and sentences about a study with retrieval: retrieved, and broke given retrieved.

Promises: every share has its interval and n.
Leaves to others: the numbers (retrieved.py), and the pages (report/, cli/).
"""

from __future__ import annotations

from collections.abc import Sequence

from heredity.core.records import Estimate
from heredity.study.estimates import SCOPES, Estimates, RetrievedBreaches
from heredity.study.wording import NONE, TextTable, interval, names, percent, scope_name, title

TITLE = "Retrieved, and then broke"
CLAIM = (
    "The breach rate is the share of trials with a retrieved passage, times the breach rate of these, plus "
    "the same for the trials without. Obeying is the model's; retrieving is the index's."
)
_HEAD = ["breaches", "model", "retrieved", "broke if retrieved", "broke if not"]


def retrieved_tables(found: Estimates) -> list[TextTable]:
    """The table by scope and technique; [] for a study without retrieval."""
    rows = [_row(found, each) for each in found.retrieved]
    return [TextTable(TITLE, _HEAD, rows)] if rows else []


def retrieved_lines(found: Estimates) -> list[str]:
    """The rows of the scopes as sentences."""
    rows = (_row(found, each) for each in found.retrieved if each.technique in SCOPES["breach"])
    return [
        f"{model}, {of}: retrieved {share}. Broke if retrieved {obeyed}; if not {without}."
        for of, model, share, obeyed, without in rows
    ]


def _row(found: Estimates, each: RetrievedBreaches) -> list[str]:
    is_scope = each.technique in SCOPES["breach"]
    of = scope_name(found, each.technique) if is_scope else title(each.technique)
    shares: Sequence[Estimate] = (each.retrieved, each.obeyed, each.without)
    return [of, names(found.models)[each.model], *map(_share, shares)]


def _share(found: Estimate) -> str:
    """A share with its interval and n: `84 % (78 to 89 %), n 200`."""
    if found.value is None:
        return NONE
    return f"{percent(found.value)} ({interval(found)}), n {found.n:,}"
