"""The generated references are what the code's help texts and docstrings give."""

from __future__ import annotations

import pytest

from tests.support.tools import load

reference = load("reference")


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    """Write them again: python tools/reference.py"""
    written = (reference.FOLDER / name).read_text("utf-8")
    assert written == reference.PAGES[name](), f"docs/reference/{name} is stale: python tools/reference.py"


def test_every_verb_and_every_public_name_has_a_place() -> None:
    import heredity
    from heredity.cli import SECTIONS

    commands, library = (reference.PAGES[name]() for name in ("cli.md", "api.md"))
    verbs = [verb for section in SECTIONS.values() for verb in section]
    assert [verb for verb in verbs if f"### heredity {verb}\n" not in commands] == []
    public = [name for name in heredity.__all__ if not name.startswith("_")]
    assert [name for name in public if f"## {name}\n" not in library] == []


def test_the_library_page_shows_no_sentinel_of_a_serializer() -> None:
    page = reference.PAGES["api.md"]()
    assert "UNSET" not in page and "UnsetType" not in page
