"""A base from random weights: made, recorded, gone on with after a kill, and asked."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from heredity.core import registry
from heredity.core.errors import BadInput, HeredityError, UsageError
from heredity.core.progress import Progress
from heredity.core.records import Decoding, Message, Request
from heredity.deploy import export
from heredity.lineage.store import Store, engine_loader
from heredity.recipes import HASHED_AS
from heredity.recipes.pretrain import recipe as pretrain
from heredity.recipes.quantize import Quantize
from heredity.train import kernels as fused
from heredity.train import loop
from tests.support.corpora import small_corpus as small_corpus
from tests.support.errors import raises
from tests.support.processes import RUNS, ends_after_kills, n_rows

RECIPE = """
name = "tiny"
corpus = "out"
size = "50K"
hidden_size = 32
head_dim = 16
heads = 2
kv_heads = 1
ffn_size = 64
layers = 2
context = 64
tokens = 20_000
batch_size = 512
lr = 0.02
validation_tokens = 2000
evaluations = 4
checkpoint_every = 10
dtype = "float32"
"""


@pytest.fixture
def recipe(tmp_path: Path, small_corpus: Path) -> Path:
    shutil.copytree(small_corpus, tmp_path / "out")
    path = tmp_path / "base.toml"
    path.write_text(RECIPE)
    return path


def test_a_base_is_a_root_of_the_lineage_that_answers_and_says_what_it_came_from(
    tmp_path: Path, recipe: Path
) -> None:
    store = Store(tmp_path / "store")
    seen: list[Progress] = []
    made = pretrain.read(recipe, watch=seen.append)
    base = store.grow_once(made, [])
    record = base.record
    phases = [each.phase for each in seen if each.phase]
    assert phases[0] == "loading the libraries" and phases[-1] == "writing"
    assert record.parents == () and record.name == "tiny" and record.recipe.kind == "pretrain"
    assert record.recipe.settings["corpus"] == made.text.fingerprint
    assert record.recipe.settings["rate"] == 0.02 and record.recipe.settings["width"] == 32
    bits = float(record.notes["held-out text"].split()[0])
    assert 0.5 < bits < 0.8 * math.log2(400)  # guessing evenly gives more
    assert store.verify(record) == []
    assert store.grow_once(pretrain.read(recipe), []).record.id == record.id

    engine = engine_loader(record)(record, base.folder)
    try:
        asked = Request(0, (Message("user", "The store"),), Decoding(max_tokens=8))
        (reply,) = engine.reply(iter([asked]))
    finally:
        engine.close()
    assert reply.error is None and reply.text


def test_what_is_saved_gives_the_numbers_that_were_learned_in_transformers(
    tmp_path: Path, recipe: Path
) -> None:
    import transformers

    base = Store(tmp_path / "store").grow_once(pretrain.read(recipe), [])
    words = transformers.AutoTokenizer.from_pretrained(base.folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    corpus = pretrain.read(recipe).text
    document = torch.from_numpy(corpus.document("validation", 0)[:64].astype("int64"))
    ids = torch.cat([torch.tensor([words.eos_token_id]), document])[None]
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert loss < 0.8 * math.log(400)
    assert words.decode(document) and words.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_base_is_handed_out_as_it_was_made_and_so_are_its_quantized_children(
    tmp_path: Path, recipe: Path, form: str
) -> None:
    """Its tokenizer splits off each digit, as transformers does of no Qwen; and an answer has two ends."""
    pytest.importorskip("gguf")
    store = Store(tmp_path / "store")
    base = store.grow_once(pretrain.read(recipe, {"context": 512, "tokens": 5000}), [])
    models = [base] if form == "hf" else [base, store.grow_once(Quantize("q8_0"), [base])]
    for model in models:
        done = export.export(store, model, form, tmp_path / model.record.name)
        assert done.parities and all(p.largest <= p.tolerance and not p.problem for p in done.parities)
    own = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    text = "In 2024:\n\n  3 plus 45\n\n\nnext\tx"
    for model in models[1:]:
        read = AutoTokenizer.from_pretrained(store.ready(model).folder)
        assert read.encode(text) == own.encode(text).ids


def test_what_no_export_can_check_is_refused_with_why(tmp_path: Path, recipe: Path) -> None:
    store = Store(tmp_path / "store")
    base = store.grow_once(pretrain.read(recipe, {"tokens": 1000}), [])
    with raises(UsageError, "bad-usage", mentions=["tiny", "64"]):
        export.export(store, base, "hf", tmp_path / "files")
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"lr": math.nan}, ["lr", "nan"]),
        ({"spike": math.inf}, ["spike", "inf"]),
        ({"seed": 1 << 63}, ["seed"]),
    ],
)
def test_what_is_no_number_is_refused_with_the_file(
    recipe: Path, given: dict[str, Any], named: list[str]
) -> None:
    with raises(BadInput, "bad-setting", mentions=["base.toml", *named]):
        pretrain.read(recipe, given)


def test_held_out_text_that_is_told_no_number_ends_a_run_in_words(tmp_path: Path, recipe: Path) -> None:
    with raises(loop.Diverged, "diverged"):
        Store(tmp_path / "store").grow_once(pretrain.read(recipe, {"lr": 1e30, "spike": 1e30}), [])


@pytest.mark.proof  # the loop is killed in tests/train/test_loop.py
def test_killed_again_and_again_it_comes_to_the_same_id(tmp_path: Path, recipe: Path) -> None:
    """The id is a hash over every file, weights and rows of metrics among them."""
    whole = Store(tmp_path / "whole").grow_once(pretrain.read(recipe), []).record.id
    root = tmp_path / "killed"
    command = ["-m", "heredity", "pretrain", str(recipe)]
    last = ends_after_kills(
        command, tmp_path, lambda: n_rows(root.glob(RUNS)), (13, 27), HEREDITY_STORE=str(root)
    )
    assert last.stdout.split()[-1] == whole
    curve = last.stderr.rpartition("loss, ")[2]
    assert "\u2588" in curve and curve.rstrip()[-1] in "\u2581\u2582"  # it falls from the highest


@pytest.mark.proof  # each of its processes compiles
def test_with_compiled_chains_it_is_killed_and_comes_to_the_same_id_too(tmp_path: Path, recipe: Path) -> None:
    if why := fused.why_unavailable():
        pytest.skip(f"nothing can be compiled: {why}")
    usual = Store(tmp_path / "usual").grow_once(pretrain.read(recipe), []).record
    recipe.write_text(f'{RECIPE}compile = "yes"\n')
    whole = Store(tmp_path / "whole").grow_once(pretrain.read(recipe), []).record
    assert whole.notes["small steps"] == "in chains, compiled" and whole.id != usual.id
    assert whole.recipe.settings == usual.recipe.settings
    bits = [float(record.notes["held-out text"].split()[0]) for record in (usual, whole)]
    assert bits[1] == pytest.approx(bits[0], rel=1e-3)
    root = tmp_path / "killed"
    command = ["-m", "heredity", "pretrain", str(recipe)]
    last = ends_after_kills(
        command, tmp_path, lambda: n_rows(root.glob(RUNS)), (13, 27), HEREDITY_STORE=str(root)
    )
    assert last.stdout.split()[-1] == whole.id


def test_a_short_run_compiles_nothing_and_one_that_cannot_says_so(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "why_unavailable", lambda: "no compiler")
    assert not pretrain.read(recipe).is_fused
    with raises(UsageError, "bad-usage"):
        _ = pretrain.read(recipe, {"compile": "yes"}).is_fused
    monkeypatch.setattr(fused, "why_unavailable", lambda: "")
    assert not pretrain.read(recipe).is_fused  # thirty seconds of compiling for a run of two
    assert pretrain.read(recipe, {"compile": "yes"}).is_fused
    monkeypatch.setattr(pretrain, "_LONG", 1.0)
    assert pretrain.read(recipe).is_fused and not pretrain.read(recipe, {"compile": "no"}).is_fused


@pytest.mark.parametrize(
    ("line", "error", "code", "named"),
    [
        ("contxt = 5", BadInput, "unknown-key", ["context"]),
        ('context = "much"', BadInput, "wrong-type", ["context", "int"]),
        ("warmup = 1.5", UsageError, "bad-setting", ["warmup", "1.5"]),
        ("layers = -1", UsageError, "bad-setting", ["layers", "-1"]),
        ('architecture = "qwen4"', BadInput, "unknown-name", ["base.toml", "qwen3"]),
        ("batch_size = 32", BadInput, "bad-input", ["base.toml", "64"]),
        ("batch_size = 30_000", BadInput, "bad-input", ["base.toml", "batch", "30,000"]),
        ('size = "0M"', BadInput, "bad-input", ["base.toml", "0M"]),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_and_nothing_is_recorded(
    tmp_path: Path, recipe: Path, line: str, error: type[HeredityError], code: str, named: list[str]
) -> None:
    kept = [each for each in RECIPE.splitlines() if each.split(" ")[0] != line.split(" ")[0]]
    recipe.write_text("\n".join([*kept, line]))
    store = Store(tmp_path / "store")
    with raises(error, code, mentions=named):
        store.grow_once(pretrain.read(recipe), [])
    assert store.models() == []


def test_every_setting_of_one_objective_is_one_that_recipes_have() -> None:
    names = {each.name for each in dataclasses.fields(pretrain.Pretrain)}
    for objective in registry.names("recipes.pretrain.objectives"):
        assert names > pretrain.load_objective(objective).SETTINGS
    with raises(UsageError, "unknown-name", mentions=["causal"]):
        pretrain.load_objective("casual")
    assert HASHED_AS["pretrain"].keys() <= names and not names & set(HASHED_AS["pretrain"].values())


def test_a_recipe_without_a_corpus_says_what_to_add(tmp_path: Path) -> None:
    path = tmp_path / "base.toml"
    path.write_text('size = "1M"\n')
    with raises(BadInput, "missing-key", mentions=["heredity corpus build"]):
        pretrain.read(path)


def test_a_changed_shard_is_refused(tmp_path: Path, recipe: Path) -> None:
    shard = next((tmp_path / "out").glob("train-*.bin"))
    raw = bytearray(shard.read_bytes())
    raw[0] ^= 1
    shard.write_bytes(raw)
    with raises(HeredityError, "hash-mismatch"):
        Store(tmp_path / "store").grow_once(pretrain.read(recipe), [])
