"""Pairs that lie in several processes are told from those of all, so that one learns as much as many."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL.Image")

from heredity.core.errors import BadInput, UsageError
from heredity.lab import corpus as corpora
from heredity.lineage.store import Store
from heredity.recipes.pretrain import contrastive
from heredity.recipes.pretrain import recipe as pretrain
from heredity.recipes.pretrain.contrastive import CORRECT_PAIRS
from heredity.train import distributed
from heredity.train.loop import DistContext
from heredity.train.models import dual
from tests.support.errors import raises
from tests.train.test_contrastive import recipe_file as recipe_file
from tests.train.test_distributed import (
    N_STEPS,
    assert_the_same_training,
    command,
    kill_on_the_way,
    made,
    rows,
)

RECIPE = f"""
corpus = "pictures"
size = "150K"
objective = "contrastive"
caption_tokens = 24
patch_size = 4
pairs = {25 * N_STEPS}
batch_size = 25
lr = 0.003
checkpoint_every = 5
evaluations = 4
dtype = "float32"
"""
RECALL = tuple(f"{way} @{k}" for way in ("picture to caption", "caption to picture") for k in (1, 5))
LEAPING = (CORRECT_PAIRS, "zero-shot", *RECALL)  # counts: where two are near, a last bit decides


@pytest.fixture
def recipe(recipe_file: Path) -> Path:
    corpora.build_corpus(recipe_file, workers=1)
    path = recipe_file.with_name("pairs.toml")
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize("n", [2, 5, 24, 25])
def test_shares_are_all_rows_and_differ_by_one(n: int) -> None:
    shares = [distributed.rank_span(n, rank, 5) for rank in range(5)]
    assert [low for low, _ in shares[1:]] == [high for _, high in shares[:-1]]
    assert (shares[0][0], shares[-1][1]) == (0, n)
    assert {high - low for low, high in shares} <= {n // 5, n // 5 + 1}


@pytest.mark.parametrize(
    ("architecture", "kind", "world", "flags"),
    [
        pytest.param("clip", "muon", 2, (), marks=pytest.mark.proof),
        pytest.param("clip", "adamw", 3, (), marks=pytest.mark.proof),
        pytest.param("siglip", "adamw", 2, ("--recompute",), marks=pytest.mark.proof),
        pytest.param("siglip", "muon", 4, ("--replicas", "2"), marks=pytest.mark.proof),
    ],
)
def test_several_processes_tell_the_pairs_that_one_tells(
    architecture: str, kind: str, world: int, flags: tuple[str, ...], recipe: Path, tmp_path: Path
) -> None:
    same = {"architecture": architecture, "optimizer": kind}
    options = [word for name, value in same.items() for word in (f"--{name}", value)]
    many = made(tmp_path / "many", command(recipe, world, *options, *flags))
    one = Store(tmp_path / "one").grow_once(pretrain.read(recipe, same), [])
    assert_the_same_training(one, many, leaping=LEAPING)
    assert many.record.recipe == one.record.recipe
    assert many.record.notes["processes"].startswith(f"{world}, weights in ")
    # Both models say the same of a picture and a caption, and the counts are of all pairs of a step.
    first, second = (dual.load(each.folder) for each in (one, many))
    ids = torch.arange(48).view(2, 24)
    assert torch.allclose(first.embed_captions(ids), second.embed_captions(ids), atol=5e-3)
    counts = [[row.terms[CORRECT_PAIRS] * row.n_learned for row in rows(each)] for each in (one, many)]
    assert max(abs(a - b) for a, b in zip(*counts, strict=True)) <= 2
    assert sum(counts[1]) > N_STEPS


@pytest.mark.proof
@pytest.mark.parametrize(("first", "second"), [(2, 0), (0, 2), (3, 2)])
def test_another_number_of_processes_goes_on_with_pairs(
    first: int, second: int, recipe: Path, tmp_path: Path
) -> None:
    """CLIP has a weight that is a single number, which lies in one process alone."""
    kill_on_the_way(tmp_path / "many", recipe, first)
    many = made(tmp_path / "many", command(recipe, second))
    assert_the_same_training(made(tmp_path / "one", command(recipe, 0)), many, leaping=LEAPING)


def test_a_step_of_fewer_pairs_than_processes_and_settings_of_text_are_refused(recipe: Path) -> None:
    settings = dataclasses.replace(
        pretrain.read(recipe), batch_size=2, dist=DistContext(world_size=3, mesh=object())
    )
    with raises(UsageError, "bad-usage", mentions=["2", "3"]):
        contrastive.train(settings, recipe.parent / "training")
    recipe.write_text(RECIPE + 'reduce = "each"\n')
    with raises(BadInput, "unknown-key", mentions=["reduce"]):
        pretrain.read(recipe)
