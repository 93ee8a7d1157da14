"""The phases of recipes that write weights: in order, and counted by tensors up to the last one."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")

from heredity.core.progress import Progress
from heredity.formats.gguf import read_gguf
from heredity.formats.safetensors_io import read_all
from heredity.lineage.store import Store
from heredity.recipes import recipe
from tests.support.tiny_models import make_model


def phases(seen: list[Progress]) -> list[str]:
    return [name for name, _ in groupby(each.phase for each in seen if each.phase)]


def counted(seen: list[Progress]) -> list[Progress]:
    return [each for each in seen if each.unit == "tensors"]


def test_a_gguf_is_converted_then_written_then_hashed(tiny_gguf: Path, tmp_path: Path) -> None:
    store, seen = Store(tmp_path), list[Progress]()
    parent = store.pull(str(tiny_gguf))
    with store.report.to(seen.append):
        store.ready(parent)
    assert [name for name in phases(seen) if name != "checking files"] == [
        "reading the header", "loading the libraries", "preparing the model", "converting", "writing",
        "writing the tokenizer", "hashing files",
    ]  # fmt: skip
    n_tensors = len(read_gguf(tiny_gguf).tensors)
    counts = counted(seen)
    assert (counts[0].n_done, counts[-1].n_total) == (0, n_tensors)
    assert {each.model for each in seen if each.phase in ("converting", "writing")} == {parent.record.name}


@pytest.mark.parametrize(
    ("kind", "settings", "n_parents"),
    [
        ("quantize", {"to": "q8_0"}, 1),
        ("quantize", {"to": "int8"}, 1),
        ("quantize", {"to": "rtn4"}, 1),
        ("merge", {"method": "linear"}, 2),
    ],
)
def test_a_recipe_counts_the_tensors_that_it_writes(
    kind: str, settings: dict[str, object], n_parents: int, tmp_path: Path
) -> None:
    store, seen = Store(tmp_path / "store"), list[Progress]()
    parent = store.pull(str(make_model(tmp_path / "one", "llama")))
    store.grow(recipe(kind, watch=seen.append, **settings), [parent] * n_parents)
    (count,) = {each.n_total for each in counted(seen)}
    assert count >= len(read_all(parent.folder)) - 1  # a tied head is not written
    assert counted(seen)[0].n_done == 0 and phases(seen)[0] == "converting"


def test_an_int8_parent_is_converted_by_the_watch_of_its_store(tmp_path: Path) -> None:
    store, seen = Store(tmp_path / "store"), list[Progress]()
    parent = store.pull(str(make_model(tmp_path / "one", "llama")))
    child = store.grow(recipe("quantize", to="int8"), [parent])
    with store.report.to(seen.append):
        store.whole(child)
    assert counted(seen) and "converting" in phases(seen)


def test_a_model_without_files_has_none_to_check(tmp_path: Path) -> None:
    store, seen = Store(tmp_path / "store"), list[Progress]()
    kept = store.keep(store.get("remote:openai:tiny@http://127.0.0.1:9/v1"))
    with store.report.to(seen.append):
        assert store.verify(kept.record) == []
        store.ready(store.get(kept.record.name))
    assert not seen


def test_files_are_checked_under_the_name_of_their_model(tmp_path: Path) -> None:
    store, seen = Store(tmp_path / "store"), list[Progress]()
    parent = store.pull(str(make_model(tmp_path / "one", "llama")))
    with store.report.to(seen.append):
        assert store.verify(parent.record) == []
    checked = [each for each in seen if each.phase]
    assert phases(seen) == ["checking files"] and {each.model for each in checked} == {parent.record.name}
    assert checked[0].n_total == len(parent.record.files)
