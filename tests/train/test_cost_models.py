"""What is reckoned of encoders and of pairs is what a real model has, keeps and multiplies."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode

from heredity.core import registry
from heredity.train import forecast, kernels
from heredity.train.forecast import Workload
from heredity.train.loop import MasterWeights
from heredity.train.models import dual, encoder, shapes
from heredity.train.models import shapes as towers
from heredity.train.models.architectures import Specials
from heredity.train.models.causal_lm import CausalLM, PackedBatch
from heredity.train.models.shapes import TransformerShape
from heredity.train.rehearsal import count_flops

CAPTION = 24


def text(size: str, context: int = 256, architecture: str = "modernbert", **changes: Any) -> Workload:
    """Of an encoder."""
    kind = registry.load("train.models.architectures", architecture).SHAPE
    shape = shapes.size_preset(size, 512, context, kind=kind).shape
    return Workload(shape, 1, 2 * context, architecture=architecture, head_share=0.25, **changes)


def pairs(architecture: str, size: str, patch: int = 8, batch: int = 4, **changes: Any) -> Workload:
    """Of two towers."""
    shape = towers.dual_size_preset(size, 512, CAPTION, (32, patch), batch, {"batch": batch}).shape
    one = TransformerShape(**{name: getattr(shape, name) for name in TransformerShape.__struct_fields__})
    return Workload(one, 1, batch, architecture=architecture, picture=(32, patch), **changes)


WORKS = [
    *(text(size) for size in ("150K", "300K", "1M", "5M")),
    *(pairs(name, size, patch) for name in ("clip", "siglip") for size, patch in
      (("200K", 8), ("500K", 4), ("2M", 16))),
    *(text(size, architecture="bert") for size in ("150K", "1M")),
]  # fmt: skip
_IN_LAYERS = re.compile(r"\.layers?\.(\d+)\.")
_FEED_FORWARD = re.compile(r"\.layers?\.\d+\.(mlp|intermediate|output)\.(?!LayerNorm)")


def born(work: Workload) -> CausalLM:
    made = registry.load("train.models.architectures", work.architecture)
    dtype = "bfloat16" if work.bytes == 2 else "float32"
    if work.unit == "token":
        return encoder.from_config(made.config(work.shape, Specials(0, 0, 0)), 0, dtype)
    return dual.from_config(made.config(work.towers, Specials(0, 0)), 0, dtype)


def forward(net: CausalLM, work: Workload) -> Callable[[], Any]:
    """One batch of a step's size."""
    if isinstance(net, dual.DualEncoder):
        n, (side, _) = work.batch, work.picture or (0, 0)
        ids, numbers = torch.zeros(n * CAPTION, dtype=torch.int64), torch.arange(n)
        at = torch.arange(CAPTION).repeat(n), (CAPTION,) * n, numbers * CAPTION
        batch = PackedBatch(ids, *at, numbers, numbers, images=torch.zeros(n, 3, side, side))
        return lambda: net.similarities(net.embed(batch))
    context, n = work.shape.context, work.batch
    ids, gaps = torch.zeros(n, dtype=torch.int64), torch.arange(0, n, 4)
    lengths = (context,) * (n // context)
    positions = torch.arange(context).repeat(len(lengths))
    batch = PackedBatch(ids, positions, lengths, gaps, ids[gaps], torch.zeros_like(gaps))
    return lambda: net.hidden(batch)


@pytest.mark.parametrize("work", WORKS, ids=lambda work: f"{work.architecture}-{work.shape.width}")
def test_parameters_are_those_of_the_real_model_by_part(work: Workload) -> None:
    model, made = born(work).model, forecast.cost_model_of(work)
    named = {name: each.numel() for name, each in model.named_parameters()}
    assert made.n_parameters == sum(named.values())
    assert made.in_layers == sum(n for name, n in named.items() if _IN_LAYERS.search(name))
    second = [n for name, n in named.items() if (at := _IN_LAYERS.search(name)) and at[1] == "1"]
    assert made.towers[0].each == sum(second) // len(made.towers)
    feed_forward = sum(n for name, n in named.items() if _FEED_FORWARD.search(name))
    assert made.parameters["feed-forward"] == feed_forward
    embedding = sum(n for name, n in named.items() if re.search(r"embeddings\.(?!norm|LayerNorm)", name))
    assert made.parameters["embedding"] == embedding
    masters = MasterWeights(list(model.named_parameters()), "muon", 0.01, 0.0)
    stepped = sum(p.numel() for group in masters.optimizers[-1].param_groups for p in group["params"])
    assert made.matrices == stepped


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "work", [WORKS[1], WORKS[4], WORKS[7], WORKS[11]], ids=lambda work: work.architecture
)
def test_what_a_forward_keeps_is_what_was_reckoned_to_the_byte(
    work: Workload, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "is_fused_kernel_fast", lambda _: True)  # as with AMX
    work = msgspec.structs.replace(work, bytes=size, is_on_cpu=True)
    net = born(work)
    own = {each.untyped_storage().data_ptr() for each in (*net.model.parameters(), *net.model.buffers())}
    found: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    run = forward(net, work)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    kept = sum(storage.nbytes() for storage in found.values() if storage.nbytes() > 4)
    told = work.batch * forecast.cost_model_of(work).left(0, 0)
    if work.unit == "token":  # the gradient of the head comes after the forward
        told -= work.batch // 4 * size * work.shape.width
    elif size == 2:  # pictures as they were given are held by who gave them
        told -= work.batch * 4 * 3 * 32**2
    assert kept == told


@pytest.mark.parametrize(
    "work", [text("300K", 64), text("300K", 64, "bert"), *WORKS[4:10:2]], ids=lambda work: work.architecture
)
def test_flops_are_those_that_torch_counts_of_a_real_forward(work: Workload) -> None:
    """The backward pass is two forward passes, less the gradient of the pixels."""
    net = born(msgspec.structs.replace(work, bytes=4))
    net.model.set_attn_implementation("eager")
    if work.unit == "token":
        ids = torch.zeros((1, 64), dtype=torch.int64)
        head, output = encoder.head_transform(net.model), net.model.get_output_embeddings()
        run, n = (lambda: output(head(net.model.base_model(ids).last_hidden_state[:, :16]))), 64
    else:
        run, n = forward(net, work), work.batch
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    towers = work.towers if work.picture else None
    pixels = 2 * 3 * towers.patch**2 * towers.width * towers.patches if towers else 0
    assert 3 * counter.get_total_flops() == pytest.approx(n * (sum(count_flops(work).values()) + pixels))


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_flops_of_a_masked_token_are_those_of_the_formula(architecture: str) -> None:
    """In a chunk no longer than a window: the counter knows no window, nor does the kernel on a GPU."""
    work = text("1M", 128, architecture=architecture)
    flops = registry.load("train.models.architectures", architecture).flops_per_token(
        work.shape, work.shape.context, work.head_share
    )
    assert sum(count_flops(work).values()) == pytest.approx(flops)


def test_scores_grow_with_the_pairs_of_all_devices_and_logits_with_gaps_alone() -> None:
    few, many = pairs("clip", "200K", batch=32), pairs("clip", "200K", batch=64)
    assert 2 * forecast.cost_model_of(few).logits(16) == forecast.cost_model_of(many).logits(16)
    work = text("150K")
    assert forecast.cost_model_of(work).logits(64) == forecast.cost_model_of(
        msgspec.structs.replace(work, head_share=1.0)
    ).logits(16)
