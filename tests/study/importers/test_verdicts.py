"""What a column of another judge means."""

from __future__ import annotations

from pathlib import Path

import pytest

from heredity.core.errors import BadInput, UsageError
from heredity.study import importers
from heredity.study.importers import ImportOptions, VerdictColumn
from tests.support.errors import raises
from tests.support.importer_files import NO, jsonl, read


@pytest.mark.parametrize(
    ("spec", "value", "broke"),
    [
        ("substring_refused", 1, False), ("substring_refused", 0, True), ("llamaguard2_unsafe", 1, True),
        ("llamaguard2_unsafe", 0.0, False), ("is_safe", True, False), ("jailbroken", "yes", True),
        ("label", "Unsafe", True), ("label", "safe", False), ("label", "", None), ("label", None, None),
        ("grade=C,D", "c", True), ("grade=C,D", "A", False), ("a=b=1", 1, True),
    ],
)  # fmt: skip
def test_a_recorded_verdict_says_broke_or_held(
    spec: str, value: object, broke: bool | None, tmp_path: Path
) -> None:
    column = VerdictColumn.parse(spec)
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "response": NO, column.column: value}])
    assert read(path, model="m", verdicts=(column,))[0].verdicts == {column.column: broke}


@pytest.mark.parametrize(
    ("spec", "value"), [("score", 1), ("not_refused", 1), ("refusal_success", 0), ("label", "maybe")]
)
def test_a_verdict_that_may_mean_either_is_asked_back(spec: str, value: object, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "response": NO, spec: value}])
    with raises(BadInput, "bad-input", mentions=["a.jsonl:1", f"--verdict {spec}=VALUE"]):
        read(path, model="m", verdicts=(VerdictColumn.parse(spec),))


def test_values_that_no_row_has_are_told_or_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "response": NO, "v": v, "kind": v} for i, v in enumerate(("unsafe", "safe"))]
    path = jsonl(tmp_path / "a.jsonl", rows)
    wrong, right = (
        ImportOptions(model="m", verdicts=(VerdictColumn.parse(spec),)) for spec in ("v=YES", "v=unsafe,x")
    )
    with raises(BadInput, "unknown-name", mentions=["unsafe"]):
        list(importers.read([path], wrong))
    for row in rows:
        del row["kind"]
    jsonl(path, rows)
    for reading in (wrong, right):
        list(importers.read([path], reading))
    assert wrong.unmet() == {"--verdict v": "--verdict v: no row has 'yes'. There are: safe, unsafe."}
    assert right.unmet() == {}
    with raises(UsageError, "unknown-name", mentions=["--benign", "saef", "safe"]):
        read(jsonl(path, [row | {"kind": row["v"]} for row in rows]), model="m", benign=("saef",))
