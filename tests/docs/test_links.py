"""The tree in docs/explanation/architecture.md is the one on disk, and every local link leads somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.support.tools import load

ROOT = Path(__file__).parents[2]
tree = load("tree")


def test_the_tree_in_the_document_is_the_one_on_disk() -> None:
    """Every root file, every package, and every public file of each. Write it again: python tools/tree.py"""
    page = tree.PAGE.read_text("utf-8")
    assert tree.rewritten(page) == page


def test_every_line_of_the_tree_says_what_it_is() -> None:
    known = tree.descriptions(tree.PAGE.read_text("utf-8"))
    assert {path for path, _ in tree.entries()} == set(known)
    assert [path for path, text in known.items() if not text] == []


def slugs(page: Path) -> set[str]:
    """What the headings of a page are linked by."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_local_link_in_the_documents_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target, place in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name} links to {target}"
            assert not place or place in slugs(path), f"{page.name} links to {target}#{place}"


def test_every_file_that_a_document_names_exists() -> None:
    """Of the tests, the benchmarks, the tools and the examples."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"\b((?:tests|bench|tools|examples)/[\w./-]*\w)", page.read_text("utf-8")):
            assert (ROOT / name).exists(), f"{page.relative_to(ROOT)} names {name}"


def test_the_readme_stays_short() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.count("\n") <= 170
    assert len(text.split()) <= 1200
    assert len(re.findall(r"\d+(?:[.,]\d+)*", text)) <= 40


PLACE = re.compile(r"`([\w/]+\.py)`(?::((?:,? `\w+`)+))?")


def test_the_places_to_look_exist() -> None:
    """Each file of "Where to look", and each name that the page gives for it."""
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text("utf-8")
    section = page[page.index("## Where to look") : page.index("## Rules that a machine checks")]
    places = PLACE.findall(section)
    assert len(places) >= 20
    for file, names in places:
        text = (ROOT / "src" / "heredity" / file).read_text("utf-8")
        for name in re.findall(r"\w+", names):
            defined = rf"^\s*(?:def|class) {name}\b|^{name}\b"
            assert re.search(defined, text, re.MULTILINE), f"{file} has no {name}"


def test_every_document_that_the_code_names_exists() -> None:
    files = [path for folder in ("src", "examples", "bench", "tests") for path in (ROOT / folder).rglob("*")]
    for path in [each for each in files if each.suffix in (".py", ".toml")]:
        for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text("utf-8")):
            is_example = path.parent.name == "tools"  # the tests of tools/ name pages that they make up
            assert is_example or (ROOT / page).exists(), f"{path.relative_to(ROOT)} names {page}"


def test_nothing_tells_a_reader_to_install_the_bare_name() -> None:
    """Anybody could register `heredity` on a package index. Every extra that a message names exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    places = [path for folder in ("src", "docs", "examples", ".ci") for path in (ROOT / folder).rglob("*")]
    kinds = (".py", ".md", ".toml", ".yml", ".ipynb", ".jinja", ".js", "")
    for path in [each for each in [*places, *ROOT.glob("*")] if each.is_file() and each.suffix in kinds]:
        text = path.read_text("utf-8")
        bare = re.search(r"pip3? install (?:-\S+ )*[\"']?heredity\b", text)
        assert bare is None, f"{path.relative_to(ROOT)}: {bare[0]}"
        for extra in re.findall(r"how_to_install\([\"']([\w,]+)|pip install [^\n]*-e '?\.\[([\w,]+)", text):
            assert set("".join(extra).split(",")) <= project["optional-dependencies"].keys()
