"""The rows as Parquet: typed, exact, in row groups."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest

from heredity.core.errors import Unavailable
from heredity.core.files import Rows
from heredity.core.records import Response
from heredity.study.report import csv, parquet
from tests.support.errors import raises
from tests.support.hostile_text import NASTY
from tests.support.report_studies import make, plan

arrow = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")


def test_the_rows_are_those_of_the_csv_with_their_types(study: Path, tmp_path: Path) -> None:
    table = arrow.read_table(parquet.write(study, tmp_path / "rows.parquet"))
    assert table.column_names == csv.write(study, tmp_path / "rows.csv").read_text().splitlines()[0].split(
        ","
    )
    responses = {row.trial: row for row in Rows(study / "responses.jsonl", Response)}
    assert table.num_rows == len(responses)
    for row in table.to_pylist():
        response = responses[row["trial"]]
        assert (row["seed"], row["sample"], row["error"]) == (response.seed, response.sample, response.error)
        assert row["text"] == (response.exchanges[0].text if response.exchanges else None)
    assert str(table.schema.field("seed").type) == "int64" and not table.schema.field("trial").nullable


def test_the_schema_is_fixed_and_says_which_study_it_is(study: Path, tmp_path: Path) -> None:
    small = make(tmp_path / "small", plan(n_probes=1), errors=0)  # no error: a column of nulls alone
    one, two = (
        arrow.read_schema(parquet.write(folder, tmp_path / f"{folder.name}.parquet"))
        for folder in (study, small)
    )
    assert one.remove_metadata() == two.remove_metadata()
    assert set(one.metadata) == {b"heredity", b"study", b"application"}


@pytest.mark.parametrize("name", ["ansi", "nul", "bidi", "invisible", "private", "line separators"])
def test_text_is_exactly_what_was_said(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=1), answer=NASTY[name], errors=0)
    table = arrow.read_table(parquet.write(folder, tmp_path / "rows.parquet"))
    assert set(table["text"].to_pylist()) == {NASTY[name]}


def test_without_text_nothing_that_was_said_is_there(tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=1), answer="a very particular answer")
    table = arrow.read_table(parquet.write(folder, tmp_path / "rows.parquet", with_text=False))
    assert not {"text", "evidence"} & set(table.column_names)
    assert "particular" not in str(table.to_pylist()) and "does not fit" not in str(table.to_pylist())


def test_long_texts_close_a_row_group_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_CHARACTERS", 1000)
    folder = make(tmp_path / "study", plan(n_probes=2), answer="x" * 400, errors=0)
    found = arrow.ParquetFile(parquet.write(folder, tmp_path / "rows.parquet"))
    assert found.metadata.num_row_groups == 8 and found.metadata.num_rows == 24


def test_without_pyarrow_one_line_says_what_to_install(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_import = builtins.__import__

    def without(name: str, *args: object, **settings: object) -> object:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return true_import(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with raises(Unavailable, "package-missing", mentions=["pip install", ".[parquet]"]):
        parquet.write(study, tmp_path / "rows.parquet")
