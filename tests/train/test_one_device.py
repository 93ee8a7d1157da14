"""Every objective keeps everything on the device of its network: run on an imitated GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.host import CPU
from heredity.engines.chat import Document
from heredity.train.data.chat import TokenizedExample
from heredity.train.models import causal_lm
from heredity.train.models.causal_lm import (
    CausalLM,
    FullFinetune,
    LowRankAdapters,
    PackedBatch,
    Trainable,
    collate,
)
from heredity.train.objectives import Objective
from heredity.train.objectives.causal import Causal
from heredity.train.objectives.distill import Distillation
from heredity.train.objectives.preference import PreferenceObjective
from tests.support.one_device import GPU, OneDevice


def on_gpu(folder: Path) -> CausalLM:
    network = causal_lm.load(folder, "float32", CPU)
    network.model.to(GPU)
    return network


def batch(has_rejected: bool = False) -> PackedBatch:
    """Documents of several lengths on the imitated GPU."""
    documents = [Document(tuple(range(3, 3 + n)), (False,) * 2 + (True,) * (n - 2)) for n in (9, 17, 33)]
    rejected = documents[0] if has_rejected else None
    return collate([TokenizedExample(each, rejected) for each in documents]).to(GPU)


OBJECTIVES: dict[str, Callable[[Path], Objective]] = {
    "causal": lambda _: Causal(),
    "causal with z-loss": lambda _: Causal(1e-4),
    "distill": lambda folder: Distillation(on_gpu(folder)),
    "distill js": lambda folder: Distillation(on_gpu(folder), "js", share=0.5),
    "preference": lambda folder: PreferenceObjective(on_gpu(folder), 0.1),
}


@pytest.mark.parametrize("trainable", [FullFinetune(), LowRankAdapters(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_of_every_objective(
    tiny_llama: Path, name: str, trainable: Trainable, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, objective = on_gpu(tiny_llama), OBJECTIVES[name](tiny_llama)
    weights = trainable.open(network, 0)
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: 0.0)  # terms of the loss, for the rows
    with OneDevice():
        found = objective.loss(network, batch(has_rejected=name == "preference"))
        assert found.total.device == GPU
        found.total.backward()
    missing = [name for name, weight in weights if weight.grad is None or weight.grad.device != GPU]
    assert not missing


def test_a_batch_moves_whole() -> None:
    moved = batch(has_rejected=True)
    tensors = (moved.tokens, moved.positions, moved.at, moved.targets, moved.document)
    assert {each.device for each in tensors} == {GPU} and moved.has_rejected and moved.images is None
