"""What every report format must do, whichever files the folder holds: a new one is tested by being there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heredity.core import registry
from heredity.core.errors import UnknownName, UsageError
from heredity.study import aggregate
from heredity.study.report import write_report
from tests.support.errors import raises
from tests.support.hostile_text import NASTY
from tests.support.report_studies import APPLICATION, make, plan

FORMATS = registry.names("study.report")
SECRET = APPLICATION.secrets[0].value
SAID = "what-the-model-said-9931"
ANSWER = f"{SAID}: the code is {SECRET}. " + "".join(
    NASTY[each] for each in ("script", "ansi", "bidi", "nul")
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study in which every answer leaks the secret and attacks who reads it."""
    return make(tmp_path_factory.mktemp("hostile"), plan(n_probes=3), answer=ANSWER)


def text_of(name: str, path: Path) -> str:
    if name != "parquet":
        return path.read_text("utf-8")
    import pyarrow.parquet as parquet

    return str(parquet.read_table(path).to_pylist())


def test_there_are_formats() -> None:
    assert {"csv", "html", "json", "junit", "markdown", "parquet", "sarif"} <= set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_writes_a_hostile_study_whole(name: str, hostile: Path, tmp_path: Path) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"report.{name}"
    assert registry.load("study.report", name).write(hostile, out) == out
    data = out.read_bytes()
    assert data and [path.name for path in tmp_path.iterdir()] == [out.name]
    if name != "parquet":
        assert not {"\x1b", "\x00", "\x9b"} & set(data.decode("utf-8"))
    assert b"<script>document.title" not in data or name in ("csv", "parquet")  # these are data, not pages


@pytest.mark.parametrize("name", FORMATS)
def test_without_text_nothing_that_was_said_or_asked_is_in_it(
    name: str, hostile: Path, tmp_path: Path
) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
    out = registry.load("study.report", name).write(hostile, tmp_path / "report", with_text=False)
    for hidden in (SECRET, SAID, "Please do thing number"):
        assert hidden not in text_of(name, out)


@pytest.mark.parametrize("name", FORMATS)
def test_a_report_of_one_model_holds_no_row_of_another_or_is_refused(
    name: str, study: Path, tmp_path: Path
) -> None:
    one, other = aggregate.read_study(study).plan.models
    out = tmp_path / "report"
    if name in ("html", "json", "markdown"):
        with raises(UsageError, "bad-usage"):
            write_report(study, name, out, models=[one.name])
        assert not out.exists()
        return
    if name == "parquet":
        pytest.importorskip("pyarrow")
    both, each = write_report(study, name, tmp_path / "both"), write_report(study, name, out, models=[one.id])
    text = text_of(name, each)
    assert one.name in text and other.name not in text and len(text) < 0.7 * len(text_of(name, both))
    again = write_report(study, name, tmp_path / "again", models=[other.name, one.name])
    assert again.read_bytes() == both.read_bytes()
    with raises(UnknownName, "unknown-name", mentions=[one.name]):
        write_report(study, name, out, models=[one.name[:-1]])


def test_a_scan_of_one_model_replaces_no_scan_of_another(study: Path, tmp_path: Path) -> None:
    def category(*models: str) -> str:
        path = write_report(study, "sarif", tmp_path / "report", models=models)
        (run,) = json.loads(path.read_bytes())["runs"]
        return str(run["automationDetails"]["id"])

    names = [model.name for model in aggregate.read_study(study).plan.models]
    assert len({category(), *map(category, names)}) == 3
