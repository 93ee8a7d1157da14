"""Small real text (this project's own documents), and recipes over it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from heredity.corpus import recipe as recipes
from heredity.corpus.build import build
from heredity.corpus.steps import DocumentTransform, TransformedBatch
from heredity.corpus.storage import Card
from heredity.corpus.text import TextBatch

ROOT = Path(__file__).parents[2]
TOKENIZER = "[tokenizer]\nvocabulary = 400\nleast_count = 2\n[shards]\nvalidation = 0.2\n"
Build = Callable[..., Card]


def paragraphs() -> list[str]:
    """Paragraphs of real prose, tables and code: documents of this project as they once were.

    A copy, since the counts and the splits of the tests depend on every letter.
    """
    text = (ROOT / "tests" / "corpus" / "prose.md").read_text(encoding="utf-8")
    return [part for part in re.split(r"\n\n+(?=#)", text) if part.strip()]


def write(step: DocumentTransform, batch: TextBatch) -> TransformedBatch:
    """What a step makes of a batch of which nothing is dropped yet."""
    return step.write(batch, np.ones(len(batch), np.bool_))


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with a text file for each of some paragraphs."""
    return write_shelf(tmp_path)


def write_shelf(place: Path) -> Path:
    folder = place / "texts"
    folder.mkdir()
    for number, text in enumerate(paragraphs()[:60]):
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `built` makes of its defaults. Copy it: tests share it."""
    pytest.importorskip("tokenizers")
    place = tmp_path_factory.mktemp("small-corpus")
    _build(place, write_shelf(place))
    return place / "out"


@pytest.fixture
def built(tmp_path: Path, shelf: Path) -> Build:
    """Build a recipe: what is given stands before a small tokenizer; a source over `shelf` before that."""

    def of(
        text: str = "", out: str = "out", source: str = "", tail: str = TOKENIZER, **settings: object
    ) -> Card:
        pytest.importorskip("tokenizers")
        return _build(tmp_path, shelf, text, out, source, tail, **settings)

    return of


def _build(
    place: Path,
    shelf: Path,
    text: str = "",
    out: str = "out",
    source: str = "",
    tail: str = TOKENIZER,
    **settings: object,
) -> Card:
    head = source or f'[[source]]\nname = "shelf"\nkind = "text"\npath = "{shelf.as_posix()}"\n'
    path = place / "recipe.toml"
    path.write_text(f"{head}\n{text}\n{tail}", encoding="utf-8")
    return build(recipes.read(path), place / out, **settings)  # type: ignore[arg-type]
