"""The records of estimates.json that a declared analysis adds to rates and comparisons.

Promises: every number has its n. A field that was not computed is None or empty, never 0.
Leaves to others: computing them (competence.py), and the other records (estimates.py).
"""

from __future__ import annotations

from typing import Literal

from heredity.core.records import Record

Measure = Literal["breach", "over_refusal"]
# Why there is not enough evidence. "test": p is not below alpha. "interval": p is, and the interval holds 0.
# "unclear", "errors": the declared share of unclear answers or of errors could undo it. "no-trials": none is
# shared.
Reason = Literal["", "test", "interval", "unclear", "errors", "no-trials"]
Weighting = Literal["trial", "technique"]


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


class JudgeDrift(Record, frozen=True):
    """The judge's verdicts on the canary answers, against recorded ones; `changed` has the ids that differ.

    `source` of the record: the user's "calibration", the package's "release" or the study's "first run".
    """

    judge: str
    source: str
    n: int
    changed: tuple[str, ...]


class LackingFile(Record, frozen=True):
    """A file of an import that lacks `n` of the `n_planned` attempts or samples (`noun`) of its own run."""

    file: str
    n: int
    n_planned: int
    noun: str


class Deviation(Record, frozen=True):
    """A departure of a study from its declared analysis. `words` may change, `code` does not."""

    code: str
    words: str
