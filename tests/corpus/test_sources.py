"""What each kind of source gives, and what it says of a file that it cannot read."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from heredity.core.errors import BadInput, UsageError
from heredity.corpus.sources import CorpusSource, SkippedDocument, _files
from tests.support.errors import raises


def source(kind: str, path: str, **settings: Any) -> CorpusSource:
    found: CorpusSource = importlib.import_module(f"heredity.corpus.sources.{kind}").SOURCE(
        name="s", path=path, **settings
    )
    found.check()
    return found


def read(folder: Path, kind: str, path: str, **settings: Any) -> list[str]:
    """Every document, a left-out one as its reason in brackets."""
    of = source(kind, path, **settings)
    found = [each for job in of.jobs(folder) for each in of.read(job)]
    return [f"[{each.reason}]" if isinstance(each, SkippedDocument) else each.decode() for each in found]


def test_a_folder_of_text_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name, text in (("b.txt", "two"), ("a/z.txt", "one"), (".git/c.txt", "hidden"), ("c.bin", "no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read(tmp_path, "text", ".") == ["one", "two"]
    assert read(tmp_path, "text", "*.txt") == ["two"]
    assert read(tmp_path, "text", "**/*.txt")[-2:] == ["one", "two"]
    assert [e.name for e in source("text", ".").inputs(source("text", ".").jobs(tmp_path)[0])] == [
        "a/z.txt",
        "b.txt",
    ]


def test_what_a_folder_has_and_is_not_read_is_counted(tmp_path: Path) -> None:
    shelf, other = tmp_path / "shelf", tmp_path / "other"
    for folder in (shelf / "deep", other):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("one")
    (shelf / "linked.txt").symlink_to(other / "a.txt")  # a file as any other
    (shelf / "deep" / "broken.txt").symlink_to(other / "nothing.txt")
    (shelf / "broken.bin").symlink_to(other / "nothing.bin")  # would not be read if it were there
    (shelf / ".broken.txt").symlink_to(other / "nothing.txt")
    (shelf / "folder").symlink_to(other)
    os.mkfifo(shelf / "pipe.txt")
    assert read(tmp_path, "text", "shelf") == ["one", "one"]
    counted = {"broken_link": 1, "linked_folder": 1, "no_file": 1}
    assert source("text", "shelf").left_out(tmp_path) == counted
    assert source("code", "shelf").left_out(tmp_path) == {"linked_folder": 1}
    assert source("text", "shelf/deep/a.txt").left_out(tmp_path) == {}


def test_a_file_without_text_is_left_out_and_counted(tmp_path: Path) -> None:
    for name, text in (("a.md", "one"), ("b.md", ""), ("c.md", " \n\n"), ("d.md", "---\na: 1\n---\n")):
        (tmp_path / name).write_text(text)
    assert read(tmp_path, "markdown", ".") == ["one", "[no_text]", "[no_text]", "[no_text]"]


def test_a_separator_cuts_a_file_into_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n%\ntwo\n%\n\n%\n")
    assert read(tmp_path, "text", "a.txt", separator="\n%\n") == ["one", "two"]


def test_a_text_of_another_encoding_is_an_error_with_its_line_until_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\ncaf\xe9\n")
    with raises(BadInput, "bad-input", mentions=["a.txt:3", "latin-1"]):
        read(tmp_path, "text", "a.txt")
    assert read(tmp_path, "text", "a.txt", encoding="latin-1") == ["one\ntwo\ncafé\n"]
    with raises(ValueError, "unknown-name", mentions=["latin-99"]):
        source("text", "a.txt", encoding="latin-99")


def test_nothing_there_is_an_error_that_says_where(tmp_path: Path) -> None:
    with raises(UsageError, "unreadable-file", mentions=["s", "missing"]):
        read(tmp_path, "text", "missing")
    with raises(UsageError, "unreadable-file", mentions=[".txt .text"]):
        read(tmp_path, "text", ".")


def test_markdown_loses_front_matter_and_comments(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\ntitle: x\n---\n# Head\n<!-- not\nthis -->text\n---\nmore\n")
    assert read(tmp_path, "markdown", ".") == ["# Head\ntext\n---\nmore\n"]
    assert read(tmp_path, "markdown", ".", front_matter=True)[0].startswith("---\ntitle")


def test_html_gives_the_text_of_a_page_without_its_menu(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    text = "The keeper of the light had a habit that nobody in the harbour could explain to strangers. " * 4
    page = f"<html><body><nav><a href=x>Home</a></nav><article><h1>Light</h1><p>{text}</p></article></html>"
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text("<html></html>")
    first, second = read(tmp_path, "html", ".")
    assert "keeper of the light" in first and "Home" not in first and "<" not in first
    assert second == "[no_text]"


def test_json_lines_are_the_same_documents_however_the_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"text": f"{i} ü" * (i % 7 + 1)}, ensure_ascii=False) for i in range(50)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:25]) + "\n\n" + "\n".join(lines[25:]))
    whole = read(tmp_path, "jsonl", ".")
    assert whole == [json.loads(line)["text"] for line in lines]
    module = importlib.import_module("heredity.corpus.sources.jsonl")
    for size in (1, 7, 64, 333):
        monkeypatch.setattr(module, "JOB_BYTES", size)
        assert read(tmp_path, "jsonl", ".") == whole
    of = source("jsonl", ".")
    assert len([each for job in of.jobs(tmp_path) for each in of.inputs(job)]) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", ("not-json", ["a.jsonl:3"])),
        ("[1]", ("wrong-type", ["a.jsonl:3"])),
        ('{"txt": "a"}', ("unknown-key", ["a.jsonl:3", "text", "txt"])),
        ('{"text": 4}', ("wrong-type", ["a.jsonl:3", "text"])),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: str, message: tuple[str, list[str]]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n' + row + "\n")
    with raises(BadInput, *message):
        read(tmp_path, "jsonl", ".")


def test_a_row_without_text_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": ""}\n{"text": null}\n')
    assert read(tmp_path, "jsonl", ".") == ["a", "[no_text]", "[no_text]"]


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert read(tmp_path, "jsonl", ".") == ["a?b 😀"]


def test_parquet_rows_are_documents_and_a_wrong_column_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = [f"text {i}" for i in range(10)] + [None]
    parquet.write_table(pa.table({"body": texts, "n": range(11)}), tmp_path / "a.parquet", row_group_size=3)
    expected = [*texts[:10], "[no_text]"]
    assert read(tmp_path, "parquet", ".", text="body") == expected
    monkeypatch.setattr(importlib.import_module("heredity.corpus.sources.parquet"), "JOB_BYTES", 1)
    assert read(tmp_path, "parquet", ".", text="body") == expected
    with raises(BadInput, "unknown-key", mentions=["a.parquet", "bod", "body"]):
        read(tmp_path, "parquet", ".", text="bod")
    with raises(BadInput, "wrong-type", mentions=["n"]):
        read(tmp_path, "parquet", ".", text="n")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not")
    with raises(BadInput, "unreadable-file", mentions=["b.parquet"]):
        read(tmp_path, "parquet", "b.parquet")


def test_a_data_set_on_disk_is_read_from_its_arrow_files(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import ipc

    table = pa.table({"text": ["one", "two"]})
    for number in range(2):
        with ipc.new_stream(tmp_path / f"data-{number}.arrow", table.schema) as writer:
            writer.write_table(table)
    assert read(tmp_path, "dataset", ".") == ["one", "two"] * 2


def test_a_code_tree_leaves_out_what_no_person_wrote(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.js").write_text("y" * 2000)
    (tmp_path / "c.c").write_bytes(b"int\0")
    (tmp_path / "d.rs").write_bytes(b"\xff")
    (tmp_path / "e.pyc").write_text("no")
    assert read(tmp_path, "code", ".") == ["x = 1\n", "[long_line]", "[no_text]", "[no_text]"]
    assert read(tmp_path, "code", ".", endings=(".py",), with_name=True) == ["a.py\nx = 1\n"]


def test_a_hub_data_set_needs_a_commit(tmp_path: Path) -> None:
    with raises(ValueError, "bad-setting", mentions=["revision"]):
        source("hub", "org/name", revision="main")
    source("hub", "org/name", revision="0" * 40)


def test_files_are_grouped_into_jobs_by_size_alone(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("x" * 10)
    jobs = _files.grouped(_files.files_of(source("text", "."), tmp_path), 20)
    assert [len(job.files) for job in jobs] == [2, 2, 2]
