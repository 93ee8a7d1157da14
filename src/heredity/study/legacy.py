"""Rows of schema 1: facts that were only in a sentence become today's fields.

Promises: a study that schema 1 wrote gives the numbers that it gave then.
The sentences are those of the release that wrote them; no message of today is read here.
Leaves to others: which schema a row has (storage.py), and the fields themselves (records.py, estimates.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar, cast

import msgspec

from heredity.core.errors import EngineFailure
from heredity.core.records import ROW_SCHEMA
from heredity.core.row_codes import UNSUPPORTED
from heredity.study.plan import Plan

_SKIPPED = "skipped: "
_UNVERIFIED = "answers may depend on their company"
_ALTERED = " | "


_Row = TypeVar("_Row", bound=msgspec.Struct)


class _OldTrial(Protocol):
    """The fields of a response or a verdict that are read."""

    index: int
    error: str | None
    schema: int


class _OldRun(Protocol):
    """The fields of a row of runs.jsonl that are read."""

    numerics: str
    engine: str


@dataclass
class RowsFromSchema1:
    """Gives each error row of schema 1 its `error_code`.

    The plan has the unsupported attacks: the text of a row may come from a hostile service.
    """

    plan: Plan

    @cached_property
    def _cells(self) -> frozenset[int]:
        """Places of (model, attack) in the plan that the model does not support."""
        plan = self.plan
        reasons = [each.reason for each in plan.skipped if each.probe == "*"]
        cells = ((model, attack) for model in plan.models for attack in plan.attacks)
        return frozenset(
            place
            for place, (model, attack) in enumerate(cells)
            if any(r.startswith(f"{_SKIPPED}{attack} ") and r.endswith(f"('{model.name}')") for r in reasons)
        )

    def __call__(self, row: _Row) -> _Row:
        """The row as schema 2 has it; a row of schema 2 as it is."""
        said = cast(_OldTrial, row)
        if said.schema == ROW_SCHEMA:
            return row
        if said.error is None:
            return msgspec.structs.replace(row, schema=ROW_SCHEMA)
        n_each = len(self.plan.probes) * self.plan.samples
        is_skipped = said.index // n_each in self._cells and said.error.startswith(_SKIPPED)
        code = UNSUPPORTED if is_skipped else EngineFailure.code
        return msgspec.structs.replace(row, error_code=code, schema=ROW_SCHEMA)


def run_from_schema_1(run: _Row) -> _Row:
    """A row of runs.jsonl with what stood in its engine's name."""
    said = cast(_OldRun, run)
    return msgspec.structs.replace(
        run,
        base_numerics=said.numerics.split(_ALTERED, 1)[0],
        is_batch_unverified=_UNVERIFIED in said.engine,
        schema=ROW_SCHEMA,
    )


def canary_of_note(note: str) -> tuple[str, str]:
    """Text and secret of a model's note `canary`, which was all that models were recorded with."""
    text, _, secret = note.rpartition(" ")
    return text, secret
