"""A tokenizer that does not load is a damaged file of the model, and no fault of heredity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heredity.core.errors import Damaged
from heredity.engines.formats.tokenizer_files import load_tokenizer, tokenizer_errors
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
    with raises(Damaged, "tokenizer-damaged", [tmp_path, "tokenizer"]):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ImportError])
def test_an_error_that_says_nothing_about_the_files_stays(error: type[BaseException]) -> None:
    with pytest.raises(error), tokenizer_errors("it does not load"):
        raise error
