"""Forecast and measure the memory and time of a pre-training on this machine.

Promises: a run that cannot fit is refused before its first step, with its needs and the setting to lower. A
recorded forecast was made before the first step.
Leaves to others: the arithmetic (train/planning/), and the available memory (core/host.py). The time of an
image model is not forecast, because the matmuls of its towers were never measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch

from heredity.core import host
from heredity.train import resources
from heredity.train.distributed import SINGLE_PROCESS, DistContext
from heredity.train.planning import forecast
from heredity.train.planning.memory import n_parameters, training_memory
from heredity.train.planning.workload import Workload
from heredity.train.resources import FP32_BYTES, PRETRAIN_MICROBATCH_TOKENS

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain

_HEAP = host.GIB // 2  # at most: freed blocks that other lengths do not fit into (docs/results/plans.md)
_LIBRARIES = host.GIB // 4  # by which torch's libraries grow in a first step, even of a tiny model


@dataclass
class Prediction:
    """Predicted memory and time, and the memory of the process when they were predicted."""

    parts: dict[str, int]
    limit: float  # FLOP/s of matmuls; 0: not measured
    seconds: float  # of the whole run
    resident: int | None  # bytes

    def notes(self, tokens: int, tokens_a_second: float) -> dict[str, str]:
        """Predicted and measured values, for the model's record."""
        memory = f"predicted {sum(self.parts.values()) / host.GIB:.2f} GiB"
        peak = host.peak_memory()
        if peak is not None and self.resident is not None:
            growth = max(0, peak - self.resident)  # negative if earlier runs freed memory meanwhile
            memory += f", measured {growth / host.GIB:.2f} GiB of growth"
        found = {"memory": memory}
        if tokens_a_second and self.limit:
            found["time"] = f"predicted {self.seconds:,.0f} s, measured {tokens / tokens_a_second:,.0f} s"
        return found


def needed(recipe: Pretrain, size: int, dist: DistContext = SINGLE_PROCESS) -> dict[str, int]:
    """Bytes that one process needs, by part, with a compute dtype of `size` bytes."""
    is_on_cpu = dist.device.type == "cpu"
    work = _work(recipe, size, is_on_cpu)
    shards = dist.n_shards
    own = -(-work.batch // dist.world_size)
    at_once = own if work.is_whole else min(own, max(PRETRAIN_MICROBATCH_TOKENS, recipe.context))
    again = recipe.recompute_every if recipe.recompute else 0
    parts = training_memory(work, at_once, shards, again, -(-own // at_once))
    if shards > 1 and recipe.reduce == "once":  # they stay unsharded until the last matmul
        parts["gradients"] += FP32_BYTES * n_parameters(work)
    if not is_on_cpu:
        return parts
    kept = min(_HEAP, 2 * parts["activations"])
    return parts | {"heap between steps": kept, "libraries": _LIBRARIES}


def _work(recipe: Pretrain, size: int, is_on_cpu: bool = True) -> Workload:
    return msgspec.structs.replace(recipe.workload(is_on_cpu=is_on_cpu), bytes=size)


@contextmanager
def checked_memory(recipe: Pretrain, dist: DistContext) -> Iterator[Prediction | None]:
    """Refuse a run that does not fit, before its weights are drawn. Yields the forecast of a single process.

    Processes on a CPU share its memory. A process on a GPU has the free memory of that GPU; its time is not
    forecast. Raises OutOfMemory with the settings to lower, also if an allocation fails inside.
    """
    if dist.device.type != "cpu":
        _require_gpu_memory(recipe, dist)
        yield None
        return
    shape = recipe.dial.shape
    doing, second = f"The pre-training of '{recipe.size}'", recipe.spec.lower_instead(recipe)
    lower = second if recipe.base is not None else f"size ({recipe.size}) or {second}"
    advice = f"Lower {lower}, or take more devices: heredity plan"
    has = round(recipe.memory * host.GIB) or None

    def fitting(size: int) -> dict[str, int]:
        parts = {part: dist.world_size * n for part, n in needed(recipe, size, dist).items()}
        host.require_memory(doing, parts, f"{advice}; or allow more with memory (GiB).", has)
        return parts

    is_open = recipe.dtype == "auto"
    size = 2 if is_open else getattr(torch, recipe.dtype).itemsize
    parts = fitting(size)  # before the dtypes are timed, which takes minutes
    dtype = getattr(torch, host.choose_dtype(shape.width, shape.wide, 1024) if is_open else recipe.dtype)
    if dtype.itemsize != size:
        parts = fitting(dtype.itemsize)
    with host.explain_out_of_memory(doing, f"{advice}."):
        yield _predict(recipe, parts, dtype) if dist.is_single_process else None


def _require_gpu_memory(recipe: Pretrain, dist: DistContext) -> None:
    free = host.Device.parse(str(dist.device)).free_memory()
    size = 2 if recipe.dtype == "auto" else getattr(torch, recipe.dtype).itemsize
    host.require_memory(
        f"The pre-training of '{recipe.size}' on each of {dist.world_size} devices",
        needed(recipe, size, dist),
        'Set recompute = true or reduce = "each", lower replicas, size or context, or take more devices: '
        "heredity plan",
        round(recipe.memory * host.GIB) or free,
    )


def _predict(recipe: Pretrain, parts: dict[str, int], dtype: torch.dtype) -> Prediction:
    seconds = limit = 0.0
    if per_token := recipe.spec.flops_per_token(recipe):
        limit = limit_of(recipe, dtype)
        work = _work(recipe, dtype.itemsize)
        rate = resources.memory_bandwidth(work.shape.width, dtype)
        tokens = work.tokens + work.n_evaluated / forecast.STEP_TO_FORWARD
        seconds = tokens * forecast.cpu_seconds(work, per_token, limit, rate)
    host.reset_peak_memory()
    return Prediction(parts, limit, seconds, host.resident_memory())


def limit_of(recipe: Pretrain, dtype: torch.dtype, device: torch.device | None = None) -> float:
    """FLOP/s that matmuls of the recipe's shapes reach on a device; None: the processor (text objectives)."""
    of_head = recipe.spec.head_share(recipe)
    return resources.matmul_limit(recipe.dial.shape, dtype, of_head, device)
