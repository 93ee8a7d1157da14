"""What every report format must do, whichever files the folder holds: a new one is tested by being there."""

from __future__ import annotations

from pathlib import Path

import pytest

from heredity.core import registry
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
    data = out.read_bytes()
    if name == "parquet":
        import pyarrow.parquet as parquet

        data = str(parquet.read_table(out).to_pylist()).encode()
    for hidden in (SECRET, SAID, "Please do thing number"):
        assert hidden.encode() not in data
