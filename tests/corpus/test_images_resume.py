"""A build of pictures that was killed goes on where it was, and comes to the bytes of one left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

image = pytest.importorskip("PIL.Image")
pytest.importorskip("tokenizers")

from heredity.corpus import ImageCorpus, workspace
from heredity.corpus import images as parts
from heredity.corpus import recipe as recipes
from heredity.corpus.images import build
from heredity.lab.corpus import build_corpus
from tests.support.killed_builds import (
    Heard,
    assert_one_at_a_time,
    assert_put_is_built,
    die,
    files,
    nothing_is_left,
)

not_windows = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
N_SOURCES, EACH = 5, 8
N_MOMENTS = 30  # at least so often the disk changes


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Several sources, each a part of its own; one picture of each is torn and one comes twice."""
    for source in range(N_SOURCES):
        folder = tmp_path / "pictures" / str(source)
        folder.mkdir(parents=True)
        for i in range(EACH):
            path = folder / f"{i}.png"
            points = np.full((8, 8, 3), 40 * source + min(i, EACH - 2), np.uint8)  # the last two are alike
            image.fromarray(points).save(path)
            path.with_suffix(".txt").write_text(f"square {min(i, EACH - 2)} of {source}, a grey one\n")
        (folder / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
        (folder / "drawn.svg").write_text("<svg/>")
    sources = [
        f'[[source]]\nname = "s{i}"\nkind = "images"\npath = "pictures/{i}"\n' for i in range(N_SOURCES)
    ]
    rest = "[picture]\nside = 8\n[tokenizer]\nvocabulary = 270\nleast_count = 1\n[shards]\nvalidation = 0.3\n"
    path = tmp_path / "drawn.toml"
    path.write_text("\n".join([*sources, rest]), encoding="utf-8")
    return path


def stopped(recipe: Path, out: Path, n: int) -> None:
    """A build that ends like one that is killed, before its n-th picture was read."""

    class Stopping(Heard):
        def at(self, what: str, done: int, total: int) -> None:
            super().at(what, done, total)
            if what == "reading" and done == n:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(recipes.read(recipe), out, watch=Stopping())


def whole(recipe: Path) -> dict[str, bytes]:
    card = build_corpus(recipe, recipe.parent / "whole")
    expected = {"drawing": 1, "duplicate": 1, "unreadable": 1}
    assert [row.skipped for row in card.sources] == [expected] * N_SOURCES
    return files(recipe.parent / "whole")


@not_windows
@pytest.mark.parametrize(
    "share", [0.6, *(pytest.param(share, marks=pytest.mark.proof) for share in (0.3, 0.9))]
)
def test_killed_where_a_file_is_written_it_goes_on_from_there(
    recipe: Path, tmp_path: Path, share: float
) -> None:
    assert die(recipe, tmp_path / "killed", int(share * N_MOMENTS))
    assert not die(recipe, tmp_path / "killed", 10**9)
    assert files(tmp_path / "killed") == whole(recipe) and nothing_is_left(tmp_path / "killed")
    ImageCorpus.open(tmp_path / "killed")


@not_windows
@pytest.mark.proof
def test_killed_wherever_the_disk_changes_it_comes_to_the_same_bytes(recipe: Path, tmp_path: Path) -> None:
    expected, moment = whole(recipe), 1
    while die(recipe, out := tmp_path / f"killed-{moment}", moment):
        assert not die(recipe, out, 10**9)
        assert files(out) == expected and nothing_is_left(out)
        moment += 2
    assert moment > N_MOMENTS


def test_parts_that_were_read_are_said_and_not_read_again(recipe: Path, tmp_path: Path) -> None:
    stopped(recipe, tmp_path / "out", 2 * (EACH + 1) + 3)
    build(recipes.read(recipe), tmp_path / "out", watch=(heard := Heard()))
    assert heard.lines == [f"reading: 2 of {N_SOURCES} parts are done already"]
    assert heard.done == {"hashing": N_SOURCES * (EACH + 1), "reading": (N_SOURCES - 2) * (EACH + 1)}
    assert files(tmp_path / "out") == whole(recipe)


def test_a_source_is_read_in_parts_of_so_many_pairs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(recipe)
    monkeypatch.setattr(parts, "_MAX_BUFFERED_PAIRS", 4)
    stopped(recipe, tmp_path / "out", 5)
    build(recipes.read(recipe), tmp_path / "out", watch=(heard := Heard()))
    assert heard.lines == [f"reading: 1 of {3 * N_SOURCES} parts are done already"]
    assert files(tmp_path / "out") == expected


def test_a_part_that_was_damaged_is_read_again(recipe: Path, tmp_path: Path) -> None:
    stopped(recipe, tmp_path / "out", 3 * (EACH + 1) + 1)
    path = sorted(workspace.place_of(tmp_path / "out").glob("*/*.rgb"))[1]
    path.write_bytes(bytes(len(path.read_bytes())))
    build(recipes.read(recipe), tmp_path / "out", watch=(heard := Heard()))
    assert heard.lines == [f"reading: 2 of {N_SOURCES} parts are done already"]
    assert files(tmp_path / "out") == whole(recipe)


@pytest.mark.parametrize("what", ["recipe", "picture", "caption", "version"])
def test_what_changed_since_is_said_and_begun_anew(
    recipe: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(recipe, tmp_path / "out", 2 * (EACH + 1) + 3)
    folder, expected = recipe.parent / "pictures" / "3", "the files of source 's3'"
    if what == "recipe":
        recipe.write_text(recipe.read_text().replace("side = 8", "side = 9"))
        expected = "the recipe"
    elif what == "picture":
        (folder / "1.png").write_bytes((folder / "0.png").read_bytes())
    elif what == "caption":
        (folder / "1.txt").write_text("another square\n")
    else:
        monkeypatch.setattr(workspace, "IMAGES_VERSION", workspace.IMAGES_VERSION + 1)
        expected = "heredity or a library"
    build(recipes.read(recipe), tmp_path / "out", watch=(heard := Heard()))
    (line,) = heard.lines
    assert f"{expected} changed since that build was stopped; it starts again" in line
    assert files(tmp_path / "out") == whole(recipe)


def test_a_build_killed_once_the_corpus_was_in_its_place_is_a_built_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_put_is_built(build, ImageCorpus.open, recipe, tmp_path / "out", monkeypatch)


def test_two_builds_do_not_share_a_folder(recipe: Path, tmp_path: Path) -> None:
    assert_one_at_a_time(build, recipe, tmp_path / "out")
