"""Growing, recording, verifying and drawing models, with a recipe small enough to see through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

import heredity
from heredity.core.errors import (
    Damaged,
    HeredityError,
    NotComparable,
    Refused,
    Unavailable,
    UnknownName,
    UsageError,
)
from heredity.core.files import hash_file
from heredity.core.records import Model, digest
from heredity.lineage.references import is_elsewhere
from heredity.lineage.store import RUN, RunInProgress, Store, grow, scripted
from heredity.lineage.types import Description, Grown
from tests.support.damage import flip_bit
from tests.support.errors import names, raises


@dataclass(frozen=True)
class Toy:
    """Writes `value` into one tensor, or does whatever `write` does instead."""

    value: float = 1.0
    name: str = "toy"
    write: Callable[[Path], None] | None = None

    kind = "toy"

    def settings(self) -> dict[str, Any]:
        return {"value": self.value}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        if self.write:
            self.write(out)
        else:
            (out / "sub").mkdir()
            save_file({"w": np.full(4, self.value, np.float32)}, out / "sub" / "model.safetensors")
            (out / "config.json").write_text("{}")
        return Description(self.name, "toys", "MIT", "safetensors", notes={"about": "tiny"})


@dataclass(frozen=True)
class SlowToy(Toy):
    """A toy that keeps checkpoints in a folder of its own."""

    def at(self, folder: Path) -> SlowToy:
        return replace(self, write=lambda out: self._look(folder, out))

    def _look(self, folder: Path, out: Path) -> None:
        (out / "run.json").write_bytes((folder / RUN).read_bytes())
        save_file({"w": np.full(4, self.value, np.float32)}, out / "model.safetensors")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_grown_model_is_recorded_with_its_files_hashed(store: Store) -> None:
    child = store.grow(Toy())
    record = msgspec.json.decode((child.folder.parent / "model.json").read_bytes(), type=Model)
    assert record == child.record
    assert [file.path for file in record.files] == ["config.json", "sub/model.safetensors"]
    assert record.id == digest([record.recipe, record.parents, record.files])
    assert (record.licence, record.notes) == ("MIT", {"about": "tiny"})
    assert store.verify(record) == []
    assert store.models() == [record]


def test_while_a_long_recipe_works_its_folder_says_what_is_made(store: Store) -> None:
    parent = store.grow(Toy(2.0))
    child = store.grow(SlowToy(3.0, "tuned"), parent)
    run = msgspec.json.decode((child.folder / "run.json").read_bytes(), type=RunInProgress)
    assert (run.name, run.recipe, run.parents) == ("tuned", child.record.recipe, (parent.record.id,))
    assert not list((store.root / "training").glob("*"))


def test_the_id_depends_on_recipe_parents_and_files_not_on_place_or_time(
    store: Store, tmp_path: Path
) -> None:
    child = store.grow(Toy())
    elsewhere = Store(tmp_path / "elsewhere").grow(Toy())
    assert child.record.id == elsewhere.record.id
    others = [store.grow(Toy(2.0)), store.grow(Toy(), [child])]
    assert len({child.record.id, *(other.record.id for other in others)}) == 3


def test_one_parent_needs_no_list_and_the_record_names_this_version(store: Store) -> None:
    parent = store.grow(Toy())
    assert parent.record.made.versions["heredity"] == heredity.__version__
    child = store.grow(Toy(2.0), parent)
    assert child.record.parents == (parent.record.id,) and grow(Toy(2.0), parent) == child


@pytest.mark.parametrize("given", ["lora", heredity.Lora, None], ids=["kind", "class", "nothing"])
def test_what_is_no_recipe_is_refused_with_how_to_write_one(store: Store, given: Any) -> None:
    for make in (store.grow, store.grow_once):
        with raises(UsageError, "bad-usage", mentions=["h.Lora(", "h.recipe("]):
            make(given, [])
    assert store.models() == []


def test_a_child_that_exists_is_not_made_again_by_grow_once(store: Store) -> None:
    runs: list[Path] = []

    def write(out: Path) -> None:
        runs.append(out)
        (out / "config.json").write_text("{}")
        save_file({"w": np.zeros(4, np.float32)}, out / "model.safetensors")

    first = store.grow_once(Toy(write=write), [])
    assert store.grow_once(Toy(write=write), []) == first and len(runs) == 1
    assert store.grow(Toy(write=write)).record.id == first.record.id and len(runs) == 2


def test_growing_an_id_that_exists_returns_the_existing(store: Store) -> None:
    first = store.grow(Toy(name="first"))
    assert store.grow(Toy(name="second")) == first
    assert len(store.models()) == 1


def test_growing_again_heals_damaged_files(store: Store) -> None:
    child = store.grow(Toy())
    (child.folder / "config.json").unlink()
    assert store.verify(child.record)
    assert store.verify(store.grow(Toy()).record) == []


def test_the_module_function_grows_in_the_default_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path))
    assert grow(Toy()).folder.is_relative_to(tmp_path)


def nothing(out: Path) -> None:
    pass


def only_a_config(out: Path) -> None:
    (out / "config.json").write_text("{}")


def empty_weights(out: Path) -> None:
    (out / "model.safetensors").touch()


def unfinished(out: Path) -> None:
    save_file({"w": np.ones(2, np.float32)}, out / "model.safetensors")
    (out / "model-2.safetensors.part").write_bytes(b"half")


def failing(out: Path) -> None:
    (out / "model.safetensors").write_bytes(b"half")
    raise RuntimeError("power cut")


def linking(out: Path) -> None:
    save_file({"w": np.ones(2, np.float32)}, out / "model.safetensors")
    (out / "config.json").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (nothing, Damaged),
        (only_a_config, Damaged),
        (empty_weights, Damaged),
        (unfinished, Damaged),
        (failing, RuntimeError),
        (linking, Refused),
    ],
)
def test_an_empty_or_partial_result_is_refused_and_leaves_nothing(
    store: Store, write: Callable[[Path], None], error: type[Exception]
) -> None:
    with pytest.raises(error):
        store.grow(Toy(write=write))
    assert store.models() == []
    assert [p for p in store.root.rglob("*") if p.is_file() and p.name not in (".lock", ".lock.pid")] == []


def test_nothing_is_grown_from_a_damaged_parent(store: Store) -> None:
    parent = store.grow(Toy())
    (parent.folder / "config.json").write_text("[]")
    with raises(Damaged, "damaged", mentions=["toy", "config.json"]):
        store.grow(Toy(2.0), [parent])


def test_verify_names_each_problem(store: Store) -> None:
    child = store.grow(Toy())
    weights = child.folder / "sub" / "model.safetensors"
    flip_bit(weights)
    (child.folder / "config.json").unlink()
    (child.folder / "extra.py").write_text("print()")
    problems = store.verify(child.record)
    assert [problem.split(": ")[1] for problem in problems] == [
        "missing",
        "its SHA-256 is not the recorded one",
        "not in the record",
    ]
    weights.write_bytes(weights.read_bytes()[:-1])
    assert any("bytes, " in problem for problem in store.verify(child.record))


def test_verify_notices_a_record_that_was_edited(store: Store) -> None:
    child = store.grow(Toy())
    edited = msgspec.structs.replace(child.record, parents=("0" * 32,))
    assert "does not give its own id" in store.verify(edited)[-1]


def test_a_model_is_found_by_name_and_by_the_start_of_its_id(store: Store) -> None:
    child = store.grow(Toy())
    assert store.get("toy") == child
    assert store.get(child.record.id[:6]) == child


def test_an_unknown_model_is_answered_with_the_nearest(store: Store) -> None:
    store.grow(Toy(name="support-desk"))
    with raises(UnknownName, "unknown-name", mentions=["suport-desk", "support-desk"]):
        store.get("suport-desk")
    with raises(UnknownName, "unknown-name", mentions=["smollm2-135m-instruct"]):
        store.get("smolm2-135m-instruct")


def test_a_model_of_the_catalogue_that_is_not_here_says_how_to_get_it(store: Store) -> None:
    with raises(Unavailable, "model-not-pulled", mentions=["heredity pull smollm2"]):
        store.get("smollm2")


def test_two_models_of_one_name_must_be_told_apart(store: Store) -> None:
    ids = {store.grow(Toy(value)).record.id for value in (1.0, 2.0)}
    with raises(UsageError, "bad-usage", mentions=["2", "toy"]) as caught:
        store.get("toy")
    assert all(ident[:12] in str(caught.value) for ident in ids)


def test_ancestors_come_once_and_nearest_first(store: Store) -> None:
    old = store.grow(Toy(1.0, "old"))
    left, right = store.grow(Toy(2.0, "left"), [old]), store.grow(Toy(3.0, "right"), [old])
    merged = store.grow(Toy(4.0, "merged"), [left, right])
    assert [model.name for model in store.ancestors(merged.record)] == ["left", "right", "old"]


def test_the_tree_shows_every_line_of_descent(store: Store) -> None:
    old = store.grow(Toy(1.0, "old"))
    left, right = store.grow(Toy(2.0, "left"), [old]), store.grow(Toy(3.0, "right"), [old])
    merged = store.grow(Toy(4.0, "merged"), [left, right])
    lines = store.draw(merged.record).splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["merged", "├─ left"]
    assert lines[2].startswith("│  └─ old") and lines[4].startswith("   └─ old")
    assert old.record.id[:12] in lines[2]


def test_a_bad_record_is_named_and_does_not_block_the_others(store: Store) -> None:
    child, other = store.grow(Toy()), store.grow(Toy(2.0, "other"), [store.grow(Toy())])
    path = child.folder.parent / "model.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "schema": 99, "new": 1}))
    assert store.models() == [other.record]
    assert [(p, names(why, 99)) for p, why in store.damaged()] == [(path, True)]
    for name in ("toy", child.record.id[:6]):
        with raises(NotComparable, "schema-mismatch", mentions=["99"]):
            store.get(name)
    with raises(NotComparable, "schema-mismatch", mentions=["99"]):
        store.ancestors(other.record)
    path.write_text(path.read_text()[:-20])
    with raises(Damaged, "damaged", mentions=["model.json"]):
        store.get("toy")
    assert store.grow(Toy()).record.id == child.record.id  # growing it again heals it
    assert store.damaged() == []


@pytest.mark.parametrize("stray", ["../../secret", "/etc/hostname", "a/../../b", "..\\b", ""])
def test_a_recorded_path_outside_its_folder_is_refused_when_it_is_read(store: Store, stray: str) -> None:
    child = store.grow(Toy())
    path = child.folder.parent / "model.json"
    record = json.loads(path.read_text())
    record["files"][0]["path"] = stray
    path.write_text(json.dumps(record))
    with raises(Refused, "refused"):
        store.get("toy")
    path.write_text(json.dumps({**record, "files": [], "id": "../" + child.record.id}))
    with raises(Damaged, "damaged"):
        store.get("toy")


def test_a_model_whose_bytes_changed_does_not_answer(store: Store) -> None:
    child = store.grow(Toy())
    assert store.ready(child) == child
    weights = child.folder / "sub" / "model.safetensors"
    flip_bit(weights)
    with raises(Damaged, "damaged", mentions=["model.safetensors"]):
        store.ready(child)
    flip_bit(weights)
    assert store.ready(child.record) == child


def test_files_that_nobody_touched_are_hashed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    child = store.grow(Toy())
    store.ready(child)
    monkeypatch.setattr("heredity.lineage.store.hash_file", lambda path: pytest.fail(f"hashed {path} again"))
    assert store.ready(child) == child


def test_what_was_hashed_to_be_recorded_is_not_hashed_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = store.grow(Toy())
    with monkeypatch.context() as changed:
        changed.setattr("heredity.lineage.store.hash_file", lambda path: pytest.fail(f"hashed {path}"))
        assert store.ready(child).record == child.record
    weights = child.folder / "sub" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # of the same size
    with raises(Damaged, "damaged", mentions=["toy"]):
        store.ready(child)


def test_a_file_that_was_written_while_it_was_hashed_is_hashed_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hash_then_write(path: Path) -> str:
        found = hash_file(path)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        return found

    with monkeypatch.context() as changed:
        changed.setattr("heredity.lineage.store.hash_file", hash_then_write)
        child = store.grow(Toy())
    with raises(Damaged, "damaged", mentions=["toy"]):
        store.ready(child)


def test_a_child_grows_in_its_parents_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "default"))
    parent = store.grow(Toy())
    assert grow(Toy(2.0, "child"), [parent]).folder.is_relative_to(store.root)
    other = Store(tmp_path / "other").grow(Toy(3.0))
    with raises(UsageError, "bad-usage", mentions=["2"]):
        grow(Toy(4.0), [parent, other])


def test_a_scripted_model_has_a_record_and_no_files(store: Store) -> None:
    model = store.get("scripted:careful")
    assert model == scripted("scripted:careful")
    assert (model.record.format, model.record.family, model.record.files) == ("scripted", "scripted", ())
    assert model.record.id != scripted("scripted:helpful").record.id
    assert store.verify(model.record) == []


GROWING = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import Toy, save_file, np
from heredity.lineage.store import Store
def slow(out):
    save_file({"w": np.ones(2, np.float32)}, out / "model.safetensors")
    print("inside", flush=True)
    time.sleep(60)
Store(Path(sys.argv[1])).grow(Toy(write=slow))
"""


@pytest.mark.slow
def test_a_killed_run_leaves_only_a_folder_that_a_later_run_clears(store: Store) -> None:
    command = [sys.executable, "-c", GROWING, str(store.root), str(Path(__file__).parent)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None and worker.stdout.readline() == "inside\n"
    alive = [p for p in (store.root / "tmp").iterdir() if p.is_dir()]
    store.grow(Toy(5.0))  # while the other lives, its folder stays
    assert alive and all(p.exists() for p in alive)
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    assert [model.recipe.settings for model in store.models()] == [{"value": 5.0}]
    store.grow(Toy(6.0))
    assert [p for p in (store.root / "tmp").iterdir() if p.is_dir()] == []


@pytest.mark.slow
def test_two_processes_that_grow_one_child_end_with_one_child(store: Store) -> None:
    code = GROWING.replace("time.sleep(60)", "time.sleep(0.5)")
    command = [sys.executable, "-c", code, str(store.root), str(Path(__file__).parent)]
    workers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    (model,) = store.models()
    assert store.verify(model) == []


@pytest.mark.slow
def test_the_lineage_and_its_recipes_load_no_torch() -> None:
    code = "import sys, heredity.lineage.store, heredity.recipes.pull.recipe, heredity.recipes.dequantize\n"
    code += "__import__('heredity.lineage.catalog').lineage.catalog.catalogue()\n"
    code += "heavy = {'torch', 'transformers', 'httpx', 'huggingface_hub', 'gguf', 'numpy'}\n"
    code += "print(sorted(heavy & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_public_names_are_these() -> None:
    assert heredity.Store is Store and issubclass(Damaged, HeredityError)


def test_a_name_means_the_recorded_model_whatever_lies_in_the_working_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("toy", "smollm2-135m-instruct"):
        (tmp_path / name).mkdir()
    assert is_elsewhere("toy", store)  # only the folder exists
    store.grow(Toy())
    assert not is_elsewhere("toy", store) and is_elsewhere("./toy", store)
    assert not is_elsewhere("smollm2-135m-instruct", store)  # of the catalogue
