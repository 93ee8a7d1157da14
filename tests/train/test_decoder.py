"""Parameters, FLOPs and bytes are those that were published and those of a real model."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch")

from heredity.core import registry
from heredity.train import forecast, kernels
from heredity.train.forecast import SCORES, Workload, recomputed_flops
from heredity.train.loop import MasterWeights
from heredity.train.models import causal_lm, shapes
from heredity.train.models.architectures import Specials
from heredity.train.models.causal_lm import PackedBatch
from heredity.train.models.shapes import TransformerShape
from heredity.train.rehearsal import count_flops

LLAMA_3_8B = TransformerShape(32, 4096, 32, 8, 128, 14336, 8192, 128256, is_tied=False)
LLAMA_3_70B = TransformerShape(80, 8192, 64, 8, 128, 28672, 8192, 128256, is_tied=False)
TINY = TransformerShape(
    layers=2, width=64, heads=4, kv_heads=2, head=16, wide=160, context=256, vocabulary=512
)


def gpt_3(layers: int, width: int, heads: int) -> TransformerShape:
    """Of table 2.1 of 2005.14165: its two matrices of four times the width are three of 8/3 of it."""
    return TransformerShape(layers, width, heads, heads, width // heads, 8 * width // 3, 2048, 50257)


def test_parameters_are_those_that_were_published() -> None:
    assert sum(forecast.parameters(LLAMA_3_8B, False).values()) == 8_030_261_248
    assert sum(forecast.parameters(LLAMA_3_70B, False).values()) == 70_553_706_496


@pytest.mark.parametrize(
    ("shape", "millions", "flops"),
    [  # 2005.14165, table D.1: parameters, and FLOPs of 300 billion tokens as 6 N D
        (gpt_3(12, 768, 12), 125, 2.25e20),
        (gpt_3(24, 2048, 16), 1320, 2.38e21),
        (gpt_3(40, 5120, 40), 12850, 2.31e22),
        (gpt_3(96, 12288, 96), 174600, 3.14e23),
    ],
)
def test_gpt_3_takes_the_flops_that_were_published(
    shape: TransformerShape, millions: float, flops: float
) -> None:
    assert sum(forecast.parameters(shape, False).values()) == pytest.approx(millions * 1e6, rel=0.02)
    counted = count_flops(Workload(shape, 1, 1, architecture="llama"))
    assert 300e9 * (sum(counted.values()) - counted[SCORES]) == pytest.approx(flops, rel=0.02)


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_flops_are_those_that_a_run_counts(architecture: str) -> None:
    counted = count_flops(Workload(LLAMA_3_8B, 1, 1, architecture=architecture))
    assert sum(counted.values()) == shapes.flops_per_token(LLAMA_3_8B)


def recomputed(shape: TransformerShape, recompute: int) -> float:
    """The additional share of FLOPs."""
    work = Workload(shape, 1, 1)
    counted = count_flops(work)
    return recomputed_flops(work, counted, recompute) / sum(counted.values())


def test_layers_that_run_again_cost_a_third_less_the_head() -> None:
    headless = msgspec.structs.replace(TINY, vocabulary=1)
    assert recomputed(headless, 1) == pytest.approx(1 / 3, rel=0.01)
    assert recomputed(TINY, 1) < recomputed(headless, 1)
    assert recomputed(TINY, 2) == recomputed(TINY, 1) / 2


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_parameters_are_those_of_the_real_model(architecture: str, is_tied: bool) -> None:
    shape = TransformerShape(
        **{name: getattr(TINY, name) for name in TINY.__struct_fields__} | {"is_tied": is_tied}
    )
    work = Workload(shape, 1, 1, architecture=architecture)
    model = born(work).model
    assert forecast.n_parameters(work) == sum(each.numel() for each in model.parameters())
    layer = sum(each.numel() for each in model.model.layers[0].parameters())
    assert forecast.layer_parameters(shape, work.has_qk_norm) == layer
    costs = forecast.cost_model_of(work)
    assert costs.loose - costs.head == forecast.n_parameters(work) - shape.layers * layer


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("is_on_cpu", [True, False])
def test_what_a_forward_keeps_is_what_was_reckoned_to_the_byte(
    architecture: str, size: int, is_on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "is_fused_kernel_fast", lambda _: True)  # as with AMX
    if not is_on_cpu:  # transformers' own norms, as they run on a GPU
        monkeypatch.setattr(kernels, "patch_norms", lambda *_: None)
    work = Workload(TINY, 1, 1, architecture=architecture, bytes=size, is_on_cpu=is_on_cpu)
    gradient = size * TINY.width  # of the head, which comes after the forward
    assert kept(work) == TINY.context * (forecast.cost_model_of(work).left(0, 0) - gradient)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_masters_and_moments_are_those_of_the_real_optimizer(kind: Any) -> None:
    work = Workload(TINY, 1, 1, optimizer=kind, bytes=4)
    net = born(work)
    masters = MasterWeights(list(net.model.named_parameters()), kind, 0.01, 0.0)
    for master in masters.masters:
        master.grad = torch.ones_like(master)
    masters.step(1.0, 1.0)
    state = {name: t.nbytes for name, t in masters.state().items() if t.ndim}
    told = forecast.training_memory(work, TINY.context)
    assert told["masters"] == sum(n for name, n in state.items() if name.startswith("master/"))
    assert told["optimizer"] == sum(n for name, n in state.items() if not name.startswith("master/"))


def test_shards_divide_what_lasts_and_running_again_spares_activations() -> None:
    work = Workload(LLAMA_3_8B, 1, 1, architecture="llama")
    whole, half = forecast.training_memory(work, 8192), forecast.training_memory(work, 8192, shards=2)
    assert half["masters"] * 2 == whole["masters"] and half["optimizer"] * 2 == whole["optimizer"]
    again = forecast.training_memory(work, 8192, recompute=True)
    assert again["activations"] < whole["activations"] / 4
    half = forecast.training_memory(work, 8192, recompute=2)
    assert again["activations"] < half["activations"] < 0.6 * whole["activations"]


def born(work: Workload) -> causal_lm.CausalLM:
    made = registry.load("train.models.architectures", work.architecture)
    dtype = "bfloat16" if work.bytes == 2 else "float32"
    return causal_lm.from_config(made.config(work.shape, Specials(0, 0)), 0, dtype)


def kept(work: Workload) -> int:
    """Bytes of all that one context leaves for its way back, the weights aside."""
    net, n = born(work), work.shape.context
    weights = {each.untyped_storage().data_ptr() for each in net.model.parameters()}
    found: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros(n, dtype=torch.int64)
    batch = PackedBatch(tokens, torch.arange(n), (n,), torch.arange(n), tokens, torch.zeros_like(tokens))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net.hidden(batch)
    return sum(storage.nbytes() for storage in found.values())
