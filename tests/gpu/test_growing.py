"""Recipes on a GPU: each trains a tiny model, its loss falls, and a checkpoint moves to the processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import heredity as h
from heredity.core.host import CPU
from heredity.lineage.types import Grown
from tests.gpu import GPU
from tests.support.tiny_models import make_model


@pytest.fixture
def store(tmp_path: Path) -> h.Store:
    return h.Store(tmp_path / "store", device=str(GPU))


@pytest.fixture
def parent(store: h.Store, tmp_path: Path) -> Grown:
    return store.pull(str(make_model(tmp_path / "model", "llama")))


@pytest.fixture
def teacher(store: h.Store, tmp_path: Path) -> Grown:
    return store.pull(str(make_model(tmp_path / "teacher", "llama", num_hidden_layers=2)))


def rows(folder: Path, **more: str) -> Path:
    lines = [
        {"prompt": f"the {word} fox", "completion": "jumps over a lazy dog", **more}
        for word in ("quick", "brown", "old", "wise")
    ]
    (path := folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


def losses(child: Grown) -> list[float]:
    return [json.loads(line)["loss"] for line in (child.folder / "training.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["lora", "finetune", "distill", "instruct"])
def test_a_recipe_trains_and_its_loss_falls(
    store: h.Store, parent: Grown, teacher: Grown, tmp_path: Path, kind: str
) -> None:
    settings: dict[str, Any] = {"steps": 12, "batch_size": 4, "lr": 1e-3, "dtype": "float32"}
    if kind == "instruct":
        settings |= {"max_new_tokens": 16, "temperature": 1.0, "leave_out": ()}
    parents = [parent, teacher] if kind in ("distill", "instruct") else [parent]
    child = store.grow(h.recipe(kind, data=rows(tmp_path), **settings), parents)
    assert child.record.made.device == GPU.title
    found = losses(child)
    assert found[-1] < found[0]


def test_preference_trains(store: h.Store, parent: Grown, tmp_path: Path) -> None:
    data = rows(tmp_path, rejected="an old oak tree")
    recipe = h.recipe("preference", data=data, steps=8, batch_size=4, lr=1e-3, dtype="float32")
    found = losses(store.grow(recipe, [parent]))
    assert found[-1] < found[0]


def test_the_first_loss_is_the_processors(store: h.Store, parent: Grown, tmp_path: Path) -> None:
    recipe = h.recipe("lora", data=rows(tmp_path), steps=1, batch_size=4, dtype="float32")
    there, here = (losses(store.grow(recipe, [parent], device=each))[0] for each in (GPU, CPU))
    assert there == pytest.approx(here, abs=1e-4)


def test_a_study_and_an_evaluation_run(store: h.Store, parent: Grown, tmp_path: Path) -> None:
    from heredity.evals.run import Evaluation

    application = Path(__file__).parents[2] / "examples" / "support-desk.toml"
    study = h.Study(h.StudySpec([parent], application, probes="core", out=tmp_path / "study"), store=store)
    study.run()
    name = json.loads((tmp_path / "study" / "runs.jsonl").read_text().splitlines()[0])["engine"]
    assert GPU.card in name
    assert Evaluation([parent], store=store, out=tmp_path / "evals").run()
