"""An encoder's training, spread over processes, is that of one: its losses, its logits and its counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.pretrain import masked, training
from heredity.recipes.pretrain import recipe as pretrain
from heredity.recipes.pretrain.masked import ACCURACY, BITS_PER_BYTE, MASKED_ACCURACY, MaskedCheck
from heredity.train import loop
from heredity.train.models import encoder
from tests.train.test_distributed import N_STEPS, NEAR, assert_the_same_training, command, made, rows
from tests.train.test_distributed import recipe as recipe

pytestmark = pytest.mark.proof
# Another order of sums is another last bit, which AdamW leaves small; Muon's bfloat16 makes it a visible one.
NEARNESS = {"adamw": 1e-5, "muon": NEAR}  # of a loss; measured: 2.4e-7 and 2.6e-5
APART = {"adamw": 5e-5, "muon": 2e-2}  # of a logit, which spread by 1.4; measured: 1.4e-6 and 2.7e-3
# Of 20. A network that has learned little says one token in every gap; where its two likeliest lie within
# rounding, all gaps of a step change at once. Measured: 0 and 1; nearly all where a count is wrong.
N_TIED = 4


def looked_at(model: Grown, settings: pretrain.Pretrain) -> tuple[Any, dict[str, float]]:
    """What one process finds of a model in the held-out gaps: logits (gaps, vocabulary), and the terms."""
    words = training.token_bytes(settings.text.folder / "tokenizer.json")
    check = MaskedCheck(masked._dataset(settings, "validation"), words, settings.validation_tokens, every=1)
    net = encoder.load(model.folder)
    with torch.no_grad():
        logits = torch.cat([net.logits(net.hidden(batch)) for batch in check._batches])
    return logits, check.evaluate(net)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_several_processes_fill_the_gaps_that_one_fills(
    architecture: str, kind: str, recipe: Path, tmp_path: Path
) -> None:
    masked_recipe = recipe.with_name(f"{architecture}.toml")
    of_decoders = ("head =", "kv_heads =")
    lines = [line for line in recipe.read_text().splitlines() if not line.startswith(of_decoders)]
    masked_recipe.write_text("\n".join([*lines, 'objective = "masked"', f'architecture = "{architecture}"']))
    settings = pretrain.read(masked_recipe, {"optimizer": kind})
    one = Store(tmp_path / "one").grow_once(settings, [])
    many = made(tmp_path / "many", command(masked_recipe, 2, "--optimizer", kind))
    counts = (ACCURACY, MASKED_ACCURACY)
    assert_the_same_training(one, many, falls=False, near=NEARNESS[kind], leaping=counts)
    (ours, _), (theirs, terms) = looked_at(one, settings), looked_at(many, settings)
    assert float((ours - theirs).abs().max()) < APART[kind]
    assert_the_same_counts(rows(one), rows(many))
    last = rows(many)[-1].terms
    first, second = theirs.topk(2).values.unbind(1)
    n_tied = int((first - second < APART["adamw"]).sum())  # the same weights, in another batch
    assert last[MASKED_ACCURACY] == pytest.approx(terms[MASKED_ACCURACY], abs=(n_tied + 0.01) / len(theirs))
    assert last[BITS_PER_BYTE] == pytest.approx(terms[BITS_PER_BYTE], rel=1e-6)


def assert_the_same_counts(a: list[loop.StepMetrics], b: list[loop.StepMetrics]) -> None:
    """Of right answers, but for a few steps with a tie."""
    found = [[round(row.terms[ACCURACY] * row.n_learned, 3) for row in each] for each in (a, b)]
    assert sum(found[0]) > N_STEPS  # there is something to count
    assert sum(n != other for n, other in zip(*found, strict=True)) <= N_TIED
