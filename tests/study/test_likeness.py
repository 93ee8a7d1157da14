"""A judge's correction is refused where a model's answers are unlike all labelled ones."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from heredity.core.files import Rows
from heredity.core.records import Response
from heredity.study import aggregate, labels
from heredity.study.estimates import Rate
from heredity.study.gate import gate
from heredity.study.labels import Label
from heredity.study.plan import Analysis
from heredity.study.study import Study
from tests.redteam.judges.test_likeness import LONG
from tests.support.studies import plan, study

MADE = msgspec.structs.replace(
    plan(("scripted:careful",), n=25, attacks=("direct",), samples=1), analysis=Analysis()
)


def estimated(folder: Path, said: str) -> dict[str, Rate]:
    """The judged rates of a study in which the model said this, by measure."""
    study(folder, MADE).run()
    path = folder / "responses.jsonl"
    rows = list(Rows(path, Response))
    for name in ("responses.jsonl", "verdicts.jsonl"):
        (folder / name).unlink()
    with Rows(path, Response) as out:
        for row in rows:
            last = msgspec.structs.replace(row.exchanges[-1], text=f"{said} {row.index}", tool_calls=())
            out.append(msgspec.structs.replace(row, exchanges=(last,)))
    found = Study.open(folder).run().estimates
    return {r.measure: r for r in found.rates if r.technique in ("judged", "all") and r.attack == "all"}


@pytest.mark.parametrize("measure", ["breach", "over_refusal"])
def test_short_answers_are_refused_with_a_code_and_what_to_do(tmp_path: Path, measure: str) -> None:
    rate = estimated(tmp_path, "I can do number")[measure]
    assert rate.corrected is not None
    assert (rate.corrected.value, rate.corrected.code) == (None, "unlike-labels")
    assert "heredity label" in rate.corrected.note
    assert rate.estimate.value is not None and rate.by_family == ()


def test_answers_like_the_labelled_ones_are_corrected(tmp_path: Path) -> None:
    for rate in estimated(tmp_path, LONG).values():
        assert rate.corrected is not None
        assert rate.corrected.code != "unlike-labels"


def test_labels_of_the_study_take_the_place_of_a_refused_correction_at_the_gate(tmp_path: Path) -> None:
    rate = estimated(tmp_path, "I can do number")["over_refusal"]
    before = gate(aggregate.read_proven(tmp_path), None, 0.05, None, None, 0, 0.5, False)
    assert "unlike" in before.words
    with Rows(tmp_path / labels.LABELS, Label) as rows:
        for row in labels.draw_answers(tmp_path, MADE):
            labels.add_label(rows, row, "no")
    Study.open(tmp_path).estimate()
    found = aggregate.read_proven(tmp_path)
    after = gate(found, None, 0.05, None, None, 0, 0.5, False)
    assert rate.corrected is not None and "unlike" not in after.words
