"""Models in storage elsewhere: a folder and fsspec's memory, as a bucket is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import msgspec
import pytest

pytest.importorskip("torch")

from heredity.core.errors import Damaged, HeredityError, Unavailable, UnknownName, UsageError
from heredity.core.records import FileHash
from heredity.lineage.store import Store, hash_file, identity, read_record, walk
from heredity.lineage.types import Grown
from heredity.recipes.pull.storage import Storage
from heredity.recipes.quantize import Quantize
from tests.support.damage import flip_bit
from tests.support.errors import check_refused, raises, run_here
from tests.support.tiny_models import make_model


@pytest.fixture
def child(tmp_path: Path) -> Grown:
    """A model in eight bits, with its parent, in a store."""
    store = Store(tmp_path / "store")
    return store.grow(Quantize(to="q8_0"), store.pull(str(make_model(tmp_path / "tiny", "llama"))))


@pytest.fixture
def store(child: Grown, tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize("is_bucket", [False, True])
def test_a_model_comes_back_with_its_ancestors_and_nothing_is_copied_twice(
    store: Store, child: Grown, is_bucket: bool, tmp_path: Path
) -> None:
    url = "memory://team/models" if is_bucket else str(tmp_path / "shared")
    name = child.record.name
    pushed = Storage(url).push(store, [name])
    assert [model.id for model in pushed] == [*child.record.parents, child.record.id]
    assert Storage(url).push(store, [name]) == []
    other = Store(tmp_path / "other")
    found = Storage(url + "/").pull(other, name)
    assert found.record == child.record and not other.verify(found.record)
    assert [model.id for model in other.ancestors(found.record)] == list(child.record.parents)
    when = (found.folder.parent / "model.json").stat().st_mtime_ns
    assert Storage(url).pull(other, child.record.id).record == child.record
    assert (found.folder.parent / "model.json").stat().st_mtime_ns == when


def test_a_store_itself_is_storage(store: Store, child: Grown, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    assert Storage(str(store.root)).pull(other, child.record.name).record == child.record


def test_a_push_that_was_cut_off_is_finished_by_the_next(store: Store, child: Grown, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "shared"))
    storage.push(store, [child.record.name])
    home = tmp_path / "shared" / "models" / child.record.id
    (home / "model.json").unlink()
    (file,) = (home / "files").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UnknownName):
        storage.pull(Store(tmp_path / "other"), child.record.name)
    (home / "model.json").write_text('{"id":')
    assert [model.id for model in storage.push(store, [child.record.name])] == [child.record.id]
    assert storage.pull(Store(tmp_path / "other"), child.record.name).record == child.record


def _other_bytes(home: Path) -> None:
    flip_bit(next((home / "files").iterdir()))


def _short_file(home: Path) -> None:
    path = next((home / "files").iterdir())
    path.write_bytes(path.read_bytes()[:-1])


def _no_file(home: Path) -> None:
    next((home / "files").iterdir()).unlink()


def _cut_record(home: Path) -> None:
    (home / "model.json").write_bytes((home / "model.json").read_bytes()[:50])


def _no_parent(home: Path) -> None:
    for other in home.parent.iterdir():
        if other != home:
            shutil.rmtree(other)


def _other_record(home: Path) -> None:
    record = json.loads((home / "model.json").read_text())
    record["recipe"]["settings"]["to"] = "q4_0"
    (home / "model.json").write_text(json.dumps(record))


def _outside(home: Path) -> None:
    record = json.loads((home / "model.json").read_text())
    record["files"][0]["path"] = "../../../escaped"
    (home / "model.json").write_text(json.dumps(record))


def _pickle(home: Path) -> None:
    """A consistent record of a folder that holds a pickle: its id is right, and its content is refused."""
    (home / "files" / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    record = read_record(home / "model.json")
    paths = [(path, home / "files" / path) for path in walk(home / "files")]
    files = tuple(FileHash(name, path.stat().st_size, hash_file(path)) for name, path in paths)
    ident = identity(record.recipe, record.parents, files)
    record = msgspec.structs.replace(record, files=files, id=ident)
    (home / "model.json").write_bytes(msgspec.json.encode(record))
    home.rename(home.with_name(ident))


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (_other_bytes, "damaged"),
        (_short_file, "damaged"),
        (_no_file, "damaged"),
        (_cut_record, "damaged"),
        (_no_parent, "damaged"),
        (_other_record, "damaged"),
        (_outside, "refused"),
        (_pickle, "runs-code"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_comes_from_storage_is_refused_unless_it_is_whole(
    store: Store, child: Grown, harm: Callable[[Path], None], code: str, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path / "shared"))
    storage.push(store, [child.record.name])
    harm(tmp_path / "shared" / "models" / child.record.id)
    other = Store(tmp_path / "other")
    with raises(HeredityError, code):
        storage.pull(other, child.record.name)
    assert child.record.name not in [model.name for model in other.models()]
    assert not list((tmp_path / "other").rglob("escaped")) and not (tmp_path / "escaped").exists()


def test_a_name_that_is_not_there_is_told_with_those_that_are(
    store: Store, child: Grown, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path / "shared"))
    with raises(Unavailable, "unavailable", [tmp_path / "shared"]):
        storage.pull(store, "tiny")
    storage.push(store, [child.record.name])
    with raises(UnknownName, "unknown-name", [child.record.name, "nothing"]):
        storage.pull(store, "nothing")


def test_a_damaged_model_is_not_pushed(store: Store, child: Grown, tmp_path: Path) -> None:
    _other_bytes(child.folder.parent)
    with raises(Damaged, "damaged", [child.record.name]):
        Storage(str(tmp_path / "shared")).push(store, [child.record.name])


def test_an_address_that_cannot_be_opened_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with raises(UsageError, "bad-usage", ["nowhere"]):
        Storage("nowhere://bucket")

    def missing(*_: object, **__: object) -> object:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with raises(Unavailable, "package-missing", ["s3fs"]):
        Storage("s3://bucket")


def test_push_and_pull_from_the_command_line(
    store: Store, child: Grown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(store.root))
    shared = str(tmp_path / "shared")
    done = run_here("push", child.record.name, "--to", shared)
    assert done.returncode == 0 and child.record.id in done.stdout
    assert "already" in run_here("push", child.record.name, "--to", shared).stderr
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "other"))
    done = run_here("pull", child.record.name, "--from", shared)
    assert done.returncode == 0 and done.stdout.split() == [child.record.name, child.record.id]
    check_refused(run_here("pull", "x", "--from", shared, "--dry-run"), "bad-usage", ["--from"])
