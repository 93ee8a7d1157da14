"""Models that the fast engine lacks go out like others: the engine of transformers is the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")

from heredity.deploy import export
from heredity.lineage.store import Store
from heredity.recipes.instruct import Instruct
from heredity.recipes.lora import Lora
from heredity.train.data.chat import Data
from tests.support.architectures import make

DATA = Data.of("rows", [(f"the quick fox {i}", "jumps over a lazy dog") for i in range(8)])
FEW = {"steps": 2, "batch_size": 4, "dtype": "float32"}


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "bloom"])
def test_any_architecture_goes_out_and_is_read_back(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "store")
    model = store.pull(str(make(tmp_path / name, name)))
    (parity,) = export.export(store, model, "hf", tmp_path / "out").parities
    assert parity.n > 0 and parity.largest <= parity.tolerance


def test_an_adapter_of_any_architecture_goes_out_in_both_forms(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    base = store.pull(str(make(tmp_path / "gpt2", "gpt2")))
    child = store.grow_once(Lora(DATA, **FEW, lr=1e-3, rank=4), [base])
    for form in ("adapter", "hf"):
        done = export.export(store, child, form, tmp_path / form)
        assert all(p.left_out or (p.n and p.largest <= p.tolerance) for p in done.parities)
    assert done.fidelity is not None and done.fidelity.n > 32


def test_a_teacher_of_any_architecture_writes_answers(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    model = store.pull(str(make(tmp_path / "gpt2", "gpt2")))
    recipe = Instruct(DATA, **FEW, lr=1e-3, max_new_tokens=4, leave_out=())
    child = store.grow_once(recipe, [model, model])
    assert (child.folder / "answers.jsonl").read_text().count("\n") == 8
