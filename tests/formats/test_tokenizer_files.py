"""A tokenizer that does not load is a damaged file of the model, and no fault of heredity."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from heredity.core.errors import Damaged, Refused
from heredity.formats.tokenizer_files import (
    check_tokenizer,
    load_tokenizer,
    read_tokenizer,
    tokenizer_errors,
)
from tests.support.errors import raises
from tests.support.tiny_models import CHATML, make_tokenizer

pytest.importorskip("transformers")
PANICS = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}  # Rust code ends in a panic, no Exception


@pytest.mark.parametrize("change", [{"normalizer": PANICS}, {"model": None}])
def test_a_tokenizer_that_does_not_load_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    make_tokenizer(tmp_path, CHATML)
    assert load_tokenizer(tmp_path).chat_template == CHATML
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with raises(Damaged, "damaged", [tmp_path, "tokenizer"]):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ImportError])
def test_an_error_that_says_nothing_about_the_files_stays(error: type[BaseException]) -> None:
    with pytest.raises(error), tokenizer_errors("it does not load"):
        raise error


def _replace(what: object, content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": what, "content": content}


def _row(kind: str, parts: list[dict[str, object]]) -> dict[str, object]:
    return {"type": "Sequence", kind: parts}


A, TEXT = {"String": "a"}, {"Sequence": {"id": "A", "type_id": 0}}
HOSTILE: dict[str, dict[str, object]] = {
    "doubled": {"normalizer": _row("normalizers", [_replace(A, "aa")] * 30)},
    "between": {"normalizer": _row("normalizers", [_replace({"Regex": "x*"}, "y")] * 30)},
    "content": {"normalizer": _replace(A, "b" * 1_000_000)},
    "prepend": {"normalizer": {"type": "Prepend", "prepend": "b" * 5_000_000}},
    "bytes": {"normalizer": _row("normalizers", [{"type": "ByteLevel"}] * 20)},
    "pattern": {"normalizer": _replace({"Regex": "((a{1000}){1000}){1000}"}, "b")},
    "many": {"pre_tokenizer": _row("pretokenizers", [{"type": "Whitespace"}] * 1000)},
    "copies": {"post_processor": {"type": "TemplateProcessing", "single": [TEXT] * 100_000, "pair": [TEXT]}},
    "answer": {"decoder": _row("decoders", [_replace(A, "aa")] * 30)},
    "padding": {"padding": {"strategy": {"Fixed": 1_000_000_000}}},
    "token": {"added_tokens": [{"id": 0, "content": "b" * 1_000_000}]},
    "tokens": {"added_tokens": [{"id": i, "content": f"{i:04}" * 1000} for i in range(300)]},
    "charsmap": {
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(bytes(4) + b"b" * 5000 + b"\0").decode(),
        }
    },
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_tokenizer_that_multiplies_text_is_refused_and_not_loaded(tmp_path: Path, kind: str) -> None:
    make_tokenizer(tmp_path, CHATML)
    path = tmp_path / "tokenizer.json"
    check_tokenizer(path, is_tried=True)
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | HOSTILE[kind]), "utf-8")
    for refused in (
        lambda: check_tokenizer(path),
        lambda: read_tokenizer(path),
        lambda: load_tokenizer(tmp_path),
    ):
        with raises(Refused, "refused", mentions=["tokenizer"]):
            refused()


def test_the_normalizers_of_known_models_are_read(tmp_path: Path) -> None:
    """T5, XLM-R and ALBERT have a table of SentencePiece, whose longest replacement has 18 characters."""
    table = base64.b64encode(bytes(4) + ("b" * 18).encode() + b"\0").decode()
    parts = [
        _replace({"String": "``"}, '"'), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
        {"type": "Precompiled", "precompiled_charsmap": table}, _replace({"Regex": " {2,}"}, " "),
    ]  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({
        "normalizer": _row("normalizers", parts), "pre_tokenizer": {"type": "Metaspace", "replacement": "_"},
    }))  # fmt: skip
    check_tokenizer(path)
