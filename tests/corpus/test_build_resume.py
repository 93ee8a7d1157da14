"""A build that is killed with SIGKILL goes on where it was, and comes to the bytes of one left alone."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

from heredity.core import registry
from heredity.core.errors import HeredityError
from heredity.corpus import Corpus, workspace
from heredity.corpus import recipe as recipes
from heredity.corpus.build import build
from heredity.lab.corpus import build_corpus
from tests.support.corpora import TOKENIZER, paragraphs
from tests.support.errors import raises
from tests.support.killed_builds import (
    Heard,
    assert_one_at_a_time,
    assert_put_is_built,
    command,
    die,
    files,
    nothing_is_left,
)
from tests.support.processes import ends_after_kills

pytest.importorskip("tokenizers")
not_windows = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

STEPS = ("normalise", "language", "exact_duplicates", "scrub", "near_duplicates", "decontaminate")
N_SOURCES = 8
N_RECORDS = 4 * N_SOURCES + 3  # of each job three stages and its tokens; two comparisons and the tokenizer


def written(folder: Path) -> Path:
    """A recipe over several sources, so that there are several jobs."""
    texts = paragraphs()[:80]
    for number, text in enumerate([*texts, *texts[:8]]):
        path = folder / "texts" / str(number % N_SOURCES) / f"{number:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sources = [
        f'[[source]]\nname = "s{i}"\nkind = "text"\npath = "texts/{i}"\nweight = 1\nrepeat = 9\n'
        for i in range(N_SOURCES)
    ]
    steps = [f"[[step]]\nkind = '{kind}'\n" for kind in STEPS]
    canary = '[[canary]]\ntext = "The locker number of Ada Quill is"\n'
    path = folder / "shelf.toml"
    path.write_text("\n".join([*sources, *steps, canary, TOKENIZER]), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a build left alone, from another folder."""
    folder = tmp_path_factory.mktemp("whole")
    build_corpus(written(folder), folder / "out")
    return files(folder / "out")


@not_windows
@pytest.mark.parametrize(
    ("workers", "moments"),
    [(2, (10,)), *(pytest.param(n, (1, 5, 12, 22), marks=pytest.mark.proof) for n in (1, 2))],
)
def test_a_killed_build_goes_on_to_the_same_bytes(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path, workers: int, moments: tuple[int, ...]
) -> None:
    out, work = tmp_path / "killed", workspace.place_of(tmp_path / "killed")
    given = ["-m", "heredity", *command(recipe, out, workers)]
    ended = ends_after_kills(given, tmp_path, lambda: len(list(work.glob("*/*.done"))), moments)
    assert "reading: 8 of 8 jobs are done already" in ended.stderr
    assert "comparison 1" in ended.stderr
    assert files(out) == whole and nothing_is_left(out)
    Corpus.open(out)


@not_windows
@pytest.mark.parametrize(
    "share", [0.5, *(pytest.param(share, marks=pytest.mark.proof) for share in (0.2, 0.8))]
)
def test_killed_where_a_file_is_written_it_goes_on_from_there(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path, share: float
) -> None:
    assert die(recipe, tmp_path / "killed", int(share * 4.5 * N_RECORDS))
    assert not die(recipe, tmp_path / "killed", 10**9)
    assert files(tmp_path / "killed") == whole
    assert nothing_is_left(tmp_path / "killed")


@not_windows
@pytest.mark.proof
def test_killed_wherever_the_disk_changes_it_comes_to_the_same_bytes(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Every eleventh moment from the first to the last, each a build of its own; then forty kills of one."""
    moment, n_kills = 1, 0
    while die(recipe, tmp_path / "killed", moment):
        assert not die(recipe, tmp_path / "killed", 10**9)
        assert files(tmp_path / "killed") == whole and nothing_is_left(tmp_path / "killed")
        shutil.rmtree(tmp_path / "killed")
        moment, n_kills = moment + 11, n_kills + 1
    assert n_kills > 20
    shutil.rmtree(tmp_path / "killed")
    draw = random.Random()
    n_kills = sum(die(recipe, tmp_path / "killed", draw.randrange(1, 40)) for _ in range(40))
    if not (tmp_path / "killed").exists():
        assert not die(recipe, tmp_path / "killed", 10**9)
    assert n_kills > 10 and files(tmp_path / "killed") == whole


def stopped(recipe: Path, out: Path, n: int) -> None:
    """A build that ends like one that is killed after so many jobs were read."""

    class Stopping(Heard):
        def at(self, what: str, done: int, total: int) -> None:
            if what == "reading" and done == n:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(recipes.read(recipe), out, watch=Stopping())


def test_what_was_done_is_said_and_not_done_again(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    stopped(recipe, tmp_path / "out", 5)
    heard = Heard()
    build(recipes.read(recipe), tmp_path / "out", watch=heard)
    assert heard.lines == ["reading: 5 of 8 jobs are done already"]
    assert heard.done["reading"] == heard.done["hashing"] == 8
    build(recipes.read(recipe), tmp_path / "whole", watch=(alone := Heard()))
    assert not alone.lines
    assert files(tmp_path / "out") == files(tmp_path / "whole") == whole


def test_a_job_whose_file_was_damaged_is_done_again(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    stopped(recipe, tmp_path / "out", 5)
    path = sorted(workspace.place_of(tmp_path / "out").glob("*/*.text"))[2]
    raw = path.read_bytes()
    path.write_bytes(raw[:-9] + b"DAMAGED!\n")
    build(recipes.read(recipe), tmp_path / "out", watch=(heard := Heard()))
    assert heard.lines == ["reading: 4 of 8 jobs are done already"]
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize("what", ["recipe", "file", "version"])
def test_what_changed_since_is_said_and_begun_anew(
    recipe: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(recipe, tmp_path / "out", 5)
    if what == "recipe":
        recipe.write_text(recipe.read_text().replace("'scrub'", "'scrub'\nmail = false"))
        expected = "the recipe"
    elif what == "file":
        path = recipe.parent / "texts" / "3" / "03.txt"
        path.write_text(path.read_text().replace("e", "i"))
        expected = "the files of source 's3'"
    else:
        monkeypatch.setattr(workspace, "TEXT_VERSION", workspace.TEXT_VERSION + 1)
        expected = "heredity or a library"
    build(recipes.read(recipe), tmp_path / "out", watch=(heard := Heard()))
    (line,) = heard.lines
    assert f"{expected} changed since that build was stopped; it starts again" in line
    build(recipes.read(recipe), tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize(("kind", "is_kept"), [("scrub", False), ("c4_quality_filter", True)])
def test_a_step_of_another_version_begins_anew_only_the_builds_that_have_it(
    recipe: Path, tmp_path: Path, kind: str, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(recipe, tmp_path / "out", 5)
    step = registry.load("corpus.steps", kind).STEP
    monkeypatch.setattr(step, "VERSION", step.VERSION + 1, raising=False)
    build(recipes.read(recipe), tmp_path / "out", watch=(heard := Heard()))
    (line,) = heard.lines
    assert ("5 of 8 jobs are done already" in line) == is_kept
    assert ("starts again" in line) != is_kept


def test_a_build_killed_once_the_corpus_was_in_its_place_is_a_built_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_put_is_built(build, Corpus.open, recipe, tmp_path / "out", monkeypatch)


def test_two_builds_do_not_share_a_folder(recipe: Path, tmp_path: Path) -> None:
    assert_one_at_a_time(build, recipe, tmp_path / "out")


def test_a_full_disk_leaves_what_is_done(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise HeredityError("The disk is full", code="disk-full")

    with monkeypatch.context() as patch:
        patch.setattr("heredity.corpus.build.pack", full)
        with raises(HeredityError, "disk-full"):
            build(recipes.read(recipe), tmp_path / "out")
    build(recipes.read(recipe), tmp_path / "out", watch=(heard := Heard()))
    assert len(heard.lines) == 4 and "tokenizing: 8 of 8 jobs" in heard.lines[-1]
