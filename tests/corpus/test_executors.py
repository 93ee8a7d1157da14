"""A recipe's steps on datatrove's executors keep the documents that a build here keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from heredity.core.errors import UsageError
from heredity.corpus import recipe as recipes
from heredity.corpus.storage import Card
from heredity.lab.corpus import build_corpus
from tests.support.corpora import TOKENIZER, paragraphs
from tests.support.errors import raises

pytest.importorskip("tokenizers")

ALONE = ("normalise", "language", "gopher_repetition_filter", "c4_paragraph_filter", "scrub", "decontaminate")
SETTINGS = {"c4_paragraph_filter": "min_paragraph_len = 60\n"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Three sources, some documents twice; steps of both kinds."""
    texts = paragraphs()[:90]
    for number, text in enumerate([*texts, *texts[:9]]):
        path = tmp_path / "texts" / str(number % 3) / f"{number:02}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sources = [
        f'[[source]]\nname = "s {i}"\nkind = "markdown"\npath = "texts/{i}"\nweight = {i + 1}\nrepeat = 9\n'
        for i in range(3)
    ]
    (tmp_path / "kept-out.txt").write_text(texts[3], encoding="utf-8")
    steps = [f'[[step]]\nkind = "{kind}"\n{SETTINGS.get(kind, "")}' for kind in (*ALONE, "exact_duplicates")]
    last = '[[step]]\nkind = "decontaminate"\nprobes = false\nsets = ["kept-out.txt"]\n'
    canary = '[[canary]]\ntext = "The locker number of \\"Ada\\" Quill is"\n'
    path = tmp_path / "shelf.toml"
    path.write_text("\n".join(["seed = 3\n", *sources, *steps, last, canary, TOKENIZER]), encoding="utf-8")
    return path


def test_in_several_tasks_the_same_documents_are_kept_and_the_same_tokens_come_out(
    recipe: Path, tmp_path: Path
) -> None:
    pytest.importorskip("datatrove", reason="needs the extra: pip install -e '.[datatrove]'")
    recipes.export(recipes.read(recipe), tmp_path / "spread", tasks=2)
    given = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, str(tmp_path / "spread" / "run.py")]
    subprocess.run(run, env=given, check=True, capture_output=True)

    here, there = (
        build_corpus(path, tmp_path / name)
        for path, name in ((recipe, "here"), (tmp_path / "spread" / "after.toml", "there"))
    )
    assert isinstance(here, Card) and isinstance(there, Card)
    n_alone = 3 * len(ALONE)
    last = here.steps[n_alone - 3 : n_alone]
    for number, row in enumerate(last):
        kept = sorted((tmp_path / "spread" / "kept" / f"{number:03}").glob("*.jsonl"))
        texts = [msgspec.json.decode(line)["text"] for p in kept for line in p.read_bytes().splitlines()]
        assert (len(texts), sum(len(text.encode()) for text in texts)) == (row.documents_out, row.bytes_out)
    assert any(row.documents_in > row.documents_out for row in here.steps[:n_alone])
    assert there.steps == here.steps[n_alone:]
    assert there.shards == here.shards and there.tokenizer == here.tokenizer
    assert there.mixture == here.mixture and there.canaries == here.canaries


def test_what_is_left_of_the_recipe_is_a_recipe(recipe: Path, tmp_path: Path) -> None:
    whole = recipes.read(recipe)
    recipes.export(whole, tmp_path / "spread", tasks=4)
    after = recipes.read(tmp_path / "spread" / "after.toml")
    assert [recipes.kind_of(step) for step in after.steps] == ["exact_duplicates", "decontaminate"]
    assert after.steps[0] == whole.steps[len(ALONE)]
    assert [(s.name, s.weight, s.repeat) for s in after.sources] == [
        (s.name, s.weight, s.repeat) for s in whole.sources
    ]
    assert (after.name, after.seed, after.canaries) == (whole.name, whole.seed, whole.canaries)
    assert (after.mixture, after.tokenizer, after.shards) == (whole.mixture, whole.tokenizer, whole.shards)
    with raises(UsageError, "bad-usage"):
        recipes.export(whole, tmp_path / "spread", tasks=4)


def test_a_recipe_of_which_nothing_can_be_spread_is_refused_with_a_line(recipe: Path, tmp_path: Path) -> None:
    source = recipe.read_text().split("[[step]]")[0]
    recipe.write_text(source)
    with raises(UsageError, "bad-input"):
        recipes.export(recipes.read(recipe), tmp_path / "spread", tasks=4)
    recipe.write_text(source + '[[step]]\nkind = "near_duplicates"\n[[step]]\nkind = "scrub"\n')
    with raises(UsageError, "bad-input", mentions=["near_duplicates"]):
        recipes.export(recipes.read(recipe), tmp_path / "spread", tasks=4)
    assert not (tmp_path / "spread").exists()
