"""What a device can do and costs: a table with sources, and this machine's processor as it is measured.

Promises: what is not known is None, never 0.
Leaves to others: what is made of it (forecast.py).
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import msgspec

from heredity.core.errors import Unavailable, UnknownName
from heredity.core.records import Record
from heredity.train.planning.flops import Work

_TABLE = Path(__file__).with_name("gpus.toml")
CPU = "cpu"


class Gpu(Record, frozen=True):
    """A device. The table says what each field is."""

    title: str
    flops: float
    memory: float
    node: int
    link: float
    network: float
    hops: tuple[float, float]
    watts: float | None
    price: float | None
    source: str
    rate: float | None = None  # bytes/s of a pass over memory, where it was measured


@cache
def table() -> dict[str, Gpu]:
    """All of the table, by name."""
    return msgspec.convert(tomllib.loads(_TABLE.read_text("utf-8")), dict[str, Gpu])


def named(name: str, work: Work) -> Gpu:
    """A device of the table, or "cpu", measured at the work's shapes (needs torch). Raises UnknownName."""
    if name == CPU:
        return _measured(work)
    if name not in table():
        raise UnknownName("gpu", name, [*table(), CPU], "heredity plan --help")
    return table()[name]


def _measured(work: Work) -> Gpu:
    from heredity.core import host

    try:
        import torch

        from heredity.train.speed import pass_rate, product_limit
    except ImportError:
        said = "This machine is measured with torch: pip install 'heredity[torch]'."
        raise Unavailable(said) from None
    dtype = torch.bfloat16 if work.bytes == 2 else torch.float32
    rate = pass_rate(work.shape.width, dtype)
    return processor(product_limit(work.shape, dtype), host.available_memory(), rate)


def processor(flops: float, memory: int | None, rate: float | None = None) -> Gpu:
    """This machine, of which nobody knows what it draws and costs."""
    said = "matrix products of the model's own shapes, measured now; free memory as the system tells it"
    room = float("inf") if memory is None else float(memory)
    return Gpu("this machine's processor", flops, room, 1, 1e9, 1e9, (1e-5, 1e-5), None, None, said, rate)
