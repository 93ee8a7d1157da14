"""A recipe's mistakes are named by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from heredity.core import registry
from heredity.core.errors import BadInput
from heredity.corpus import recipe as recipes
from heredity.corpus.sources import Source
from heredity.corpus.steps import Duplicates, Filter, Writer
from tests.corpus.conftest import ROOT

SOURCE = '[[source]]\nname = "a"\nkind = "text"\npath = "t"\n'


def read(tmp_path: Path, text: str) -> recipes.Recipe:
    (tmp_path / "r.toml").write_text(text)
    return recipes.read(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'x'\n", r"r\.toml: has no source"),
        (
            SOURCE + "[[stepp]]\nkind = 'scrub'\n",
            r"r\.toml:5: no key is named 'stepp'\. Did you mean 'step'\?",
        ),
        (SOURCE.replace("text", "txt"), r"r\.toml:3: no source is named 'txt'\. Did you mean 'text'\?"),
        (
            SOURCE + "[[step]]\nkind = 'gopher_qualty_filter'\n",
            r"r\.toml:6: .*Did you mean 'gopher_quality_filter'",
        ),
        (SOURCE + "[[step]]\n", r"r\.toml:5: needs a kind\. Known: c4_paragraph_filter, "),
        (
            SOURCE + "[[step]]\nkind='scrub'\n[[step]]\nkind='scrub'\nmial=true\n",
            r"r\.toml:9: .*Did you mean 'mail'",
        ),
        (SOURCE + "[[step]]\nkind='scrub'\nmail='yes'\n", r"r\.toml:7: Expected `bool`, got `str`"),
        (SOURCE + "weight = -1\n", r"r\.toml:5: weight must be above 0"),
        (SOURCE + "weight = 1\n" + SOURCE.replace('"a"', '"b"'), r"r\.toml:6: source 'b' has no weight"),
        (SOURCE + SOURCE, r"r\.toml:6: two sources are named 'a'"),
        (SOURCE + "[shards]\nvalidation = 1.5\n", r"r\.toml:6: validation must be"),
        (SOURCE + "[tokenizer]\nvocabulary = 100\n", r"r\.toml:6: vocabulary must hold 256 bytes"),
        (SOURCE + "[tokenizer]\nsplit = 'bert'\n", r"r\.toml:6: Invalid enum value 'bert'"),
        (
            SOURCE + "[[step]]\nkind='language'\nkeep=['xx']\n",
            r"r\.toml:5: it cannot tell xx\. It tells: ar, ",
        ),
        (SOURCE + "[[source]\n", r"r\.toml:5: malformed TOML"),
        ("seed = -1\n" + SOURCE, r"r\.toml:1: seed must be at least 0 and below 2\^63, not -1"),
        ("seed = 9223372036854775808\n" + SOURCE, r"r\.toml:1: seed must be at least 0 and below 2\^63"),
        (
            SOURCE + "[[canary]]\ntext = 'x'\nrepeats = 100000000\n",
            r"r\.toml:7: repeats may be 1,000,000 at most",
        ),
        (SOURCE + "repeat = 3\n", r"r\.toml:5: repeat = 3 has no effect without weights"),
        (
            SOURCE + f"[tokenizer]\nspecial = {[*recipes.SPECIAL, 'the']}\n",
            r"r\.toml:6: special tokens may not be words, .*: 'the'",
        ),
        ("seed = 'x'\n" + SOURCE, r"r\.toml:1: seed must be a whole number"),
    ],
)
def test_a_mistake_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read(tmp_path, text)


def test_the_recipe_in_the_documents_is_one_and_every_kind_is_explained(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "corpus.md").read_text(encoding="utf-8")
    found = read(tmp_path, page.split("```toml\n")[1].split("```")[0])
    assert len(found.sources) == 2 and len(found.steps) == 7 and found.mixture.tokens == 10_000_000
    for folder in ("sources", "steps"):
        assert all(f"`{name}`" in page for name in registry.names(f"train/corpus/{folder}"))


def test_settings_name_no_place(tmp_path: Path) -> None:
    settings = read(tmp_path, SOURCE + "[[step]]\nkind = 'near_duplicates'\n").settings()
    assert "path" not in settings["sources"][0]
    assert settings["steps"] == [
        {"n_grams": 5, "num_buckets": 14, "hashes_per_bucket": 8, "seed": 1, "kind": "near_duplicates"}
    ]


def test_every_file_of_the_open_folders_has_what_the_folder_promises() -> None:
    from importlib import import_module

    for name in registry.names("train/corpus/sources"):
        assert issubclass(import_module(f"heredity.corpus.sources.{name}").SOURCE, Source), name
    for name in registry.names("train/corpus/steps"):
        step = import_module(f"heredity.corpus.steps.{name}").STEP
        assert issubclass(step, (Filter, Writer, Duplicates)), name
        step().check()
