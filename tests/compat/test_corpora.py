"""Corpora of 9797035 are opened, shown, built to the same bytes, and half-built ones are finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import old_version as old

pytest.importorskip("tokenizers")

TABLE = old.table("corpora")["corpora"]


@pytest.fixture
def shelf(place: Path, corpora: Path) -> Path:
    """The sources and recipes in the current folder, without what was built of them."""
    pytest.importorskip("PIL")
    for name in ("texts", "drawn", "listed"):
        shutil.copytree(corpora / name, place / name)
    return place


@pytest.mark.parametrize("name", TABLE)
def test_it_is_shown_as_it_was_built(place: Path, corpora: Path, name: str) -> None:
    card = json.loads((corpora / name / "corpus.json").read_bytes())
    shown = json.loads(old.done("corpus", "show", corpora / name, "--json"))
    old.assert_same(card, shown, f"corpus show {name} --json")
    old.done("corpus", "show", corpora / name)


@pytest.mark.parametrize("name", TABLE)
def test_its_recipe_comes_to_the_same_corpus(shelf: Path, corpora: Path, name: str) -> None:
    old.done("corpus", "build", f"{name}.toml", "--workers", 1)
    card = json.loads(Path(name, "corpus.json").read_bytes())
    then = json.loads((corpora / name / "corpus.json").read_bytes())
    if card["versions"] != then["versions"]:
        pytest.skip("made with other versions of the tokenizer's library")
    assert card["fingerprint"] == TABLE[name]["fingerprint"], "it is another corpus by its fingerprint"
    for path in sorted((corpora / name).iterdir()):
        if path.suffix in (".bin", ".idx"):
            assert (Path(name) / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", TABLE)
def test_a_build_that_was_stopped_is_finished(shelf: Path, corpora: Path, name: str) -> None:
    """What the old one left is taken over, or begun anew; the corpus is the same."""
    shutil.copytree(corpora / f".half-{name}.making", shelf / f".half-{name}.making")
    old.done("corpus", "build", f"{name}.toml", "--out", f"half-{name}", "--workers", 1)
    card = json.loads(Path(f"half-{name}", "corpus.json").read_bytes())
    then = json.loads((corpora / name / "corpus.json").read_bytes())
    if card["versions"] == then["versions"]:
        assert card["fingerprint"] == TABLE[name]["fingerprint"]
    assert not (shelf / f".half-{name}.making").exists()
