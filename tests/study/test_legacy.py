"""A study that commit 9797035 wrote (schema 1 of rows, schema 2 of estimates) gives the numbers of then.

`expected.json` is what that commit made of the folder that it lies in: a model that the attack on
weights cannot reach, and one whose engine said in its name alone that batch invariance is not verified.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from heredity.core.errors import NotComparable
from heredity.core.files import Rows
from heredity.core.records import Response, Verdict
from heredity.core.row_codes import is_failed, is_skipped
from heredity.engines import scripted
from heredity.study import aggregate, legacy, storage
from heredity.study import plan as plans
from heredity.study.estimates import Estimates
from heredity.study.gate import gate
from heredity.study.headline import headline
from heredity.study.intervals import bound_rate
from heredity.study.plan import Grid, TrialSet
from heredity.study.report._samples import outcomes
from heredity.study.study import Study

WRITTEN = Path(__file__).parents[1] / "former" / "study-skipped"
EXPECTED: dict[str, Any] = json.loads((WRITTEN / "expected.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WRITTEN, tmp_path / "study"))


def check(found: Estimates) -> None:
    """Every fact that was once in a sentence alone, as then: no wording is compared."""
    assert [[limit, gate(found, max_breach=limit).code] for limit, _ in EXPECTED["gate"]] == EXPECTED["gate"]
    assert [card.name for card in found.models if card.is_batch_unverified] == EXPECTED["unverified"]
    assert len(headline(found).warnings) == EXPECTED["n_warnings"]
    assert (found.n_errors, found.n_skipped) == (EXPECTED["n_errors"], EXPECTED["n_skipped"])
    assert found.study == EXPECTED["study"]
    rates = {(r.model, r.technique, r.attack, r.measure): r for r in found.rates}
    for *cell, low, high, n_effective, n_behaviours in EXPECTED["bounds"]:
        bounds = bound_rate(rates[tuple(cell)], 0.95)
        assert (bounds.low, bounds.high) == pytest.approx((low, high), rel=1e-9)
        assert bounds.n_effective == pytest.approx(n_effective, rel=1e-6)
        assert bounds.n_behaviours == n_behaviours


def as_then(found: Estimates) -> Estimates:
    """Estimates without the breaches among incoherent answers, which were not counted then."""
    assert all(row.incoherent_broke is not None for row in found.manners)
    manners = tuple(msgspec.structs.replace(row, incoherent_broke=None) for row in found.manners)
    return msgspec.structs.replace(found, manners=manners)


def test_its_estimates_decide_as_they_did() -> None:
    check(storage.read_estimates(WRITTEN))


def test_its_rows_come_to_the_same_estimates(folder: Path) -> None:
    made = plans.read_plan(folder)
    found = aggregate.estimate(made, folder)
    check(found)
    assert as_then(found) == storage.read_estimates(folder)


def test_each_error_row_gets_the_code_that_its_words_stood_for(folder: Path) -> None:
    made = plans.read_plan(folder)
    grid = Grid(made)
    found = storage.answered_rows(storage.open_responses(folder, grid), grid, TrialSet(len(grid)))
    rows = list(found)
    assert sum(map(is_skipped, rows)) == EXPECTED["n_skipped"] and not any(map(is_failed, rows))
    codes = outcomes(folder / "verdicts.jsonl", made)
    assert sum(codes == 7) == EXPECTED["n_skipped"]  # "not asked"


def test_a_service_of_then_could_not_call_its_errors_skipped(folder: Path) -> None:
    upgrade = legacy.RowsFromSchema1(plans.read_plan(folder))
    rows = list(Rows(folder / "responses.jsonl", Response))
    closed = next(row for row in rows if row.error is not None)
    open_ = next(row for row in rows if row.attack == "direct")
    assert is_skipped(upgrade(closed))
    assert is_failed(upgrade(msgspec.structs.replace(closed, error="HTTP 500")))
    assert is_failed(upgrade(msgspec.structs.replace(open_, error=closed.error)))
    assert not is_failed(upgrade(open_)) and not is_skipped(upgrade(open_))


class Torch(scripted.ScriptedEngine):
    """The engine of the second model as it is today: what its name said then is a field."""

    is_batch_unverified = True

    def __init__(self) -> None:
        super().__init__("careful")
        self.name, self.numerics = "torch today", "torch bfloat16 rows"
        self.base_numerics = self.numerics

    def direction(self, harmful: Any, harmless: Any) -> str:
        raise AssertionError("it was searched for by the run of then")

    def without(self, direction: str) -> scripted.ScriptedEngine:
        return Torch()


def test_a_study_of_then_is_resumed_and_ends_in_the_same_numbers(folder: Path) -> None:
    before = storage.read_estimates(folder)
    path = folder / "responses.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert b'"schema":1' in lines[0]
    path.write_bytes(b"".join(lines[:10] + lines[14:]))  # of the first model, of every kind of attack

    def load(grown: Any) -> scripted.ScriptedEngine:
        return Torch() if grown.record.name == "scripted:careful" else scripted.ScriptedEngine("mixed")

    Study.open(folder, engine_loader=load).run()
    rows = list(Rows(path, Response))
    assert {row.schema for row in rows} == {1, 2} and len(rows) == len(lines)
    after = storage.read_estimates(folder)
    assert after.unprompted and not before.unprompted  # the checks of then did not look for them
    then = {"circumstances": before.circumstances, "unprompted": ()}
    assert msgspec.structs.replace(as_then(after), **then) == before


def test_rows_of_a_schema_to_come_are_refused(folder: Path) -> None:
    path = folder / "responses.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"schema":1}', b'"schema":3}'))
    with pytest.raises(NotComparable):
        list(Rows(path, Response))


def test_no_row_of_today_is_read_by_its_words(folder: Path) -> None:
    upgrade = legacy.RowsFromSchema1(plans.read_plan(folder))
    verdicts = Rows(folder / "verdicts.jsonl", Verdict, upgrade)
    closed = next(row for row in verdicts if row.error is not None)
    path = folder / "today.jsonl"
    with Rows(path, Verdict) as rows:
        rows.append(msgspec.structs.replace(closed, error_code="engine_error"))
    (row,) = Rows(path, Verdict, upgrade)
    assert row.error == closed.error and is_failed(row)
