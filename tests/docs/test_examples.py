"""What the documents show is what the commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.documents import ROOT, blocks, has_examples, matches, pages, run


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in pages() if has_examples(page)], ids=name)
def test_the_examples_of_a_page_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    assert run(page, tmp_path) == []


@pytest.mark.models
@pytest.mark.proof
@pytest.mark.parametrize("page", [page for page in pages() if has_examples(page, True)], ids=name)
def test_the_examples_with_real_models_print_what_the_page_shows(
    page: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    if not pytestconfig.getoption("markexpr"):
        pytest.skip("takes half an hour; ask for it: pytest -m models tests/docs")
    assert run(page, tmp_path, with_models=True) == []


def test_an_ellipsis_stands_for_lines_or_for_a_part_of_one() -> None:
    found = ["a", "b", "took 3 s", "end"]
    assert matches(("a", "...", "took ... s", "end"), found)
    assert matches(("...",), found) and matches((), [])
    assert not matches(("a", "took ... s", "end"), found)
    assert not matches(("a", "b", "took ... minutes", "end"), found)


def test_a_block_is_read_with_its_marks_and_commands() -> None:
    page = "text\n<!-- needs: models -->\n```console\n$ one \\\n    two\nout\n$ three\n```\n"
    (block,) = blocks(page)
    assert block.marks == {"needs": "models"}
    assert [(c.text, c.output, c.line) for c in block.commands()] == [
        ("one \\\n    two", ("out",), 4),
        ("three", (), 7),
    ]
