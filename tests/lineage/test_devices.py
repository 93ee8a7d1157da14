"""Where a store computes: the device reaches engines and recipes, and no id depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from heredity.cli import main
from heredity.core.errors import Unavailable, UsageError
from heredity.core.host import CPU, Device
from heredity.core.records import Model
from heredity.engines import scripted
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Description, Grown
from heredity.recipes import ComputingRecipe
from tests.core.test_host import with_gpus
from tests.support.errors import raises

pytest.importorskip("torch")


@dataclass(frozen=True)
class Named(ComputingRecipe):
    """A recipe whose child holds no more than the name of its device."""

    kind = "lora"

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        (out / "config.json").write_text("{}", "utf-8")
        (out / "model.safetensors").write_bytes(b"the same on every device")
        return Description(f"made on {self.device}", "none", "MIT", "safetensors")


def test_the_record_names_the_device_and_the_id_does_not_depend_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 2)
    here = Store(tmp_path / "a", device="cpu").grow(Named()).record
    there = Store(tmp_path / "b", device="cpu").grow(Named(), device="cuda:1").record
    assert (here.name, here.made.device) == ("made on cpu", "cpu")
    assert (there.name, there.made.device) == ("made on cuda:1", "cuda:1 Card 1")
    assert here.id == there.id and here.recipe == there.recipe
    assert Store(tmp_path / "b").by_id(there.id).record == there


def test_a_recipe_that_computes_nowhere_has_no_device(tmp_path: Path) -> None:
    (model := tmp_path / "model").mkdir()
    store = Store(tmp_path / "store")
    assert store.get("scripted:leaky").record.made.device is UNSET
    with raises(UsageError, "unknown-name", mentions=["gpu7"]):
        Store(model, device="gpu7")


def test_models_of_a_store_take_the_gpus_in_turn_and_a_named_one_takes_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 2)
    store = Store(tmp_path)
    assert [str(store.device()) for _ in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [str(Store(tmp_path, device="cuda:1").device()) for _ in range(2)] == ["cuda:1", "cuda:1"]
    assert store.device(CPU) == CPU
    with raises(Unavailable, "unavailable", mentions=["cuda:5"]):
        Store(tmp_path, device="cuda:5").device()


def test_an_engine_gets_the_device_of_its_store_or_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 2)
    given: list[Device | None] = []

    def load(model: Model, folder: Path, tuning: Path | None, device: Device | None, watch: object) -> Any:
        given.append(device)
        return scripted.load(scripted_record, folder)

    store = Store(tmp_path, device="cuda:1")
    scripted_record = store.get("scripted:leaky").record
    grown = store.grow(Named())
    monkeypatch.setattr("heredity.engines.torch.engine.load", load)
    load_engine(grown, store)
    load_engine(grown, store, device=Device("cuda", 0))
    assert given == [Device("cuda", 1), Device("cuda", 0)]


@pytest.mark.parametrize("verb", ["study", "eval", "serve", "ask", "repair", "tamper", "pretrain", "inherit"])
def test_every_verb_that_computes_has_the_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert "--device DEVICE" in capsys.readouterr().out


@pytest.mark.parametrize(("recipe", "has_it"), [("lora", True), ("instruct", True), ("merge", False)])
def test_a_derivation_has_the_option_if_it_computes(
    recipe: str, has_it: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["derive", recipe, "--help"]) == 0
    assert ("--device DEVICE" in capsys.readouterr().out) == has_it


def test_a_word_that_is_no_device_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "scripted:leaky", "hello", "--device", "gpu"]) == 2
    assert "'gpu' is not a device" in capsys.readouterr().err
