"""JSON lines and CSV with a column map, and what is said of a file that does not fit."""

from __future__ import annotations

import csv
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heredity.core.errors import BadInput, HeredityError, UsageError
from heredity.study import importers
from heredity.study.importers import ImportOptions
from heredity.study.importers import rows as importer
from tests.support.errors import raises
from tests.support.importer_files import NO, answers, jsonl, made, read


def test_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    rows = answers()
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    made(tmp_path / "one", tmp_path / "a.csv")
    made(tmp_path / "two", jsonl(tmp_path / "a.jsonl", rows))
    one, two = ((tmp_path / name / "plan.json").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_model_name_may_be_put_together(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": NO, "arm": "ablation"}]
    path = jsonl(tmp_path / "gemma-2b.v1.jsonl", rows)
    assert read(path, model="{file}-{arm}")[0].model == "gemma-2b-ablation"


@pytest.mark.parametrize("is_unpaired", [False, True])
def test_an_importer_says_whether_its_models_can_be_paired(
    is_unpaired: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importer, "IS_UNPAIRED", is_unpaired, raising=False)
    path = jsonl(tmp_path / "a.jsonl", answers())
    assert importers.is_traffic([path]) == is_unpaired
    with raises(BadInput, "bad-input") if is_unpaired else nullcontext():
        assert len(read(path)) == 8


def test_a_list_of_messages_is_a_conversation(tmp_path: Path) -> None:
    said = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "One?"}, {"type": "image"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Two?"},
    ]
    row = read(jsonl(tmp_path / "a.jsonl", [{"prompt": said, "response": {"content": NO}}]), model="m")[0]
    assert row.turns == ("One?\n[image]", "Two?") and row.response == NO
    assert row.shown.startswith("<|system|>\nBe kind.\n<|user|>\nOne?")


def test_a_missing_answer_is_an_error_and_an_empty_one_an_answer(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "response": None}, {"prompt": "b", "response": ""},
        {"prompt": "c", "response": "half", "error": "timed out"},
    ]  # fmt: skip
    found = read(jsonl(tmp_path / "a.jsonl", rows), model="m")
    assert [(row.response, row.error) for row in found] == [
        (None, "no response was recorded"), ("", None), (None, "timed out"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "settings", "code", "named"),
    [
        ('{"promt": "p", "response": "r"}', {}, "unknown-key", ["prompt", "promt"]),
        ('{"prompt": "p", "answer": "r"}', {}, "unknown-key", ["--columns response=COLUMN"]),
        ('{"prompt": "p", "response": "r"}', {"columns": {"id": "nr"}}, "unknown-key", ["nr"]),
        ('{"prompt": "p", "response": "r"}', {"model": "{nr}"}, "unknown-key", ["nr"]),
        ('{"prompt": "p", "response": "r", "nr": ""}', {"model": "{nr}"}, "missing-key", []),
        ('{"prompt": " ", "response": "r"}', {}, "bad-input", []),
        ('{"prompt": "p", "response": "r", "kind": "odd"}', {}, "unknown-name", ["odd"]),
        ("[1]", {}, "wrong-type", []),
        ("{", {}, "not-json", []),
        ("[" * 100_000, {}, "not-json", []),
        ("\udcff", {}, "bad-input", []),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(
    line: str, settings: dict[str, Any], code: str, named: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    first = b'{"prompt": "p0", "response": "r", "nr": "1"}\n'
    path.write_bytes(first + line.encode(errors="surrogateescape") + b"\n")
    with raises(BadInput, code, mentions=["a.jsonl:2", *named]):
        read(path, **{"model": "m", **settings})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,response\na\n", ("bad-input", ["a.csv:2", "1", "2"])),
        ('prompt,response\na,"b', ("bad-input", ["a.csv:2"])),
        ("prompt,prompt\na,b\n", ("name-twice", ["a.csv:1", "prompt"])),
        ("prompt,response\n", ("bad-usage", [])),
        ("", ("bad-usage", [])),
    ],
)
def test_a_bad_csv_is_named_with_file_and_line(
    text: str, said: tuple[str, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(text)
    with raises(UsageError, *said):
        made(tmp_path / "s", tmp_path / "a.csv", model="m")
    assert not (tmp_path / "s" / "plan.json").exists()


def test_a_file_of_no_known_kind_and_one_that_is_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    for name, code in (("a.xlsx", "bad-input"), ("b.jsonl", "unreadable-file")):
        with raises(BadInput, code, mentions=[name]):
            read(tmp_path / name)


@given(st.binary(max_size=300), st.sampled_from([".jsonl", ".csv", ".eval", ".json", ".report.jsonl"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_bytes_are_read_or_refused_in_a_line(tmp_path: Path, data: bytes, ending: str) -> None:
    start = {".eval": b"PK\x03\x04", ".json": b"{", ".report.jsonl": b'{"entry_type": "init"}\n'}.get(
        ending, b""
    )
    path = tmp_path / f"a{ending}"
    path.write_bytes(start + data)
    try:
        read(path, model="m")
    except HeredityError as error:
        assert str(path) in str(error)


def test_a_field_that_is_none_gets_the_nearest_one() -> None:
    with raises(UsageError, "unknown-key", mentions=["respons=a", "response"]):
        ImportOptions(columns={"respons": "a"})
    with raises(UsageError, "name-twice"):
        importers.columns("prompt=a,prompt=b")
