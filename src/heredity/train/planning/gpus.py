"""The speed and memory of devices: a table with sources, and this machine's measured processor.

Leaves to others: forecasts (forecast.py).
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import msgspec

from heredity.core.errors import Unavailable, UnknownName, how_to_install
from heredity.core.records import Record
from heredity.train.planning.workload import Workload

_TABLE = Path(__file__).with_name("gpus.toml")
CPU = "cpu"


class Gpu(Record, frozen=True):
    """A device. gpus.toml documents each field."""

    title: str
    flops: float
    memory: float
    node: int
    link: float
    network: float
    hops: tuple[float, float]
    source: str
    rate: float | None = None  # bytes/s of a pass over memory, if measured


@cache
def gpu_table() -> dict[str, Gpu]:
    """The devices of gpus.toml, by name."""
    return msgspec.convert(tomllib.loads(_TABLE.read_text("utf-8")), dict[str, Gpu])


def find_gpu(name: str, work: Workload) -> Gpu:
    """A device of the table, or "cpu": this machine, measured with torch. Raises UnknownName."""
    if name == CPU:
        return _measure_processor(work)
    if name not in gpu_table():
        raise UnknownName("gpu", name, [*gpu_table(), CPU], "heredity plan --help")
    return gpu_table()[name]


def _measure_processor(work: Workload) -> Gpu:
    from heredity.core import host

    try:
        import torch

        from heredity.train.resources import matmul_limit, memory_bandwidth
    except ImportError:
        raise Unavailable(f"Measuring this machine needs torch. {how_to_install('torch')}") from None
    dtype = torch.bfloat16 if work.bytes == 2 else torch.float32
    rate = memory_bandwidth(work.shape.width, dtype)
    return this_processor(matmul_limit(work.shape, dtype), host.available_memory(), rate)


def this_processor(flops: float, memory: int | None, rate: float | None = None) -> Gpu:
    """This machine's processor."""
    source = "matrix products of the model's own shapes, measured now; free memory as the system tells it"
    room = float("inf") if memory is None else float(memory)
    return Gpu("this machine's processor", flops, room, 1, 1e9, 1e9, (1e-5, 1e-5), source, rate)
