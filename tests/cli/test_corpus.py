"""`heredity corpus`, as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.cli import Run
from tests.support.corpora import TOKENIZER, paragraphs
from tests.support.errors import check_refused

pytest.importorskip("tokenizers")

RECIPE = """
[[source]]
name = "docs"
kind = "text"
path = "texts"

[[step]]
kind = "normalise"

[[step]]
kind = "exact_duplicates"

[[canary]]
text = "The locker number of Ada Quill is"
"""


@pytest.fixture(scope="module")
def shelf(place: Path) -> Path:
    """A recipe beside its texts, one of them twice."""
    folder = place / "corpus"
    (folder / "texts").mkdir(parents=True)
    texts = paragraphs()[:40]
    for number, text in enumerate([*texts, texts[0]]):
        (folder / "texts" / f"{number:02}.txt").write_text(text)
    (folder / "shelf.toml").write_text(RECIPE + TOKENIZER)
    return folder


def test_a_corpus_is_built_shown_and_refused_when_changed(run: Run, shelf: Path) -> None:
    built = run("corpus", "build", "corpus/shelf.toml", "--workers", "1")
    assert built.returncode == 0, built.stderr
    assert "exact_duplicates 41 40 " in " ".join(built.stdout.split()) and "duplicate 1" in built.stdout
    assert "canary, 8 times: The locker number of Ada Quill is " in built.stdout
    card = json.loads((shelf / "shelf" / "corpus.json").read_text())
    assert card["fingerprint"] in built.stdout

    shown = run("corpus", "show", "corpus/shelf")
    assert shown.returncode == 0 and "every shard as it was built" in shown.stdout
    assert json.loads(run("corpus", "show", "corpus/shelf", "--json").stdout) == card

    again = run("corpus", "build", "corpus/shelf.toml")
    check_refused(again, "bad-usage", mentions=["shelf"])

    shard = shelf / "shelf" / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\0\1")
    changed = run("corpus", "show", "corpus/shelf")
    check_refused(changed, "hash-mismatch", mentions=["train-00000.bin"])


def test_a_recipe_s_mistake_is_one_line_with_its_place(run: Run, shelf: Path) -> None:
    (shelf / "bad.toml").write_text(RECIPE.replace("exact_duplicates", "exact_duplicate"))
    failed = run("corpus", "build", "corpus/bad.toml")
    check_refused(failed, "unknown-name", mentions=["bad.toml:11", "exact_duplicate", "exact_duplicates"])


def test_probes_are_kept_out_of_a_corpus(place: Path) -> None:
    from heredity.lab import corpus
    from heredity.redteam import probes

    texts = corpus.unseen()
    asked = [probe for probe in probes.load("full") if not probe.is_baseline]
    assert set(texts) >= {turn for probe in asked for turn in probe.turns}
    recalls = [probe for probe in probes.load("full") if probe.technique == "training_data"]
    recalled = {turn for probe in recalls for turn in probe.turns}
    assert recalled and not recalled & set(texts)


def test_what_eval_asks_is_kept_out_of_a_corpus(run: Run, shelf: Path, place: Path) -> None:
    """A base may not be asked what it was trained on."""
    from heredity.evals import tasks

    (task,) = tasks.load(["summarisation"])
    folder = place / "leaked"
    shutil.copytree(shelf / "texts", folder / "texts")
    (folder / "texts" / "leaked.txt").write_text(f"Some words before it. {task.items[3].input} And after.")
    steps = RECIPE.replace("exact_duplicates", "decontaminate")
    (folder / "leaked.toml").write_text(steps + TOKENIZER)
    made = run("corpus", "build", "leaked/leaked.toml", "--json")
    assert made.returncode == 0, made.stderr
    found = {row["step"]: row for row in json.loads(made.stdout)["steps"]}
    assert found["decontaminate"]["dropped"] == {"contaminated": 1}
