"""The score of an answer. Each file here is a metric: deterministic, from 0 to 1, nothing executed.

A file `metrics/<name>.py` has what `Metric` says. An answer without the requested form is unclear: it
scores 0 and is counted separately.

Promises: a metric never raises on any text, and takes the best of several references.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

from heredity.core import registry
from heredity.redteam.text import LONGEST as LONGEST

LETTERS = "ABCDEFGHIJ"


class ItemAnswer(NamedTuple):
    """The answer of a model: a text, or the natural-log probability of each option."""

    text: str
    logs: tuple[float, ...] = ()


class Marked(Protocol):
    """An item as a metric sees it: a tasks.Item."""

    @property
    def input(self) -> str: ...
    @property
    def references(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> tuple[str, ...]: ...


@runtime_checkable
class Metric(Protocol):
    """The interface of a metric's module."""

    TITLE: str  # as it is printed
    UNIT: Literal["%", ""]  # of 100 times the mean: a share, or points
    IS_SHARE: bool  # every score is 0 or 1
    ASKS: str  # one of prompting.WAYS: "reply", "score", "match"
    NEEDS_OPTIONS: bool
    SHOWS_LETTERS: bool  # the right answer is an option's letter

    def score(self, item: Marked, answer: ItemAnswer) -> float | None:
        """From 0 to 1; None if the answer lacks the requested form."""

    def floor(self, item: Marked) -> float:
        """The expected score of a random answer."""


def load(name: str) -> Metric:
    """The metric of this name. Raises UnknownName with the nearest."""
    return registry.load_as(Metric, "evals.metrics", name)
