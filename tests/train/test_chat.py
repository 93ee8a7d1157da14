"""Tuning data in the shapes people have it, and one line for what is no conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from heredity.core.errors import BadInput
from heredity.train.data import chat
from tests.support.errors import raises


def write(tmp_path: Path, *rows: Any, name: str = "d.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "ask", "completion": "say"},
        {"question": "ask", "answer": "say"},
        {"instruction": "ask", "input": "", "output": "say"},
        {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]},
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]},
        {"prompt": "ask", "chosen": "say", "rejected": "no"},
    ],
)
def test_every_usual_shape_says_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    (found,) = chat.read_data(write(tmp_path, row)).dialogues
    assert [(m.role, m.content) for m in found.messages] == [("user", "ask"), ("assistant", "say")]
    assert found.where == "d.jsonl:1" and found.rejected == row.get("rejected")


def test_an_instructions_input_stands_beneath_it(tmp_path: Path) -> None:
    (found,) = chat.read_data(
        write(tmp_path, {"instruction": "add", "input": "1, 2", "output": "3"})
    ).dialogues
    assert found.messages[0].content == "add\n\n1, 2"


@pytest.mark.parametrize(
    ("rows", "code", "named"),
    [
        ((), "bad-input", ["d.jsonl"]),
        (({"prompt": "a", "completion": "b"}, "{"), "not-json", ["d.jsonl:2"]),
        (({"text": "a"},), "bad-input", ["d.jsonl:1", "--columns"]),
        (({"prompt": "a", "completion": " "},), "bad-input", ["d.jsonl:1", "completion"]),
        (({"prompt": "a", "completion": 3},), "wrong-type", ["d.jsonl:1", "completion", "int"]),
        (({"messages": [{"role": "user", "content": "a"}]},), "bad-input", ["d.jsonl:1"]),
        (({"messages": [{"role": "boss", "content": "a"}]},), "unknown-name", ["d.jsonl:1", "boss"]),
        (({"messages": [{"role": ["boss"], "content": "a"}]},), "unknown-name", ["d.jsonl:1", "boss"]),
        (({"messages": "hello"},), "wrong-type", ["d.jsonl:1", "messages"]),
        (({"prompt": "a", "completion": "b \ud83d"},), "bad-input", ["d.jsonl:1", "\\ud83d"]),
        (({"prompt": "a", "chosen": "b", "rejected": "\ude00"},), "bad-input", ["d.jsonl:1"]),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    tmp_path: Path, rows: tuple[Any, ...], code: str, named: list[str]
) -> None:
    with raises(BadInput, code, mentions=named):
        chat.read_data(write(tmp_path, *rows))


def test_columns_of_ones_own_are_named_and_a_wrong_one_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, {"ticket": "ask", "reply": "say"})
    (found,) = chat.read_data(path, {"prompt": "ticket", "completion": "reply"}).dialogues
    assert found.messages[1].content == "say"
    with raises(BadInput, "unknown-key", mentions=["ticket"]):
        chat.read_data(path, {"prompt": "tickt", "completion": "reply"})


def test_the_digest_is_of_what_is_learned_not_of_how_it_is_written(tmp_path: Path) -> None:
    one = write(tmp_path, '{"prompt": "a", "completion": "b"}')
    two = write(tmp_path, "prompt,completion\na,b", name="d.csv")
    assert chat.read_data(one).digest == chat.read_data(two).digest
    other = write(tmp_path, {"prompt": "a", "completion": "c"}, name="o.jsonl")
    assert chat.read_data(one).digest != chat.read_data(other).digest


def test_parquet_and_a_saved_data_set_are_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    table = arrow.table({"prompt": ["a", "c"], "completion": ["b", "d"]})
    parquet.write_table(table, tmp_path / "d.parquet")
    (tmp_path / "saved").mkdir()
    with ipc.new_stream(tmp_path / "saved" / "data-00000-of-00001.arrow", table.schema) as out:
        out.write_table(table)
    read = [chat.read_data(tmp_path / name).dialogues for name in ("d.parquet", "saved")]
    assert [d.messages for d in read[0]] == [d.messages for d in read[1]] and len(read[0]) == 2
