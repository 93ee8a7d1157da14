"""One product of the sharded step, forward and backward, on fake tensors: what fails there, fails here.

transformers' model of the recipe is built without a byte of weights (FakeTensorMode), laid over as many
devices as are planned by torch's fake process group, which talks to nobody, and sharded by FSDP2 as a real
run is. torch's own tracker says what memory the peak takes. Layers are alike: a few are run, then a few more,
and the difference stands for the rest.

Promises: nothing is allocated, sent or drawn; the process group is gone afterwards.
Leaves to others: the optimizer's step, which torch cannot fake (its moments are added from memory.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
from torch import distributed
from torch._subclasses import FakeTensorMode

from heredity.core.errors import HeredityError, Unavailable, first_line
from heredity.core.records import Record
from heredity.train.kernels import attention
from heredity.train.optimizer import Masters
from heredity.train.planning import cost_models, memory, memory_phases
from heredity.train.planning.cost_models import WIDE
from heredity.train.planning.flops import Work
from heredity.train.planning.forecast import LayoutForecast
from heredity.train.planning.sharding import Layout
from heredity.train.sharded import layers

_FEW, _MORE = 4, 2  # layers that are run, and how many more; with fewer, none is fetched ahead of another
_DTYPES = {2: torch.bfloat16, 4: torch.float32}


class Rehearsed(Record, frozen=True):
    """What came of it. Bytes of one device; `predicted` is memory.py's figure for the same."""

    n_devices: int
    parameters: int
    peak: int
    predicted: int


class Unfit(HeredityError):
    """The sharded step fails."""

    code = "rehearsal-failed"


def rehearse(work: Work, way: LayoutForecast) -> Rehearsed:
    """Run a product of `way`. Raises Unfit with what torch says, Unavailable within another process group."""
    step = max(_MORE, cost_models.of(work).period)
    few, more = (min(n, work.shape.layers) for n in (_FEW, _FEW + step))
    low = _run(work, way, few)
    high = _run(work, way, more) if more > few else low
    n_left = work.shape.layers - more  # 0 where all were run
    n_parameters, peak = (
        there + n_left * (there - before) // max(1, more - few)
        for before, there in zip(low, high, strict=True)
    )
    layout = way.layout
    predicted = memory.training(work, way.product, layout.shards, way.runs_again, n_products=1)
    moments = -(-memory.optimizer(work) // layout.shards)
    n = layout.shards * layout.replicas
    return Rehearsed(n, n_parameters, peak + moments, sum(predicted.values()))


def _run(work: Work, way: LayoutForecast, n_layers: int) -> tuple[int, int]:
    """Parameters, and bytes at the peak, of a model of so many layers."""
    shape = msgspec.structs.replace(work.shape, layers=n_layers)
    work, layout = msgspec.structs.replace(work, shape=shape), way.layout
    try:
        with _pretended(layout) as mesh, attention.elsewhere(), FakeTensorMode():
            stage = memory_phases.stage(
                work, way.runs_again, _DTYPES[WIDE if mesh is not None else work.bytes]
            )
            n_parameters = sum(each.numel() for each in stage.parameters())
            return n_parameters, _peak(stage, work, way, mesh)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        n = layout.shards * layout.replicas
        raise Unfit(
            f"The step fails on {n:,} devices ({layout.kind}, {layout.shards} shards): {first_line(error)}"
        ) from error


@contextmanager
def _pretended(layout: Layout) -> Iterator[Any]:
    """A mesh over devices that are not there; None where nothing is sharded."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if distributed.is_initialized():
        raise Unavailable("A rehearsal makes a process group of its own: run it without torchrun.")
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


def _peak(stage: memory_phases.Stage, work: Work, way: LayoutForecast, mesh: Any) -> int:
    """Bytes at the peak of one product, the optimizer's moments left out."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed._tools.mem_tracker import MemTracker

    if mesh is None:
        tracker: Any = MemTracker()
        tracker.track_external(stage)
    else:
        _shard(stage, mesh, _DTYPES[work.bytes])
        tracker = FSDPMemTracker(stage)
    with tracker:
        masters = Masters(list(stage.named_parameters()), work.optimizer, 1.0, 0.0) if mesh is None else None
        out, gradient = stage(way.product)
        out.backward(gradient)
    del masters
    return sum(device["Total"] for device in tracker.get_tracker_snapshot("peak").values())


def _shard(stage: memory_phases.Stage, mesh: Any, dtype: torch.dtype) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in layers(stage):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    scalars = {each for each in stage.parameters() if not each.ndim}  # which it cannot cut
    fully_shard(stage, mesh=mesh, mp_policy=policy, ignored_params=scalars)
