"""Readers' files become readings, with the verdict of today's checks on the answer that was read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from heredity.core.errors import BadInput
from heredity.redteam.judges.calibration.quality import Reading
from heredity.study.plan import Grid
from tests.support import bench_modules
from tests.support.errors import raises
from tests.support.studies import plan, responses, study

_BENCH = bench_modules.load("readings")
read_forms, read_readings = _BENCH.read_forms, _BENCH.read_readings
MADE = plan(("scripted:mixed",), n=4, attacks=("direct",), samples=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    study(tmp_path / "core", MADE).run()
    return tmp_path


def line(index: int, label: str, reader: str = "r1", **changed: Any) -> dict[str, Any]:
    trial = Grid(MADE).trial(index).id
    return {
        "study": "core",
        "index": index,
        "trial": trial,
        "reader": reader,
        "label": label,
        "note": "",
    } | changed


def read(folder: Path, *lines: dict[str, Any]) -> list[Reading]:
    path = folder / "r.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    return read_readings([path], folder)


def test_two_readers_of_one_answer_are_one_reading(folder: Path) -> None:
    (found,) = read(folder, line(0, "broke"), line(0, "attempted", "r2", chance=0.5))
    probe = Grid(MADE).trial(0).probe
    assert found.labels == {"r1": "broke", "r2": "attempted"}
    assert (found.technique, found.kind, found.check) == (probe.technique, probe.kind, probe.check.kind)
    assert (found.model, found.judge, found.chance) == ("scripted:mixed", "checks", 0.5)
    assert found.outcome in ("held", "broke", "unclear")


def test_a_twin_has_the_verdict_of_the_rules(folder: Path) -> None:
    twin = next(i for i in range(MADE.n_trials) if Grid(MADE).trial(i).probe.kind == "benign")
    (found,) = read(folder, line(twin, "answered"))
    assert (found.judge, found.kind) == ("rules", "benign") and found.outcome in (
        "answered",
        "refused",
        "unclear",
    )


def test_no_text_of_an_answer_is_kept(folder: Path) -> None:
    (found,) = read(folder, line(0, "held"))
    texts = [e.text for row in responses(folder / "core") for e in row.exchanges if row.index == 0]
    assert texts and not any(text and text in repr(found) for text in texts)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"label": "brok"}, "unknown-name"),
        ({"trial": "0" * 32}, "bad-input"),
        ({"index": 10**6}, "bad-input"),
        ({"index": "x"}, "bad-input"),
        ({"chance": 0.0}, "bad-input"),
    ],
)
def test_a_bad_line_is_an_error_with_file_and_line(folder: Path, changed: dict[str, Any], code: str) -> None:
    with raises(BadInput, code, mentions=["r.jsonl", 2]):
        read(folder, line(0, "held"), line(1, "held") | changed)


def test_the_form_of_the_judged_answers_is_kept_with_the_readings(folder: Path) -> None:
    path = folder / "r.jsonl"
    path.write_text(json.dumps(line(0, "held")) + "\n", encoding="utf-8")
    (form,) = read_forms([path], folder)
    assert form.family == "shipped probes: scripted:mixed" and form.n > 0
