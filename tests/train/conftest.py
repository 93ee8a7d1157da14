"""Tiny random models that learn, and a few conversations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from tests.support.tiny_models import any_model as any_model
from tests.support.tiny_models import make_model
from tests.support.tiny_models import tiny_llama as tiny_llama

ROWS = [
    {
        "prompt": f"the quick brown fox number {i}",
        "completion": " ".join(["jumps over a lazy dog"] * (1 + i % 5)),
    }
    for i in range(24)
]


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def parent(store: Store, tmp_path: Path) -> Grown:
    return store.pull(str(make_model(tmp_path / "tiny-parent", "llama")))
