"""The verdicts of a study as one code a trial, and whether each is on the response that lies beside it.

Promises: rows of another plan, two verdicts on one trial and one of another kind of probe are refused; so is
a verdict on an answer that was edited, asked again or removed since; a trial of an attack that its model
cannot have is no error.
Leaves to others: what the codes come to (tally.py), what an answer was worth (judges/).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import Damaged
from heredity.core.records import ROW_SCHEMA, Manner, Outcome, Stop, ToolCall, encode, is_skipped
from heredity.core.rows import Rows
from heredity.study.labels import Laid, Rated
from heredity.study.legacy import RowsFromSchema1
from heredity.study.plan import Plan
from heredity.study.trials import Grid

HELD, BROKE, UNCLEAR, ERROR = 1, 2, 3, 4  # of a twin: answered, refused, unclear, error
SKIPPED = 7  # not asked: its model cannot have the attack
_OUTCOMES: dict[str | None, int] = {"held": 1, "broke": 2, "unclear": 3, None: 4, "answered": 5, "refused": 6}
_TWIN_WORDS = (_OUTCOMES["answered"], _OUTCOMES["refused"])
_MANNERS: tuple[Manner, ...] = ("refusal", "compliance", "incoherent", "empty")
_MANNER_CODES = {name: code for code, name in enumerate(_MANNERS, 1)}

Codes = NDArray[np.int8]


class Seen(NamedTuple):
    """What the verdicts of a study say, in the plan's order."""

    outcomes: Codes  # one a trial; 0 where there is no verdict yet
    manners: Codes
    judges: dict[str, str]  # with the digest of each; the checks among them
    labels: Rated | None  # what a person said of some answers
    digests: array[int]  # of the response that each verdict is on


class _Row(msgspec.Struct):
    """What is counted of a verdict row."""

    index: int
    trial: str
    judge: str
    outcome: Outcome | None
    manner: Manner | None
    judged_by: str = ""
    response: str = ""
    error: str | None = None
    error_code: str | msgspec.UnsetType = msgspec.UNSET
    schema: int = ROW_SCHEMA


def read(plan: Plan, folder: Path) -> Seen:
    """One pass over the verdicts. Raises Damaged for what is no verdict of this plan."""
    rows, grid = Rows(folder / "verdicts.jsonl", _Row, RowsFromSchema1(plan)), Grid(plan)
    codes, manners_ = np.zeros(len(grid), np.int8), np.zeros(len(grid), np.int8)
    outcomes, manners = memoryview(codes.data), memoryview(manners_.data)
    judges: dict[str, str] = {}
    digests, laid = array("Q", bytes(8 * len(grid))), Laid(folder)
    for row in rows:
        if not grid.matches(row.index, row.trial):
            raise _damaged(
                rows,
                f"trial {row.index} is not of this plan. Delete the file to judge again.",
                code="trial-not-planned",
            )
        if outcomes[row.index]:
            raise _damaged(
                rows,
                f"trial {row.index} was judged twice. Delete the file to judge again.",
                code="trial-judged-twice",
            )
        was_skipped = row.outcome is None and is_skipped(row)
        outcomes[row.index] = SKIPPED if was_skipped else _OUTCOMES[row.outcome]
        manners[row.index] = 0 if row.manner is None else _MANNER_CODES[row.manner]
        judges[row.judge] = row.judged_by
        digests[row.index] = _number(row.response)
        laid.check(row.index, row.response)
    _settle(plan, codes, rows.path)
    return Seen(codes, manners_, judges, laid.over(len(grid)), digests)


def _number(response: str) -> int:
    """A response's digest as a number; 0 for none, which no answer has."""
    try:
        return int(response, 16) if len(response) == 16 else 0
    except ValueError:
        return 0


def _settle(plan: Plan, outcomes: Codes, path: Path) -> None:
    """Bring twins onto the codes of probes: answered is the good end as held is, refused the bad one."""
    is_twin_word = np.isin(outcomes, _TWIN_WORDS)
    is_twin = np.tile(
        np.repeat([p.kind == "benign" for p in plan.probes], plan.samples),
        len(plan.models) * len(plan.attacks),
    )
    is_probe_word = (outcomes == HELD) | (outcomes == BROKE)
    wrong = np.flatnonzero((is_twin & is_probe_word) | (~is_twin & is_twin_word))
    if wrong.size:
        raise Damaged(
            f"{path}: trial {wrong[0]} has the verdict of another kind of probe. Delete it to judge again.",
            code="verdict-of-another-kind",
        )
    outcomes[is_twin_word] -= _OUTCOMES["answered"] - HELD


# --- the responses beside them --------------------------------------------------------------------


class Exchanged(msgspec.Struct):
    """An exchange as its file spells it: what a judge reads is not decoded, only compared."""

    prefill: msgspec.Raw
    text: msgspec.Raw
    tool_calls: msgspec.Raw
    stop: msgspec.Raw
    n_prompt_tokens: int
    n_tokens: int


class Spent(msgspec.Struct):
    """What a question to the attacker model cost."""

    n_prompt_tokens: int
    n_tokens: int


class Asked(msgspec.Struct):
    """What is counted and compared of a response."""

    index: int
    exchanges: list[Exchanged]
    error: msgspec.Raw = msgspec.Raw(b"null")
    consulted: list[Spent] = []
    schema: int = ROW_SCHEMA


def judged(folder: Path, seen: Seen) -> Iterator[Asked]:
    """Every response that has a verdict, each checked to be the one that the verdict is on.

    Raises Damaged where one is not, or where a verdict has no response.
    """
    rows, outcomes = Rows(folder / "responses.jsonl", Asked), memoryview(seen.outcomes.data)
    left = bytearray(map(bool, outcomes))
    anew = f"Judge anew, which asks only what is missing: heredity study {folder}"
    for row in rows:
        if not 0 <= row.index < len(left) or not outcomes[row.index]:
            continue
        if not left[row.index]:
            raise _damaged(
                rows, f"trial {row.index} is there twice. Remove one to go on.", code="trial-twice"
            )
        left[row.index] = False
        if not _is_it(row, seen.digests[row.index]):
            raise _damaged(
                rows,
                f"trial {row.index} is not the answer that its verdict is on. {anew}",
                code="answer-changed",
            )
        yield row
    if (index := left.find(True)) >= 0:
        raise Damaged(
            f"{rows.path}: trial {index} has a verdict and no answer. {anew}", code="verdict-without-answer"
        )


def _is_it(row: Asked, digest: int) -> bool:
    """Whether a response has this digest, as records.digest_response gives it."""
    said = b",".join(b"[%b,%b,%b,%b]" % (e.prefill, e.text, e.tool_calls, e.stop) for e in row.exchanges)
    spelt = b"[[%b],%b]" % (said, row.error)
    # A row that heredity wrote has the bytes of the digest; one that was spelt otherwise is read first.
    return digest != 0 and (_hash(spelt) == digest or _hash(encode(_read(spelt))) == digest)


def _hash(spelt: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(spelt, digest_size=8).digest(), "big")


def _read(spelt: bytes) -> list[object]:
    said, error = msgspec.json.decode(spelt, type=tuple[_Said, str | None])
    return [said, error]


_Said = list[tuple[str, str, tuple[ToolCall, ...], Stop]]


def _damaged(rows: Rows[_Row] | Rows[Asked], what: str, *, code: str) -> Damaged:
    return Damaged(f"{rows.path}:{rows.line}: {what}", code=code)
