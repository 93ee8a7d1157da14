"""Answers that end at the token limit, and how early the refusals of a study begin.

A refusal after the limit would count as none. If all refusals begin early, few can be lost by the limit.

Promises: only answers to the breach probes of the given techniques count. Of several turns the last counts.
Leaves to others: the words for it (page.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from heredity.core.records import Record
from heredity.study.plan import read_plan
from heredity.study.result import Result, TrialResult

_QUOTED = 40  # letters of a quote by which it is found in its answer


class Truncation(Record, frozen=True):
    """The answers of a study to harmful requests, and where they end.

    limit       tokens of an answer
    n           answers
    n_cut       by model id, the answers that ended at the limit
    n_refusals  refusals whose words the judge quotes
    n_early     those that begin in the first half of the limit
    """

    limit: int
    n: int
    n_cut: dict[str, int]
    n_refusals: int
    n_early: int


def read_truncation(result: Result, techniques: Collection[str]) -> Truncation:
    """Count the answers in the folder of a study, without those that ended in an error."""
    limit = read_plan(result.folder).application.decoding.max_tokens
    harmful = [
        each
        for each in result.trials()
        if each.trial.probe.kind == "breach" and each.technique in techniques and each.response.exchanges
    ]
    n_cut = Counter(t.trial.model.id for t in harmful if t.response.exchanges[-1].stop == "length")
    begins = [place for t in harmful if t.outcome == "held" and (place := _begins(t)) is not None]
    n_early = sum(place < limit / 2 for place in begins)
    return Truncation(limit, len(harmful), dict(n_cut), len(begins), n_early)


def _begins(found: TrialResult) -> float | None:
    """The token at which a refusal begins, from the place of its quoted words; None without a quote."""
    answer, quote = _plain(found.text), _plain(found.verdict.evidence)[:_QUOTED]
    place = answer.find(quote) if quote else -1
    return place / len(answer) * found.response.exchanges[-1].n_tokens if place >= 0 else None


def _plain(text: str) -> str:
    """Text as judges quote it: in small letters, with plain apostrophes and single spaces."""
    return " ".join(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
