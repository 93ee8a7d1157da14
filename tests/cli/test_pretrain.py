"""`heredity pretrain`: a base is made, found again by its name, and mistakes are one line with the file."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from heredity.cli import main
from heredity.lineage.store import Store
from tests.recipes.test_pretrain import recipe as recipe
from tests.support.corpora import small_corpus as small_corpus
from tests.support.errors import check_refused, run_here

SHORT = ("--tokens", "1024", "--evaluations", "1")


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))


def test_a_base_is_made_once_and_a_second_name_is_said_not_to_be_given(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", str(recipe), *SHORT]) == 0
    first = capsys.readouterr()
    assert first.out.startswith("tiny  ") and "already exists" not in first.err
    assert "warning: Only " in first.err and "For 20, raise tokens or pairs" in first.err
    assert main(["pretrain", str(recipe), *SHORT, "--name", "other"]) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "already exists as 'tiny', and a model has one name: 'other' is not used" in again.err
    check_refused(run_here("pretrain", str(recipe), *SHORT, "--seed", "1"), "bad-usage", ["tiny"])


@pytest.mark.parametrize(
    ("given", "code", "named"),
    [
        (("--heads", "3"), "bad-input", [2, 3]),
        (("--head-dim", "15"), "bad-input", [15]),
        (("--size", "10"), "bad-input", [10]),
    ],
)
def test_a_shape_that_cannot_be_is_one_line_with_the_file(
    recipe: Path, given: tuple[str, ...], code: str, named: list[int]
) -> None:
    text = "".join(line for line in recipe.read_text().splitlines(True) if not line.startswith("kv_heads"))
    recipe.write_text(text + "kv_heads = 2\n")
    check_refused(run_here("pretrain", str(recipe), *given), code, ["base.toml", *named])


def test_a_base_is_continued_with_from(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", str(recipe), *SHORT]) == 0
    assert main(["pretrain", str(recipe), *SHORT, "--from", "tiny", "--name", "further"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("further  ")
    assert Store().get("further").record.parents == (Store().get("tiny").record.id,)
    assert main(["models", "--tree"]) == 0 and "└─ further" in capsys.readouterr().out
    check_refused(run_here("pretrain", str(recipe), *SHORT, "--from", "nobody"), "unknown-name", ["nobody"])
