"""Files of earlier schemas: facts that were only in a sentence become today's fields.

Promises: a study that schema 1 (rows) or schema 2 (estimates.json) wrote gives the numbers that it gave then.
The sentences are those of the release that wrote them; no message of today is read here.
Leaves to others: which schema a row has (storage.py), and the fields themselves (records.py, estimates.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar, cast

import msgspec

from heredity.core.errors import EngineFailure
from heredity.core.records import ROW_SCHEMA
from heredity.core.row_codes import UNSUPPORTED
from heredity.study.plan import Plan

_SKIPPED = "skipped: "
_UNVERIFIED = "answers may depend on their company"
_ALTERED = " | "
_REFUSED = "refused: "
_ONE_PER_CLUSTER = re.compile(r"\((\d+) clusters, each cluster counted as one trial\)")
_CLUSTERS = re.compile(r"\((\d+) clusters, ")
_WIDENED = "rogan-gladen, "
_OF_ESTIMATE = {"value", "low", "high", "n", "method"}


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


def estimates_from_schema_2(found: Any) -> Any:
    """estimates.json of schema 2, decoded, in the form of schema 3."""
    _fill(found)
    for curve in found.get("curves", ()):
        curve["points"] = curve.pop("reaches")
    if course := found.get("sequential"):
        course["n_interim"], course["n_interim_planned"] = (
            course.pop("n_looks"),
            course.pop("n_looks_planned"),
        )
        for each in (*course["decisions"], *course["stopped"]):
            each["interim"] = each.pop("look")
    return found | {"schema": 3}


def _fill(value: Any) -> None:
    """Every estimate gets what its `method` stood for, and every model what its engine's name did."""
    if isinstance(value, list):
        for each in value:
            _fill(each)
    elif isinstance(value, dict):
        if value.keys() == _OF_ESTIMATE and isinstance(value["method"], str):
            value |= _from_method(value["value"], value["method"])
        if isinstance(value.get("engine"), str):
            value["is_batch_unverified"] = _UNVERIFIED in value["engine"]
        for each in value.values():
            _fill(each)


def _from_method(value: float | None, method: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if clusters := _CLUSTERS.search(method):
        found["n_clusters"] = int(clusters[1])
        found["is_at_floor"] = _ONE_PER_CLUSTER.search(method) is not None
    if value is None and method.startswith(_REFUSED):
        found["note"] = method.removeprefix(_REFUSED)
    elif method.startswith(_WIDENED):
        found["note"] = method.removeprefix(_WIDENED)
    return found
