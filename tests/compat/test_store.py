"""A store of 9797035: every model is listed, verified and found again by the command that grew it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import heredity as h
from tests.support import old_version as old

TABLE = old.table("store")
AGAIN = ("prune", "merge", "quantize", "guard", "pull")  # no training: the same bytes on every machine


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old.unpack("store", tmp_path_factory.mktemp("old-store"))


@pytest.fixture
def stocked(place: Path, unpacked: Path, corpora: Path) -> Path:
    """The current folder: the store, the files and the corpora that its models came from."""
    shutil.copytree(unpacked / "store", place / "store")
    for name in ("corpus", "pictures"):
        (place / name).symlink_to(corpora / name)
    tiny = next(model for model in TABLE["models"] if model["name"] == "tiny")
    shutil.copytree(place / "store" / "models" / tiny["id"] / "files", place / "tiny")
    return place


def _grown(row: dict[str, Any]) -> str:
    return f"{row['argv'][1]}-{row['name']}"


def test_every_model_is_listed_with_its_recipe(stocked: Path) -> None:
    listed = {model.id: model for model in h.Store().models()}
    assert set(listed) == {model["id"] for model in TABLE["models"]}
    for model in TABLE["models"]:
        record = listed[model["id"]]
        recipe = {"kind": record.recipe.kind, "settings": json.loads(json.dumps(record.recipe.settings))}
        assert (record.name, record.format) == (model["name"], model["format"])
        assert list(record.parents) == model["parents"] and recipe == model["recipe"], model["name"]
    assert json.loads(old.done("models", "--json"))
    assert "tuned-q4" in old.done("models", "--tree")


def test_every_model_is_whole_and_gives_its_own_id(stocked: Path) -> None:
    """The id is computed from the record anew: renamed settings must be hashed under their old names."""
    store = h.Store()
    problems = {model.name: found for model in store.models() if (found := store.verify(model))}
    assert not problems
    old.done("verify", "tuned", "q4", "adapter")


@pytest.mark.parametrize("row", TABLE["grown"], ids=_grown)
def test_the_command_of_then_finds_its_model(stocked: Path, row: dict[str, Any]) -> None:
    """Not found again, it would be trained again, under another id."""
    before = {path.name for path in (stocked / "store" / "models").iterdir()}
    out = old.done(*row["argv"])
    after = {path.name for path in (stocked / "store" / "models").iterdir()}
    assert row["argv"][0] == "pull" or out.split()[:2] == [row["name"], row["id"]]
    assert after == before, f"{row['name']} was grown anew"


def test_models_that_nothing_is_drawn_for_are_grown_to_the_same_ids(stocked: Path) -> None:
    """From the old parents, their own records taken away."""
    for row in TABLE["grown"]:
        kind = row["argv"][1] if row["argv"][0] == "derive" else row["argv"][0]
        if kind in AGAIN and not (kind == "guard" and "q4" in row["name"]):
            shutil.rmtree(stocked / "store" / "models" / row["id"])
            old.done(*row["argv"])
            assert h.Store().get(row["name"]).record.id == row["id"], f"{row['name']} has another id"


@pytest.mark.parametrize("row", TABLE["references"], ids=lambda row: row["ref"])
def test_a_reference_is_the_model_that_it_was(stocked: Path, row: dict[str, Any]) -> None:
    found = h.Store().get(row["ref"]).record
    assert json.loads(json.dumps(found.recipe.settings)) == row["settings"]
    assert row["ref"].startswith("call:") or found.id == row["id"]  # a function's source is python's own


@pytest.mark.parametrize("name", ["adapter", "int8"])
def test_a_model_answers(stocked: Path, name: str) -> None:
    old.done("ask", name, "fox", "--max-tokens", 2)


@pytest.mark.parametrize(("name", "form"), [("adapter", "adapter-merged"), ("q4", "q4-bf16")])
def test_its_whole_weights_are_the_ones_that_are_there(stocked: Path, name: str, form: str) -> None:
    """The recipe that nobody names, merge_adapter or dequantize, is found again."""
    store = h.Store()
    known = next(model for model in TABLE["models"] if model["name"] == form)
    assert store.whole(store.get(name)).record.id == known["id"]
    assert len(store.models()) == len(TABLE["models"])


def test_a_training_that_was_stopped_goes_on(stocked: Path) -> None:
    """From its checkpoint: the steps before it are as they were; it is no new training beside the old."""
    half = TABLE["half"]
    assert [path.name for path in (stocked / "store" / "training").iterdir()] == [half["folder"]]
    kept = (stocked / "store" / "training" / half["folder"] / "training.jsonl").read_bytes()
    kept_losses = [json.loads(row)["loss"] for row in kept.splitlines()]
    old.done(*half["argv"])
    made = h.Store().get("half")
    rows = [json.loads(row)["loss"] for row in (made.folder / "training.jsonl").read_bytes().splitlines()]
    assert rows[:8] == kept_losses[:8], "it did not go on from the checkpoint behind step 8"
    assert rows == pytest.approx(half["curve"], rel=0.02)
    assert json.loads(json.dumps(made.record.recipe.settings)) == half["settings"]
    assert not (stocked / "store" / "training" / half["folder"]).exists()


@pytest.mark.parametrize("name", ["lineage", "rubric", pytest.param("panel", marks=pytest.mark.proof)])
def test_a_study_of_stored_models_is_opened_and_estimates_the_same(
    stocked: Path, studies: Path, name: str
) -> None:
    folder = Path(shutil.copytree(studies / name, stocked / name))
    then = json.loads((studies / "expected" / f"{name}.json").read_bytes())["estimates"]
    before = (folder / "responses.jsonl").read_bytes()
    old.done("study", name)
    assert (folder / "responses.jsonl").read_bytes() == before
    old.assert_same(then, json.loads((folder / "estimates.json").read_bytes()), f"estimates.json of {name}")
