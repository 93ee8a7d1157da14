"""A static embedding model is refused by name if its files contradict each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heredity.core.errors import Damaged
from heredity.formats.architectures import choose_by_config
from heredity.formats.static_embeddings import holds_static, read_static
from heredity.lineage.store import Store
from tests.support.errors import raises
from tests.support.static_models import WORDS, vectors, write_static

pytest.importorskip("tokenizers")
N = len(WORDS)
ROWS = np.arange(N)
PANICS = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}  # Rust code ends in a panic, no Exception


def altered(n: int, value: float, dtype: Any = np.float32) -> np.ndarray:
    found = vectors().astype(dtype)
    found[n, 0] = value
    return found


@pytest.mark.parametrize(
    ("settings", "mentions"),
    [
        ({"embeddings": vectors(N - 1)}, ["embeddings", N - 1, N]),
        ({"embeddings": vectors(N).reshape(-1)}, ["embeddings"]),
        ({"embeddings": vectors(N, 0)}, ["embeddings"]),
        ({"embeddings": vectors(N).astype(np.int64)}, ["embeddings", "I64"]),
        ({"embeddings": altered(2, np.nan)}, ["embeddings"]),
        ({"embeddings": altered(2, np.inf, np.float16)}, ["embeddings"]),
        ({"embeddings": altered(2, 1e300, np.float64)}, ["embeddings"]),
        ({"embeddings": altered(2, -1e30)}, ["embeddings"]),
        ({"tensors": {"mapping": np.where(ROWS == 3, N, ROWS)}}, ["mapping"]),
        ({"tensors": {"mapping": np.where(ROWS == 3, -1, ROWS)}}, ["mapping"]),
        ({"tensors": {"mapping": ROWS[:-1].copy()}}, ["mapping", N - 1, N]),
        ({"tensors": {"mapping": ROWS.astype(np.float32)}}, ["mapping", "F32"]),
        ({"tensors": {"mapping": ROWS[:, None].copy()}}, ["mapping"]),
        ({"tensors": {"weights": np.full(N, np.nan)}}, ["weights"]),
        ({"tensors": {"weights": np.ones(N - 1)}}, ["weights", N - 1, N]),
        ({"tensors": {"weights": np.ones((N, 1))}}, ["weights"]),
        ({"modules": [{"type": "sentence_transformers.models.Dense"}]}, ["modules.json", "Dense"]),
        ({"modules": {"0": "StaticEmbedding"}}, ["modules.json"]),
        ({"config": {"max_length": 0}}, ["max_length"]),
        ({"config": {"max_length": "512"}}, ["max_length"]),
    ],
)
def test_contradicting_files_are_refused_when_they_are_pulled(
    tmp_path: Path, settings: dict[str, Any], mentions: list[object]
) -> None:
    folder = write_static(tmp_path / "odd", **settings)
    with raises(Damaged, "damaged", ["odd", *mentions]):
        Store(tmp_path / "store").pull(str(folder))
    assert Store(tmp_path / "store").models() == []


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        path = folder / "tokenizer.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return write


@pytest.mark.parametrize(
    ("damage", "mentions"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json"]),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ["tokenizer.json"]),
        (rewritten(lambda found: found.update(normalizer=PANICS)), ["tokenizer.json", "PanicException"]),
        (rewritten(lambda found: found["model"].update(vocab={})), ["tokenizer.json"]),
        (rewritten(lambda found: found["model"]["vocab"].update(heat=1 << 30)), ["embeddings", N]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["model.safetensors"]),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), ["model.safetensors"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json"]),
    ],
)
def test_a_missing_or_damaged_file_is_named(
    tmp_path: Path, damage: Callable[[Path], object], mentions: list[object]
) -> None:
    folder = write_static(tmp_path / "odd")
    damage(folder)
    with raises(Damaged, "damaged", ["odd", *mentions]):
        read_static(folder, "odd")


@pytest.mark.parametrize(
    "config", [{"model_type": "model2vec"}, {"architectures": ["StaticModel"]}, {"normalize": True}]
)
def test_a_folder_is_known_by_its_settings_or_by_its_tensors(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write_static(tmp_path / "one")
    (folder / "config.json").write_text(json.dumps(config))
    assert holds_static(folder) and read_static(folder, "one").n_tokens == 512
    record = Store(tmp_path / "store").pull(str(folder)).record
    assert (record.modality, record.family) == ("text-embedding", "model2vec")


def test_other_tensors_are_not_of_this_form(tmp_path: Path) -> None:
    folder = write_static(tmp_path / "one", tensors={"layers.0.weight": vectors()})
    assert holds_static(folder)  # by its settings
    (folder / "config.json").write_text("{}")
    assert not holds_static(folder) and not holds_static(tmp_path)
    with raises(Damaged, "damaged", ["one", "config.json"]):
        read_static(folder, "one")


def test_no_engine_answers_a_static_model() -> None:
    assert choose_by_config({"model_type": "model2vec"}).engine == ""


def test_rows_that_no_token_has_do_no_harm(tmp_path: Path) -> None:
    more = write_static(tmp_path / "more", vectors(N + 5))
    assert len(read_static(more, "more").vectors) == N + 5
