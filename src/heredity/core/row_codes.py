"""The codes of rows without an answer, and whether such a row was skipped or failed.

Promises: an error row is skipped (it was not asked) or failed (it was), never both.
Leaves to others: the codes of errors that are raised (errors.py), and the rows (records.py).
"""

from __future__ import annotations

from typing import Protocol

from msgspec import UnsetType

# Beside the codes of errors (errors.py), as `error_code` of a row.
UNSUPPORTED = "unsupported-attack"  # not asked: the model cannot have this attack. No error
OUT_OF_SCOPE = "attack-not-for-technique"  # not asked: the attack's spec names other techniques. No error
ATTACKER_FAILED = "attacker-failed"
WORKER_DIED = "worker-died"
TURN_LIMIT = "turn-limit"  # of the application, before the probe's demand was made
CONVERSATION_LIMIT = "conversation-limit"  # the same, of tokens or seconds
NOTHING_ASKED = "nothing-asked"
RECORDED = "recorded-error"  # of an imported answer
JUDGE_FAILED = "judge-failed"
ROW_CODES = (
    UNSUPPORTED, OUT_OF_SCOPE, ATTACKER_FAILED, WORKER_DIED, TURN_LIMIT, CONVERSATION_LIMIT, NOTHING_ASKED,
    RECORDED, JUDGE_FAILED,
)  # fmt: skip


class Failable(Protocol):
    """A row, or a part of one, that may be an error row."""

    @property
    def error(self) -> str | None: ...
    @property
    def error_code(self) -> str | UnsetType: ...


def is_skipped(row: Failable) -> bool:
    """Whether this trial was not asked: its model cannot have the attack, or it is not for its technique."""
    return row.error is not None and row.error_code in (UNSUPPORTED, OUT_OF_SCOPE)


def is_out_of_scope(row: Failable) -> bool:
    """Whether the plan does not ask this trial, because its attack is for other techniques."""
    return row.error_code == OUT_OF_SCOPE


def is_failed(row: Failable) -> bool:
    """Whether this trial was asked and ended in an error."""
    return row.error is not None and not is_skipped(row)
