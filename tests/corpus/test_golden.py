"""No byte of a corpus changes under the same version."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
for name in ("pyarrow", "trafilatura", "PIL"):
    pytest.importorskip(name)

from heredity.corpus import recipe as recipes
from heredity.corpus import workspace
from tests.corpus import golden


@pytest.mark.parametrize("name", golden.names())
def test_what_comes_out_is_what_is_held(name: str) -> None:
    held = golden.facts()[name]
    assert held["version"] == golden.version_of(name), (
        f"VERSION was raised: regenerate with `{golden.COMMAND}`"
    )
    if not golden.is_comparable(name):
        pytest.skip(f"held with {held['libraries']}: other libraries may give other bytes")
    assert held["made"] == golden.made(name), golden.advice(name)


def test_every_source_and_step_has_a_version_in_a_file_that_is_there() -> None:
    assert set(golden.facts()) == set(golden.names())
    for name in golden.names():
        assert golden.version_of(name) >= 1
        assert (Path(__file__).parents[2] / golden.place_of(name).partition(" in ")[2]).is_file()


def test_bytes_that_changed_are_not_written_under_the_same_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(golden.FACTS, tmp_path)
    monkeypatch.setattr(golden, "FACTS", tmp_path / golden.FACTS.name)
    before = golden.FACTS.read_bytes()
    language = importlib.import_module("heredity.corpus.steps.language")
    monkeypatch.setattr(language.Language, "ready", lambda *_: lambda batch: language.Judged(()))
    assert golden.main(["step language"]) == 1
    said = capsys.readouterr().err
    assert "raise VERSION in src/" in said and "language.py" in said and golden.COMMAND in said
    assert golden.FACTS.read_bytes() == before
    monkeypatch.setattr(language.Language, "VERSION", language.Language.VERSION + 1, raising=False)
    assert golden.main(["step language"]) == 0
    after = golden.facts()
    assert after["step language"]["version"] == language.Language.VERSION
    assert not golden.is_changed("step language")
    assert after.keys() == json.loads(before).keys()


def test_a_plan_names_the_versions_of_what_its_recipe_has(tmp_path: Path) -> None:
    golden.write_text(tmp_path)
    recipe = recipes.read(tmp_path / "lake.toml")
    assert workspace.versions(recipe) == {
        "text": workspace.TEXT_VERSION,
        "source text": 1,
        "source jsonl": 1,
        "step normalise": 1,
        "step exact_duplicates": 1,
    }
    golden.write_images(tmp_path)
    recipe = recipes.read(tmp_path / "squares.toml")
    assert workspace.versions(recipe) == {"images": workspace.IMAGES_VERSION, "source images": 1}


def test_a_release_that_changes_no_version_goes_on_with_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden.write_text(tmp_path)
    recipe = recipes.read(tmp_path / "lake.toml")
    before = workspace.plan(recipe, [[], []])
    found = workspace.version
    monkeypatch.setattr(workspace, "version", lambda name: "9" if name == "heredity" else found(name))
    assert workspace.plan(recipe, [[], []]) == before
    monkeypatch.setattr(workspace, "version", lambda name: "9" if name == "tokenizers" else found(name))
    assert workspace.plan(recipe, [[], []]) != before
