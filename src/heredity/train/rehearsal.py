"""A model without weights: its FLOPs by torch's counter, and one microbatch of the sharded step.

FLOPs are counted on the meta device. For a rehearsal, the model has fake tensors (FakeTensorMode). FSDP2
shards it as in a real run, over torch's fake process group of the planned size. torch's memory tracker
reports the peak. Layers are alike: a few are run, then a few more, and the difference stands for the rest.

A model's forward returns the output that the backward pass starts from, and its gradient. The output is as
many rows of logits as are ever held, or the scores of a step's pairs.

Promises: nothing is allocated, sent or drawn. Inputs are zeros of real sizes. The process group is gone
afterwards.
Leaves to others: the optimizer's step, which torch cannot fake; its moments are added from forecast.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
import transformers
from torch import distributed, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import no_init_weights

from heredity.core import registry
from heredity.core.errors import HeredityError, Unavailable, first_line
from heredity.core.records import Record
from heredity.train import forecast, kernels
from heredity.train import kernels as bidirectional
from heredity.train.distributed import recompute_activations, transformer_layers
from heredity.train.forecast import AROUND, LAYERS, SCORES, Layout, LayoutForecast, Workload
from heredity.train.loop import MasterWeights
from heredity.train.models import encoder
from heredity.train.models.architectures import Specials
from heredity.train.models.shapes import FP32_BYTES, LOGIT_ROWS_HELD

_ATTENTION_NAMES = {"causal": "heredity_documents", "masked": "heredity_encoder", "contrastive": "sdpa"}
OutputAndGradient = tuple[torch.Tensor, torch.Tensor]


class RehearsalModel(nn.Module):
    """A model and one microbatch; the root module for FSDP.

    `forward(n)`, for `n` tokens or pairs, returns the output and its gradient.
    """

    def __init__(self, model: Any, work: Workload) -> None:
        super().__init__()
        self.model, self._work = model, work
        self.logit_rows = LOGIT_ROWS_HELD

    def _laid(self, n: int) -> dict[str, Any]:
        """Whole contexts, packed end to end."""
        context = self._work.shape.context
        lengths = (context,) * (n // context)
        positions = torch.arange(context).repeat(len(lengths))[None]
        ids = torch.zeros((1, n), dtype=torch.int64)
        return {"input_ids": ids, "position_ids": positions, "lengths": lengths}


class _CausalRehearsal(RehearsalModel):
    def forward(self, n: int) -> OutputAndGradient:
        states = self.model.model(**self._laid(n), use_cache=False).last_hidden_state.squeeze(0)
        return _logits_and_gradient(self.model.lm_head, states, min(self.logit_rows, n))


class _MaskedRehearsal(RehearsalModel):
    def forward(self, n: int) -> OutputAndGradient:
        n_gaps = math.ceil(self._work.head_share * n)
        given = encoder.model_inputs(self.model, **self._laid(n))
        states = self.model.base_model(**given).last_hidden_state.squeeze(0)
        picked = encoder.head_transform(self.model)(states.index_select(0, torch.arange(n_gaps)))
        return _logits_and_gradient(self.model.get_output_embeddings(), picked, min(self.logit_rows, n_gaps))


class _ContrastiveRehearsal(RehearsalModel):
    def forward(self, n: int) -> OutputAndGradient:
        side, _ = self._work.picture or (0, 0)
        images = torch.zeros(n, 3, side, side)
        rows = torch.zeros((n, self._work.shape.context), dtype=torch.int64)
        weight = next(self.model.parameters())
        given = (
            self.model.get_image_features(pixel_values=images.to(weight.dtype)),
            self.model.get_text_features(input_ids=rows),
        )
        embeddings = [functional.normalize(each.pooler_output.float()) for each in given]
        scale = self.model.logit_scale.float().exp()
        return _pair_scores(scale * embeddings[0], embeddings[1], self._work.batch)


def _logits_and_gradient(head: nn.Module, states: torch.Tensor, n_rows: int) -> OutputAndGradient:
    """As objectives/causal.py does, which needs a number in the backward pass."""
    logits = head(states[-n_rows:])
    wide = logits.detach().float()
    return logits, torch.log_softmax(wide, 1).exp_().to(logits.dtype)


def _pair_scores(images: torch.Tensor, captions: torch.Tensor, batch: int) -> OutputAndGradient:
    """Own images against all captions of a step; with several devices, own captions against all images."""
    others = math.ceil(batch / len(images))
    if others == 1:
        scores = images @ captions.T
        return scores, _gradient(scores) + _gradient(scores.T).T
    all_images, all_captions = (each.repeat(others, 1) for each in (images, captions))  # as if gathered
    scores = torch.cat([images @ all_captions.T, captions @ all_images.T])
    return scores, _gradient(scores)


def _gradient(scores: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(scores.detach(), 1).exp_()


_REHEARSALS = {"causal": _CausalRehearsal, "masked": _MaskedRehearsal, "contrastive": _ContrastiveRehearsal}


def _dense_attention(
    _: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *__: object, **___: object
) -> tuple[torch.Tensor, None]:
    """Attention without a mask, as transformers calls it: the counter counts every product anyway."""
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    return ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2), None


def build_model(work: Workload, recompute: int, dtype: torch.dtype, is_dense: bool = False) -> RehearsalModel:
    """The model of a workload, with weights of a dtype. is_dense: its attention multiplies all pairs."""
    made = registry.load("train.models.architectures", work.architecture)
    shape = work.shape if work.unit == "token" else work.towers
    config = transformers.AutoConfig.for_model(**made.config(shape, Specials(0, 0, 0)))
    transformers.AttentionInterface.register(_ATTENTION_NAMES["causal"], kernels.causal_attention)
    transformers.AttentionInterface.register(
        _ATTENTION_NAMES["masked"], bidirectional.bidirectional_attention
    )
    transformers.AttentionInterface.register("heredity_dense", _dense_attention)
    kinds = {"causal": transformers.AutoModelForCausalLM, "masked": transformers.AutoModelForMaskedLM}
    kind = kinds.get(made.OBJECTIVE, transformers.AutoModel)
    with no_init_weights():  # some initializations need real numbers
        name = "heredity_dense" if is_dense else _ATTENTION_NAMES[made.OBJECTIVE]
        model = kind.from_config(config, dtype=dtype, attn_implementation=name)
    model.tie_weights()
    if recompute:
        recompute_activations(model, recompute)
    if work.is_on_cpu:
        kernels.patch_norms(model)
    return _REHEARSALS[made.OBJECTIVE](model.train(), work)


_FEW, _MORE = 4, 2  # layers run first, and how many more; with fewer, no layer is prefetched
_DTYPES = {2: torch.bfloat16, 4: torch.float32}


def count_flops(work: Workload) -> dict[str, float]:
    """FLOPs of a token or pair, forward and backward, by part, as torch counts them. A multiply-add is two.

    The counter knows no mask. A causal kernel skips half of the scores, so half of them count.
    """
    n = work.batch if work.is_whole else work.shape.context
    (one, one_scores), (two, two_scores) = (_count_layers(work, layers, n) for layers in (1, 2))
    layer, scores = two - one, two_scores - one_scores
    is_causal = registry.load("train.models.architectures", work.architecture).OBJECTIVE == "causal"
    return {
        LAYERS: work.shape.layers * layer / n,
        SCORES: work.shape.layers * scores / n / (2 if is_causal else 1),
        AROUND: (one - layer + one_scores - scores) / n,
    }


def _count_layers(work: Workload, n_layers: int, n: int) -> tuple[int, int]:
    """FLOPs of `n` tokens or pairs in a model with `n_layers`: of all matmuls but scores, and of scores."""
    work = msgspec.structs.replace(work, shape=msgspec.structs.replace(work.shape, layers=n_layers))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_model(work, 0, torch.bfloat16, is_dense=True)
        model.logit_rows = n
        output, gradient = model(n)
        output.backward(gradient)
    scores = sum(
        flops
        for operation, flops in counter.get_flop_counts()["Global"].items()
        if operation in (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
    )
    return counter.get_total_flops() - scores, scores


class Rehearsal(Record, frozen=True):
    """The result, in bytes per device. `predicted` is the figure of forecast.py."""

    n_devices: int
    parameters: int
    peak: int
    predicted: int


class RehearsalFailed(HeredityError):
    """The sharded step failed."""


def rehearse(work: Workload, way: LayoutForecast) -> Rehearsal:
    """Run one microbatch of a layout.

    Raises RehearsalFailed with torch's message, Unavailable within another process group.
    """
    step = max(_MORE, forecast.cost_model_of(work).period)
    few, more = (min(n, work.shape.layers) for n in (_FEW, _FEW + step))
    low = _run_layers(work, way, few)
    high = _run_layers(work, way, more) if more > few else low
    n_left = work.shape.layers - more  # 0 if all were run
    n_parameters, peak = (
        there + n_left * (there - before) // max(1, more - few)
        for before, there in zip(low, high, strict=True)
    )
    layout = way.layout
    predicted = forecast.training_memory(work, way.microbatch, layout.shards, way.recompute, n_microbatches=1)
    moments = -(-forecast.optimizer_memory(work) // layout.shards)
    n = layout.shards * layout.replicas
    return Rehearsal(n, n_parameters, peak + moments, sum(predicted.values()))


def _run_layers(work: Workload, way: LayoutForecast, n_layers: int) -> tuple[int, int]:
    """Parameters and peak bytes of a model with `n_layers`."""
    shape = msgspec.structs.replace(work.shape, layers=n_layers)
    work, layout = msgspec.structs.replace(work, shape=shape), way.layout
    try:
        with _fake_mesh(layout) as mesh, kernels.assume_accelerator(), FakeTensorMode():
            stage = build_model(work, way.recompute, _DTYPES[FP32_BYTES if mesh is not None else work.bytes])
            n_parameters = sum(each.numel() for each in stage.parameters())
            return n_parameters, _peak(stage, work, way, mesh)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        n = layout.shards * layout.replicas
        raise RehearsalFailed(
            f"The step failed on {n:,} devices ({layout.kind}, {layout.shards} shards): {first_line(error)}"
        ) from error


@contextmanager
def _fake_mesh(layout: Layout) -> Iterator[Any]:
    """A mesh over fake devices; None if nothing is sharded."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if distributed.is_initialized():
        raise Unavailable("A rehearsal needs its own process group. Run it without torchrun.")
    if layout.kind == "none":
        yield None
        return
    n = layout.shards * layout.replicas
    distributed.init_process_group("fake", rank=0, world_size=n, store=FakeStore())
    try:
        if layout.kind == "fsdp":
            yield init_device_mesh("cpu", (n,), mesh_dim_names=("shards",))
        else:
            yield init_device_mesh(
                "cpu", (layout.replicas, layout.shards), mesh_dim_names=("replicas", "shards")
            )
    finally:
        distributed.destroy_process_group()


def _peak(stage: RehearsalModel, work: Workload, way: LayoutForecast, mesh: Any) -> int:
    """Peak bytes of one microbatch, without the optimizer's moments."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed._tools.mem_tracker import MemTracker

    if mesh is None:
        tracker: Any = MemTracker()
        tracker.track_external(stage)
    else:
        dtype = _DTYPES[work.bytes]
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for layer in transformer_layers(stage):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        scalars = {each for each in stage.parameters() if not each.ndim}  # FSDP cannot shard them
        fully_shard(stage, mesh=mesh, mp_policy=policy, ignored_params=scalars)
        tracker = FSDPMemTracker(stage)
    with tracker:
        masters = (
            MasterWeights(list(stage.named_parameters()), work.optimizer, 1.0, 0.0) if mesh is None else None
        )
        out, gradient = stage(way.microbatch)
        out.backward(gradient)
    del masters
    return sum(device["Total"] for device in tracker.get_tracker_snapshot("peak").values())
