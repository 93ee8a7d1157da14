"""Models are removed whole and renamed, and what is needed is no garbage; also beside other processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from heredity.core.errors import Busy, Refused, UnknownName, UsageError
from heredity.core.files import Lock
from heredity.core.records import Reply
from heredity.lineage.removal import (
    delete_garbage,
    find_garbage,
    find_stored,
    remove_models,
    rename_model,
    tree_bytes,
)
from heredity.lineage.store import Store, key_of
from heredity.lineage.types import Description, Grown
from heredity.study.plan import write_plan
from heredity.view.index import index_path
from heredity.view.places import OpenStudy
from tests.support import small_study
from tests.support.errors import Done, check_refused, raises, run_here
from tests.support.small_study import small_plan


class Toy:
    kind = "toy"

    def __init__(self, name: str) -> None:
        self.name = name

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        save_file({"w": np.ones(4, np.float32)}, out / "model.safetensors")
        return Description(self.name, "toys", "MIT", "safetensors")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three models: `parent`, its `child`, and the `grandchild` of that."""
    store = Store(tmp_path / "store")
    parent = store.grow(Toy("parent"))
    child = store.grow(Toy("child"), parent)
    store.grow(Toy("grandchild"), child)
    return store


def names(store: Store) -> list[str]:
    return [model.name for model in store.models()]


def remove(store: Store, *wanted: str, is_forced: bool = False) -> int:
    return remove_models(store, [find_stored(store, each) for each in wanted], is_forced=is_forced).n_bytes


# --- removing ---------------------------------------------------------------------------------------


def test_a_removed_model_is_gone_with_its_notes_and_frees_its_bytes(store: Store) -> None:
    model = store.get("grandchild").record
    store.ready(model)
    note = store.root / "verified" / f"{model.id}.json"
    assert note.exists()
    n_bytes = tree_bytes(store.root / "models" / model.id)
    assert remove(store, model.id[:8]) == n_bytes > 0
    assert names(store) == ["child", "parent"] and not note.exists()
    assert not [path for path in (store.root / "tmp").iterdir() if path.is_dir()]


def test_a_parent_stays_until_its_children_go_with_it_or_it_is_forced(store: Store) -> None:
    with raises(Refused, "refused", mentions=["parent", "child"]):
        remove(store, "parent")
    with raises(Refused, "refused", mentions=["grandchild"]):
        remove(store, "parent", "child")
    assert len(names(store)) == 3
    remove(store, "child", is_forced=True)
    assert "not in this store" in store.draw(store.get("grandchild").record)
    remove(store, "grandchild", "grandchild", "parent")
    assert names(store) == []


def test_a_name_that_is_no_model_of_the_store_removes_nothing(store: Store) -> None:
    for name in ("parents", "call:os:getcwd", "scripted:leaky", "abc"):
        with raises(UnknownName, "unknown-name", mentions=[name]):
            find_stored(store, name)
    store.grow(Toy("parent"), store.get("child"))
    with raises(UsageError, "bad-usage", mentions=["parent"]):
        find_stored(store, "parent")


def test_a_model_with_a_damaged_record_is_removed_by_the_start_of_its_id(store: Store) -> None:
    home = store.root / "models" / store.get("grandchild").record.id
    (home / "model.json").write_text("{")
    remove(store, home.name[:6])
    assert not home.exists() and store.damaged() == []


@pytest.mark.slow
def test_a_crash_while_files_are_deleted_leaves_no_half_model(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends where it begins to delete: its folder in tmp is what the next one clears."""
    home = store.root / "models" / store.get("grandchild").record.id
    code = (
        "import os, shutil, sys; from heredity.lineage import removal, store;"
        "shutil.rmtree = lambda *a, **k: os.kill(os.getpid(), 9);"
        "s = store.Store(sys.argv[1]);"
        "removal.remove_models(s, [removal.find_stored(s, 'grandchild')])"
    )
    assert subprocess.run([sys.executable, "-c", code, str(store.root)], check=False).returncode == -9
    assert not home.exists() and names(store) == ["child", "parent"] and store.damaged() == []
    (found,) = find_garbage(store)
    assert found.kind == "killed" and found.n_bytes > 0
    assert delete_garbage(store, [found]) == found.n_bytes and find_garbage(store) == []


def test_nothing_is_removed_while_a_model_is_being_recorded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [find_stored(store, "grandchild")]
    real = os.replace
    taken: list[str] = []

    def recorded_meanwhile(source: Any, target: Any) -> None:
        """As another process: the lock under which models are recorded is held by the removal."""
        with raises(Busy, "busy"):
            Lock(store.root / "tmp").__enter__()
        taken.append(str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", recorded_meanwhile)
    remove_models(store, wanted)
    assert len(taken) == 1


# --- renaming ---------------------------------------------------------------------------------------


def test_a_renamed_model_keeps_its_id_and_its_files(store: Store) -> None:
    before = store.get("child").record
    assert rename_model(store, "child", "tickets").id == before.id
    after = store.get("tickets").record
    assert after.id == before.id and store.verify(after) == []
    assert store.made_by(Toy("child"), [store.get("parent")]) is not None, "it is not made again"
    with raises(UnknownName, "unknown-name", mentions=["child"]):
        store.get("child")


@pytest.mark.parametrize(
    ("new", "code"),
    [
        ("parent", "name-twice"),
        ("smollm2-135m-instruct", "name-twice"),
        ("a/b", "bad-usage"),
        ("-x", "bad-usage"),
        ("a b", "bad-usage"),
        ("call:x", "bad-usage"),
        ("x\x1b[2J", "bad-usage"),
        ("n" * 101, "bad-usage"),
    ],
)
def test_a_name_that_would_not_be_found_is_refused(store: Store, new: str, code: str) -> None:
    with raises(UsageError, code):
        rename_model(store, "child", new)
    assert "child" in names(store)


def test_a_model_elsewhere_keeps_its_name_which_is_its_address(store: Store) -> None:
    ref = "remote:openai:x@http://127.0.0.1:9/v1"
    store.keep(store.get(ref))
    with raises(UsageError, "bad-usage"):
        rename_model(store, ref, "mine")


# --- garbage ----------------------------------------------------------------------------------------


def fill(path: Path, n_bytes: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(n_bytes))
    return path


def test_garbage_is_found_by_kind_and_what_is_needed_is_not(store: Store) -> None:
    model = store.get("child").record
    gone = "0" * 32
    garbage = {
        fill(store.downloads / "tiny" / "model.part", 300).parent: "download",
        fill(store.root / "tmp" / "abc" / "child" / "x").parent.parent: "killed",
        fill(store.root / "training" / key_of(model.recipe, model.parents) / "1.pt").parent: "training",
        fill(store.root / "verified" / f"{gone}.json"): "note",
        fill(store.root / "tuning" / gone): "note",
        fill(store.root / "scores" / gone / "a-8.safetensors").parent: "scores",
        fill(store.root / "scores" / "a-8.safetensors"): "scores",
    }
    needed = [
        fill(store.root / "training" / gone / "1.pt"),
        fill(store.root / "verified" / f"{model.id}.json"),
        fill(store.root / "tuning" / "shape-0123456789abcdef"),
        fill(store.root / "scores" / model.id / "a-8.safetensors"),
        fill(store.root / "held" / "tiny.json"),
        fill(store.downloads / "empty" / ".lock", 0),
    ]
    found = find_garbage(store)
    assert {each.path: each.kind for each in found} == garbage and found[0].kind == "download"
    assert delete_garbage(store, found) == sum(each.n_bytes for each in found) == 900
    assert find_garbage(store) == [] and all(path.exists() for path in needed)
    assert names(store) == ["child", "grandchild", "parent"]


def test_the_index_of_a_study_is_garbage_once_its_folder_is_gone(store: Store, tmp_path: Path) -> None:
    kept, gone = (small_study_folder(tmp_path / name) for name in ("kept", "gone"))
    indices = [OpenStudy("x", "x", f, index_path(f, store.root)) for f in (kept, gone)]
    for study in indices:
        study.refresh()
    damaged = fill(store.root / "view" / "damaged.sqlite")
    shutil.rmtree(gone)
    found = find_garbage(store)
    assert {(each.kind, each.path) for each in found} == {("index", indices[1].path), ("index", damaged)}
    assert delete_garbage(store, found) == sum(each.n_bytes for each in found) > 0
    assert find_garbage(store) == []
    assert {path.stem for path in (store.root / "view").iterdir()} == {indices[0].path.stem}


def small_study_folder(folder: Path) -> Path:
    write_plan(folder, small_plan())
    small_study.write_rows(folder, small_plan(), {})
    return folder


def test_what_a_process_holds_is_no_garbage_and_is_not_deleted(store: Store) -> None:
    parts = fill(store.downloads / "tiny" / "model.part").parent
    bench = fill(store.root / "tmp" / "abc" / "x").parent
    with Lock(parts), Lock(bench):
        assert find_garbage(store) == []
    found = find_garbage(store)
    assert len(found) == 2
    with Lock(parts), Lock(bench):  # a process has begun in between
        assert delete_garbage(store, found) == 0
    assert (parts / "model.part").exists() and (bench / "x").exists()


def test_answers_are_forgotten_on_demand_only(store: Store) -> None:
    with store.cache() as cache:
        for n in range(400):
            cache.put(str(n), Reply(0, "p", os.urandom(2000).hex()))
        cache.flush()
        assert find_garbage(store) == []
        (found,) = find_garbage(store, with_answers=True)
        assert found.kind == "answers" and delete_garbage(store, [found]) > 0
        assert cache.get("1") is None, "another process with the cache open goes on"
        cache.put("new", Reply(0, "p", "text"))
    with store.cache() as cache:
        assert cache.get("new") is not None


# --- the commands -----------------------------------------------------------------------------------


@pytest.fixture
def run(store: Store, tmp_path: Path) -> Any:
    def heredity(*args: str, **more: Any) -> Done:
        env = {"HEREDITY_STORE": str(store.root), "COLUMNS": "80"}
        return run_here(*args, cwd=tmp_path, env=env, **more)

    return heredity


def test_rm_refuses_what_an_unfinished_study_needs(store: Store, run: Any, tmp_path: Path) -> None:
    plan, model = small_plan(), store.get("grandchild").record
    planned = msgspec.structs.replace(plan.models[0], id=model.id)
    write_plan(tmp_path / "runs" / "one", msgspec.structs.replace(plan, models=(planned, plan.models[1])))
    check_refused(run("rm", "grandchild"), "refused", mentions=["runs/one", "planned"])
    done = run("rm", "grandchild", "--force")
    assert done.returncode == 0 and "removed grandchild" in done.stderr and "freed" in done.stderr
    check_refused(run("rm", "parent"), "refused", mentions=["child"])


def test_gc_lists_without_a_terminal_and_deletes_with_yes(store: Store, run: Any) -> None:
    part = fill(store.downloads / "tiny" / "model.part", 3000)
    done = run("gc")
    assert done.returncode == 0 and "downloads/tiny" in done.stdout and part.exists()
    assert "3.0 kB can be freed" in done.stderr and max(map(len, done.stdout.splitlines())) <= 80
    assert "3.0 kB freed" in run("gc", "--yes").stderr and not part.exists()
    assert "Nothing to delete" in run("gc").stderr


def test_models_shows_the_size_of_the_store(store: Store, run: Any) -> None:
    shutil.rmtree(store.root / "tmp")
    assert "3 models, " in run("models").stderr
    assert run("rename", "child", "tickets").returncode == 0
    assert "tickets" in run("models").stdout
