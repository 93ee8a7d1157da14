"""The work folder of a build, next to the corpus. A killed build resumes in it by the same command.

    .shelf.making/plan.json    the plan: a hash of everything that the result depends on
    .shelf.making/<plan>/      the files of the jobs, and a record of each finished job
    .shelf.making/corpus/      the corpus, until it is complete

Promises: one process at a time. Leftovers of another recipe, other files or another version are never
resumed, and this is reported. Nothing is left once the corpus exists, or after a user's mistake.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import msgspec

from heredity.core.errors import UsageError
from heredity.core.files import Lock, write_atomic
from heredity.core.records import digest, encode
from heredity.corpus import storage, tokenizer
from heredity.corpus.recipe import CorpusRecipe, kind_of

_LIBRARIES = ("numpy", "pillow", "pyarrow", "tokenizers", "trafilatura")
_PLAN = "plan.json"
CODE = "heredity or a library"
# The code that every corpus of text, or of images, uses: batches, splits, tokenizer, mixture, shards. Raise a
# version when its bytes change (tests/corpus/golden.py). Sources and steps have a VERSION each.
TEXT_VERSION = 1
IMAGES_VERSION = 1
RECIPE = "the recipe"


class Watch(Protocol):
    """Receives the progress of a build."""

    def at(self, what: str, done: int, total: int) -> None:
        """The current step, and how many jobs of it are done."""

    def say(self, line: str) -> None:
        """A message for the user."""


class Nobody:
    """A Watch that ignores everything."""

    def at(self, what: str, done: int, total: int) -> None:
        """Ignore it."""

    def say(self, line: str) -> None:
        """Ignore it."""


def place_of(out: Path) -> Path:
    """The work folder of the corpus `out`."""
    return out.with_name(f".{out.name}.making")


@contextmanager
def held(work: Path) -> Iterator[None]:
    """Hold the folder. It stays if the build is stopped, killed or out of disk space; otherwise it is
    removed.

    Raises Busy if another process holds it.
    """
    try:
        with Lock(work):
            try:
                yield
            except UsageError:
                _clear(work)
                raise
            _clear(work)
    finally:
        with suppress(OSError):  # another process may have it by now
            if {path.name for path in work.iterdir()} <= {".lock"}:
                (work / ".lock").unlink(missing_ok=True)
                work.rmdir()


def go_on(work: Path, plan: Mapping[str, str], watch: Watch) -> Path:
    """The folder for the files of the jobs. It holds those of an earlier build if the plan is the same."""
    between = work / digest(plan)
    before = planned(work)
    if before != plan:
        if before:
            names = [name for name in {**plan, **before} if before.get(name) != plan.get(name)]
            what = RECIPE if RECIPE in names else " and ".join(names)
            watch.say(f"{work}: {what} changed since that build was stopped; it starts again.")
        _clear(work)
        between.mkdir(parents=True)
        write_atomic(work / _PLAN, encode(dict(plan)))
    between.mkdir(exist_ok=True)
    for path in between.glob("*.next"):
        path.unlink()
    return between


def plan(recipe: CorpusRecipe, inputs: Iterable[object]) -> dict[str, str]:
    """A hash of each thing that the result depends on, by a name for the user. inputs: the files of each
    source."""
    files = {
        f"the files of source '{source.name}'": digest(each)
        for source, each in zip(recipe.sources, inputs, strict=True)
    }
    named = recipe.tokenizer.folder
    return files | {
        RECIPE: digest(recipe.settings()),
        "the tokenizer": digest(tokenizer.hashes(recipe.root / named) if named else {}),
        CODE: digest(
            [versions(recipe), platform.python_version(), {name: version_of(name) for name in _LIBRARIES}]
        ),
    }


def refuse_other(out: Path, is_made: bool) -> None:
    """Raises UsageError if the corpus exists, unless a build moved it there and was killed before it
    recorded that."""
    if out.exists() and not (is_made and (out / storage.NAME).is_file()):
        raise UsageError(f"{out} exists already. Name another folder, or remove it.")


def emptied(folder: Path) -> Path:
    """Make a folder, or empty it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def versions(recipe: CorpusRecipe) -> dict[str, int]:
    """The version of each part of our own code that a recipe's corpus depends on, by its name."""
    whole = {"text": TEXT_VERSION} if recipe.images is None else {"images": IMAGES_VERSION}
    sources = {f"source {kind_of(each)}": each.VERSION for each in recipe.sources}
    return whole | sources | {f"step {kind_of(each)}": each.VERSION for each in recipe.steps}


def version_of(name: str) -> str:
    """The version of an installed package; "" if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def planned(work: Path) -> dict[str, str]:
    """The plan of the earlier build; empty without one."""
    try:
        return msgspec.json.decode((work / _PLAN).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}


def _clear(work: Path) -> None:
    """Empty the folder. The plan goes last, because it identifies the build of the other files."""
    for path in sorted(work.iterdir(), key=lambda path: path.name == _PLAN):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith(".lock"):
            path.unlink(missing_ok=True)
