"""A named model without pinned hashes is held as it was first seen, against a hub that changes its mind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heredity.core.errors import Damaged, Refused, Unavailable, UsageError, WrongHash
from heredity.lineage.catalog import Entry, Hub, catalogue
from heredity.lineage.store import Store
from heredity.recipes.pull import recipe
from tests.support.errors import raises
from tests.support.model_sources import Server, left_over, sha256
from tests.support.played_hub import FIRST, REPO, SECOND, Play


def _changed(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    data = files[name]
    if name.endswith(".json"):
        return {**files, name: json.dumps({**json.loads(data), "note": "new"}).encode()}
    return {**files, name: data[:-1] + bytes([data[-1] ^ 1])}


def test_the_first_pull_records_the_commit_and_the_hash_of_every_file(
    store: Store, play: Play, files: dict[str, bytes]
) -> None:
    play(files)
    model = store.pull("tiny")
    seen = recipe.read(store.root / "held", "tiny")
    assert seen is not None and (seen.repo, seen.revision) == (REPO, FIRST)
    assert seen.files == {name: sha256(data) for name, data in files.items()}
    assert {f.path: f.sha256 for f in seen.listed}["model.safetensors"] == sha256(files["model.safetensors"])
    assert (model.record.name, model.record.family, model.record.licence) == ("tiny", "llama3", "MIT")
    assert model.record.recipe.settings == {"name": "tiny"}


def test_a_model_that_is_there_is_not_asked_for_again(
    store: Store, play: Play, files: dict[str, bytes], server: Server
) -> None:
    play(files)
    first = store.pull("tiny")
    server.files.clear()
    server.pages.clear()
    assert store.pull("tiny") == first


def test_a_newer_revision_of_the_hub_changes_nothing(
    store: Store, play: Play, files: dict[str, bytes], tmp_path: Path
) -> None:
    play(files)
    first = store.pull("tiny")
    play(_changed(files, "config.json"), SECOND)
    other = Store(tmp_path / "other")
    (other.root / "held").mkdir(parents=True)
    (other.root / "held" / "tiny.json").write_bytes((store.root / "held" / "tiny.json").read_bytes())
    assert other.pull("tiny").record.id == first.record.id  # the files are gone there, what is held is not


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_other_bytes_under_the_same_commit_are_refused(
    store: Store, play: Play, files: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    play(files)
    store.pull("tiny")
    (store.root / "models").rename(tmp_path / "lost")
    play(_changed(files, name))
    with raises(WrongHash, "hash-mismatch", mentions=["tiny", name, "tiny@main"]):
        store.pull("tiny")
    assert store.models() == []


@pytest.mark.parametrize("name", ["extra.json", "chat_template.jinja"])
def test_a_new_file_under_the_same_commit_is_refused_before_a_byte_of_weights(
    store: Store, play: Play, files: dict[str, bytes], tmp_path: Path, server: Server, name: str
) -> None:
    play(files)
    store.pull("tiny")
    (store.root / "models").rename(tmp_path / "lost")
    play({**files, name: b"{}"})
    server.asked.clear()
    with raises(WrongHash, "hash-mismatch", mentions=[name]):
        store.pull("tiny")
    assert not any("resolve" in path for path in server.asked)


def test_a_commit_that_the_hub_has_lost_names_the_way_on(
    store: Store, play: Play, files: dict[str, bytes], tmp_path: Path, server: Server
) -> None:
    play(files)
    store.pull("tiny")
    (store.root / "models").rename(tmp_path / "lost")
    server.pages.clear()
    play(_changed(files, "config.json"), SECOND)
    server.errors[f"api/models/{REPO}/revision/{FIRST}"] = (404, "RevisionNotFound")
    with raises(Unavailable, "unavailable", mentions=["tiny@main", FIRST[:12]]):
        store.pull("tiny")
    named = store.pull("tiny@main").record
    assert named.name == "tiny@main" and SECOND in named.notes["source"]
    assert store.get("tiny@main").record == named
    seen = recipe.read(store.root / "held", "tiny")
    assert seen is not None and seen.revision == FIRST  # a named revision replaces nothing


def test_an_interrupted_first_pull_holds_its_commit(
    store: Store, play: Play, files: dict[str, bytes], server: Server
) -> None:
    play(files)
    kept = server.files.pop(f"{REPO}/resolve/{FIRST}/model.safetensors")
    with pytest.raises(Unavailable):
        store.pull("tiny")
    play(_changed(files, "config.json"), SECOND)
    server.files[f"{REPO}/resolve/{FIRST}/model.safetensors"] = kept
    assert FIRST in store.pull("tiny").record.notes["source"]


def test_a_torn_record_of_what_is_held_is_named(store: Store, play: Play, files: dict[str, bytes]) -> None:
    play(files)
    (store.root / "held").mkdir(parents=True)
    (store.root / "held" / "tiny.json").write_text("{")
    with raises(Damaged, "damaged", mentions=["tiny.json"]):
        store.pull("tiny")


def test_a_revision_of_a_pinned_model_and_an_empty_one_are_refused(store: Store) -> None:
    with raises(UsageError, "bad-usage", mentions=["smollm2-135m-instruct"]):
        store.pull("smollm2@main")
    with raises(UsageError, "bad-usage", mentions=["qwen3-8b@main"]):
        store.pull("qwen3-8b@")


def test_a_name_of_the_catalogue_that_is_not_pulled_says_how_to_get_it(store: Store) -> None:
    with raises(Unavailable, "model-not-pulled", mentions=["heredity pull qwen3-8b@main"]):
        store.get("qwen3-8b@main")


# --- code and copies ---


def test_code_of_a_known_architecture_is_left_out_and_said(
    store: Store, play: Play, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads(files["config.json"])
    named = json.dumps({**config, "auto_map": {"AutoConfig": "configuration_tiny.Tiny"}}).encode()
    play({**files, "config.json": named, "configuration_tiny.py": b"print()"})
    with raises(Refused, "runs-code", mentions=["configuration_tiny.py"]):
        store.pull("tiny")
    entry = Entry("phi", "MIT", "safetensors", Hub(REPO), own_code=True)
    monkeypatch.setitem(catalogue(), "tiny", entry)
    model = store.pull("tiny")
    assert json.loads((model.folder / "config.json").read_text()) == config
    assert not list(model.folder.rglob("*.py")) and "config.json" in model.record.notes["code"]
    assert store.pull("tiny") == model


@pytest.mark.parametrize(
    "copies", [["consolidated.safetensors"], ["original/model.safetensors", "original/params.json"]]
)
def test_a_second_copy_of_the_weights_is_not_fetched(
    store: Store, play: Play, files: dict[str, bytes], server: Server, copies: list[str]
) -> None:
    play({**files, **dict.fromkeys(copies, b"never read")})
    assert {file.path for file in store.pull(f"hf:{REPO}").record.files} == set(files)
    assert not any(copy in path for copy in copies for path in server.asked)


# --- a hub that says no ---


def test_a_gated_model_says_what_to_do(
    store: Store, play: Play, files: dict[str, bytes], server: Server
) -> None:
    play(files, gated="manual")
    server.errors |= {f"{REPO}/resolve/{FIRST}/{name}": (403, "GatedRepo") for name in files}
    with raises(Unavailable, "hub-gated", mentions=[f"/{REPO}", "HF_TOKEN"]):
        store.pull("tiny")
    assert left_over(store) == [str(store.root / "held" / "tiny.json")]


def test_a_missing_repository_or_revision_is_told_apart(
    store: Store, play: Play, files: dict[str, bytes], server: Server
) -> None:
    play(files)
    server.errors[f"api/models/{REPO}/revision/v9"] = (404, "RevisionNotFound")
    with raises(Unavailable, "hub-revision-missing", mentions=["v9", f"hf:{REPO}@main"]):
        store.pull(f"hf:{REPO}@v9")
    server.errors["api/models/someone/none"] = (401, "RepoNotFound")
    with raises(Unavailable, "unavailable", mentions=["someone/none"]):
        store.pull("hf:someone/none")
