"""A loss that leaps, or is no number, sends a guarded training back and past what it read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from heredity.core.progress import Progress
from heredity.train import loop
from heredity.train.data.packed import PackedDataset
from heredity.train.models import causal_lm
from heredity.train.models.causal_lm import FullFinetune, PackedBatch
from heredity.train.objectives import Loss
from heredity.train.objectives.causal import Causal
from tests.support.errors import raises
from tests.train.test_packed import DOCUMENTS, END

N_STEPS, SIZE = 12, 1500  # more than there are tokens


@dataclass(frozen=True)
class Spoilt:
    """Causal, but that a batch which holds a certain token has a loss that it should not have."""

    token: int
    loss_of_it: float

    def loss(self, net: causal_lm.CausalLM, batch: PackedBatch) -> Loss:
        told = Causal().loss(net, batch)
        if not (batch.targets == self.token).any():
            return told
        return Loss(told.total * 0 + self.loss_of_it * len(batch.targets), {})

    def weight(self, batch: PackedBatch) -> float:
        return Causal().weight(batch)


@pytest.fixture
def tiny() -> causal_lm.CausalLM:
    config = {
        "model_type": "qwen3", "vocab_size": SIZE, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "max_position_embeddings": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    return causal_lm.from_config(config, 5, "float32")


def run(
    net: causal_lm.CausalLM, objective: object, folder: Path, guard: loop.DivergenceGuard | None
) -> tuple[list[loop.StepMetrics], list[int]]:
    """The rows, and which steps of data were read for them."""
    stream, read = PackedDataset(DOCUMENTS, END, 64, 64, 1), []

    class Noted:
        def batches(self, step: int) -> list[PackedBatch]:
            read.append(step)
            return stream.batches(step)

    plan = loop.TrainingPlan("t", N_STEPS, 1e-3, "constant")
    rows = loop.train(net, FullFinetune(), objective, Noted(), plan, folder, None, None, guard)  # type: ignore[arg-type]
    return rows, read


def bad_token(step: int) -> int:
    """A token that this step of data has, and no other of the first ones."""
    stream = PackedDataset(DOCUMENTS, END, 64, 64, 1)
    others = {
        t for s in range(N_STEPS + 8) if s != step for b in stream.batches(s) for t in b.targets.tolist()
    }
    return next(t for b in stream.batches(step) for t in b.targets.tolist() if t not in others)


@pytest.mark.parametrize("loss", [float("nan"), 50.0])
def test_a_guard_goes_back_to_its_checkpoint_and_leaves_out_the_data_since(
    tiny: causal_lm.CausalLM, tmp_path: Path, loss: float
) -> None:
    guard = loop.DivergenceGuard(keep_every=4, spike=5.0, window=3)
    rows, read = run(tiny, Spoilt(bad_token(6), loss), tmp_path, guard)
    assert read == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        *range(7, 15),
    ]  # steps 4 and 5 are done again, with steps 7 and 8 of data
    assert [row.step for row in rows] == list(range(N_STEPS))
    assert all(row.loss < 10 for row in rows)


def test_a_training_says_what_it_does_before_its_first_step_and_between_its_steps(
    tiny: causal_lm.CausalLM, tmp_path: Path
) -> None:
    class Check:
        every = 8

        def evaluate(self, network: causal_lm.CausalLM) -> dict[str, float]:
            return {"validation": 1.0}

    seen: list[Progress] = []
    stream, plan = PackedDataset(DOCUMENTS, END, 64, 64, 1), loop.TrainingPlan("t", N_STEPS, 1e-3, "constant")
    guard = loop.DivergenceGuard(keep_every=6)
    loop.train(tiny, FullFinetune(), Causal(), stream, plan, tmp_path, seen.append, Check(), guard)
    first = seen[0]
    assert (first.step, first.n_done, first.n_total, first.per_second) == ("train", 0, N_STEPS, 0.0)
    said = [f"after {each.n_done}" if each.step == "train" else each.phase for each in seen[1:]]
    told = [said[i - 1 : i + 1] for i, each in enumerate(said) if each and not each.startswith("after")]
    assert told == [
        ["after 6", "writing a checkpoint"], ["after 7", "validating"], ["after 11", "validating"]
    ]  # fmt: skip


def test_without_a_guard_it_stops_and_says_the_step(tiny: causal_lm.CausalLM, tmp_path: Path) -> None:
    with raises(loop.Diverged, "diverged", mentions=["6"]):
        run(tiny, Spoilt(bad_token(6), float("nan")), tmp_path, None)


def test_a_guard_gives_up_after_its_tries(tiny: causal_lm.CausalLM, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Never(Spoilt):
        def loss(self, net: causal_lm.CausalLM, batch: PackedBatch) -> Loss:
            return Loss(Causal().loss(net, batch).total * float("nan"), {})

    with pytest.raises(loop.Diverged):
        run(tiny, Never(0, 0.0), tmp_path, loop.DivergenceGuard(keep_every=4, tries=2))


def test_a_new_model_is_drawn_from_its_seed_alone_and_leaves_torchs_own_draws_as_they_were() -> None:
    config = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    }  # fmt: skip
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    one, two, other = (causal_lm.from_config(config, seed, "float32") for seed in (7, 7, 8))
    assert torch.equal(torch.rand(3), wanted)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.head, other.head)
    layer = one.model.model.layers[0].mlp.requires_grad_(False)
    assert float(layer.down_proj.weight.std()) == pytest.approx(0.02 / 2, rel=0.2)  # root of twice two layers
    assert float(layer.up_proj.weight.std()) == pytest.approx(0.02, rel=0.2)
