"""A recipe's mistakes are named by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from heredity.core import registry
from heredity.core.errors import BadInput
from heredity.corpus import recipe as recipes
from heredity.corpus.sources import CorpusSource
from heredity.corpus.steps import DocumentTransform, Duplicates, Filter
from tests.support.corpora import ROOT
from tests.support.errors import raises

SOURCE = '[[source]]\nname = "a"\nkind = "text"\npath = "t"\n'


def read(tmp_path: Path, text: str) -> recipes.CorpusRecipe:
    (tmp_path / "r.toml").write_text(text)
    return recipes.read(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'x'\n", ("bad-input", ["r.toml"])),
        (
            SOURCE + "[[stepp]]\nkind = 'scrub'\n",
            ("unknown-key", ["r.toml:5", "stepp", "step"]),
        ),
        (SOURCE.replace("text", "txt"), ("unknown-name", ["r.toml:3", "txt", "text"])),
        (
            SOURCE + "[[step]]\nkind = 'gopher_qualty_filter'\n",
            ("unknown-name", ["r.toml:6", "gopher_quality_filter"]),
        ),
        (SOURCE + "[[step]]\n", ("missing-key", ["r.toml:5", "c4_paragraph_filter"])),
        (
            SOURCE + "[[step]]\nkind='scrub'\n[[step]]\nkind='scrub'\nmial=true\n",
            ("unknown-key", ["r.toml:9", "mail"]),
        ),
        (SOURCE + "[[step]]\nkind='scrub'\nmail='yes'\n", ("wrong-type", ["r.toml:7", "bool", "str"])),
        (SOURCE + "weight = -1\n", ("bad-setting", ["weight", "r.toml:5", "0"])),
        (SOURCE + "weight = 1\n" + SOURCE.replace('"a"', '"b"'), ("missing-key", ["r.toml:6", "b"])),
        (SOURCE + SOURCE, ("name-twice", ["r.toml:6", "a"])),
        (SOURCE + "[shards]\nvalidation = 1.5\n", ("bad-setting", ["validation", "r.toml:6"])),
        (SOURCE + "[tokenizer]\nvocabulary = 100\n", ("bad-setting", ["vocabulary", "r.toml:6", "256"])),
        (SOURCE + "[tokenizer]\nsplit = 'bert'\n", ("unknown-name", ["r.toml:6", "bert"])),
        (
            SOURCE + "[[step]]\nkind='language'\nkeep=['xx']\n",
            ("unknown-name", ["r.toml:5", "xx", "ar"]),
        ),
        (SOURCE + "[[source]\n", ("bad-input", ["r.toml:5"])),
        ("seed = -1\n" + SOURCE, ("bad-setting", ["r.toml:1", "seed", "2^63", "-1"])),
        ("seed = 9223372036854775808\n" + SOURCE, ("bad-setting", ["r.toml:1", "seed", "2^63"])),
        (
            SOURCE + "[[canary]]\ntext = 'x'\nrepeats = 100000000\n",
            ("bad-setting", ["repeats", "r.toml:7", "1,000,000"]),
        ),
        (SOURCE + "repeat = 3\n", ("bad-input", ["r.toml:5", "repeat = 3"])),
        (
            SOURCE + f"[tokenizer]\nspecial = {[*recipes.SPECIAL, 'the']}\n",
            ("bad-setting", ["r.toml:6", "the"]),
        ),
        ("seed = 'x'\n" + SOURCE, ("wrong-type", ["seed", "r.toml:1"])),
    ],
)
def test_a_mistake_is_named_by_its_line(tmp_path: Path, text: str, message: tuple[str, list[str]]) -> None:
    with raises(BadInput, *message):
        read(tmp_path, text)


def test_the_recipe_in_the_documents_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "children.md").read_text(encoding="utf-8")
    found = read(tmp_path, page.split("```toml\n")[1].split("```")[0])
    assert len(found.sources) == 1 and len(found.steps) == 5 and found.mixture.tokens == 10_000_000


def test_settings_name_no_place(tmp_path: Path) -> None:
    settings = read(tmp_path, SOURCE + "[[step]]\nkind = 'near_duplicates'\n").settings()
    assert "path" not in settings["sources"][0]
    assert settings["steps"] == [
        {"n_grams": 5, "num_buckets": 14, "hashes_per_bucket": 8, "seed": 1, "kind": "near_duplicates"}
    ]


def test_every_file_of_the_open_folders_has_what_the_folder_promises() -> None:
    from importlib import import_module

    for name in registry.names("corpus.sources"):
        assert issubclass(import_module(f"heredity.corpus.sources.{name}").SOURCE, CorpusSource), name
    for name in registry.names("corpus.steps"):
        step = import_module(f"heredity.corpus.steps.{name}").STEP
        assert issubclass(step, (Filter, DocumentTransform, Duplicates)), name
        step().check()
