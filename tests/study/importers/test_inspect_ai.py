"""inspect_ai logs, packed as old and as recent versions do."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from heredity.core.errors import BadInput, Unavailable
from heredity.study import plan
from heredity.study.importers import VerdictColumn
from tests.support.errors import raises
from tests.support.importer_files import YES, made, read, responses


def eval_log(path: Path, packing: int = zipfile.ZIP_DEFLATED, **change: Any) -> Path:
    """As inspect_ai 0.3 writes it, with two epochs of one sample."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": YES}]}
    answer["tool_calls"] = [{"id": "1", "function": "look", "arguments": {"where": "table"}}]  # type: ignore[assignment]
    sample = {
        "id": "a", "input": "attachment://77", "target": "lamp", "metadata": {"category": "lamps"},
        "messages": [
            {"role": "system", "content": "Be kind."}, {"role": "user", "content": "attachment://77"}, answer,
        ],
        "output": {
            "model": "m", "choices": [{"message": answer, "stop_reason": "max_tokens"}], "completion": YES,
            "usage": {"input_tokens": 11, "output_tokens": 7},
        },
        "scores": {"includes": {"value": "C"}}, "attachments": {"77": "Where is the lamp?"},
    }  # fmt: skip
    with zipfile.ZipFile(path, "w", packing) as log:
        log.writestr(
            "_journal/start.json", json.dumps({"eval": {"model": "mockllm/parent", "task": "lamps"}})
        )
        for epoch in (1, 2):
            log.writestr(f"samples/a_epoch_{epoch}.json", json.dumps({**sample, "epoch": epoch, **change}))
        log.writestr("summaries.json", "[]")
    return path


def test_an_inspect_log_gives_every_sample_and_epoch(tmp_path: Path) -> None:
    path = eval_log(tmp_path / "a.eval")
    summary = made(tmp_path / "s", path, verdicts=(VerdictColumn.parse("includes=C"),))
    assert (summary.models, summary.n_prompts, summary.n_samples) == (("mockllm/parent",), 1, 2)
    probe = plan.read_plan(tmp_path / "s").probes[0]
    assert (probe.id, probe.turns) == ("lamps/a", ("Where is the lamp?",))
    exchange = responses(tmp_path / "s")[1].exchanges[0]
    assert exchange.text == YES and exchange.stop == "length"
    assert (exchange.n_prompt_tokens, exchange.n_tokens) == (11, 7)
    assert exchange.prompt == "<|system|>\nBe kind.\n<|user|>\nWhere is the lamp?\n"
    assert exchange.tool_calls[0].name == "look"


def test_a_sample_that_failed_is_an_error(tmp_path: Path) -> None:
    path = eval_log(tmp_path / "a.eval", error={"message": "the sandbox died"})
    assert [row.error for row in read(path)] == ["the sandbox died"] * 2


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"PK\x03\x04 no zip at all", ("bad-input", [])), (b"text", ("bad-input", []))],
)
def test_a_file_that_is_no_log_is_named(data: bytes, said: tuple[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "a.eval").write_bytes(data)
    with raises(BadInput, *said):
        read(tmp_path / "a.eval")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from heredity.study.importers import inspect_ai

    monkeypatch.setattr(inspect_ai, "MAX_BYTES", 1000)
    path = eval_log(tmp_path / "a.eval", store={"x": "0" * 5000})
    with raises(BadInput, "bad-input", mentions=["1,000"]):
        read(path)


def test_a_small_zip_of_many_values_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = eval_log(tmp_path / "a.eval")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as log:
        many = b"[]," * 4_500_000
        log.writestr("samples/b_epoch_1.json", b'{"input": "", "output": {}, "x": [' + many + b"0]}")
    assert path.stat().st_size < 50_000
    with raises(BadInput, "bad-input", mentions=["samples/b_epoch_1.json"]):
        read(path)


def pack_with_zstd(path: Path) -> Path:
    """The same log with its members packed as recent versions of inspect_ai do."""
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    with zipfile.ZipFile(path) as log:
        members = {name: log.read(name) for name in log.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as log:
        for name, data in members.items():
            log.writestr(name, zstandard.ZstdCompressor().compress(data))
    raw = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # the method's place in both kinds of head
        start = raw.find(mark)
        while start >= 0:
            raw[start + at : start + at + 2] = (93).to_bytes(2, "little")
            start = raw.find(mark, start + 4)
    path.write_bytes(raw)
    return path


def test_a_log_packed_with_zstd_is_read(tmp_path: Path) -> None:
    path = pack_with_zstd(eval_log(tmp_path / "a.eval"))
    assert [row.response for row in read(path)] == [YES, YES]


def test_without_zstandard_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack_with_zstd(eval_log(tmp_path / "a.eval"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with raises(Unavailable, "package-missing", mentions=["pip install", ".[inspect]"]):
        read(path)


def test_a_log_in_one_json_document_says_the_same(tmp_path: Path) -> None:
    path = eval_log(tmp_path / "a.eval")
    with zipfile.ZipFile(path) as log:
        start = json.loads(log.read("_journal/start.json"))
        samples = [json.loads(log.read(name)) for name in log.namelist() if name.startswith("samples/")]
    (tmp_path / "a.json").write_text(json.dumps({**start, "samples": samples}))
    told = [row._replace(path=path) for row in read(tmp_path / "a.json")]
    assert told == read(path)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"rows": []}', "bad-input"),
        ("{", "not-json"),
        ('{"eval": {"model": "m"}, "samples": [3]}', "bad-input"),
    ],
)
def test_a_json_document_that_is_no_log_is_named(text: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with raises(BadInput, code, mentions=["a.json"]):
        read(tmp_path / "a.json")


@pytest.mark.parametrize(
    "header",
    [
        {"results": {"total_samples": 6}},
        {"eval": {"model": "m", "dataset": {"sample_ids": ["a", "b", "c"]}, "config": {"epochs": 2}}},
    ],
)
def test_an_import_counts_the_samples_that_a_log_lacks(tmp_path: Path, header: dict[str, Any]) -> None:
    path = eval_log(tmp_path / "a.eval")
    with zipfile.ZipFile(path, "a") as log:
        log.writestr("header.json", json.dumps({"eval": {"model": "mockllm/parent"}, **header}))
    (lacking,) = made(tmp_path / "s", path).lacking
    assert (lacking.n, lacking.n_planned, lacking.noun) == (4, 6, "sample")


def test_a_log_that_tells_no_total_lacks_nothing_that_is_known(tmp_path: Path) -> None:
    assert made(tmp_path / "s", eval_log(tmp_path / "a.eval")).lacking == ()
