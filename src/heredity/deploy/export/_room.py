"""Estimate the peak memory of an export from the sizes of its tensors, before it starts.

hf: transformers holds the embedding or the head in fp32, and one layer at a time. gguf: transformers reads
the whole file back, in the precision that was written. The torch engine, the reference, holds one layer.

Promises: the estimate is a lower bound, so an export that fits is never refused. The error names an export
that would fit.
Leaves to others: the available memory (core/host.py).
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from heredity.core import registry
from heredity.core.host import GIB, available_memory, require_memory
from heredity.deploy.export._parity import ExportSource
from heredity.engines.formats.safetensors_io import SafeTensor, read_safetensors

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_WIDTH = {"BF16": 2, "F16": 2}  # bytes per weight that is read back; other dtypes take 4
ADVICE = "No setting lowers this: close other programs, or export on a machine with more memory."


def refuse_too_large(source: ExportSource, said: str, has: int | None) -> None:
    """Raise OutOfMemory if the export needs more than `has` bytes; None means the available memory."""
    if (room := available_memory() if has is None else has) is None:
        return
    parts = needed(source, source.to)
    require_memory(said, parts, _fitting(source, sum(parts.values()), room), room)


def needed(source: ExportSource, to: str) -> dict[str, int]:
    """Return the peak bytes, by part, of writing format `to` and reading it back."""
    tensors = _tensors(source.whole.folder)
    sizes = {name: math.prod(each.shape) for name, each in tensors.items()}
    if to == "gguf":
        kinds = {each.dtype for each in tensors.values()}
        is_rounded = source.model.record.format == "gguf"  # its blocks dequantize to any value
        width = 4 if is_rounded or len(kinds) > 1 else _WIDTH.get(kinds.pop(), 4)
        return {"weights as they are read back": sum(sizes.values()) * width}
    layers: dict[str, int] = {}
    for name, size in sizes.items():
        if found := _LAYER.match(name):
            layers[found[1]] = layers.get(found[1], 0) + size
    rest = max((size for name, size in sizes.items() if not _LAYER.match(name)), default=0)
    return {"embedding or head in fp32": 4 * rest, "one layer": 4 * max(layers.values(), default=0)}


def _fitting(source: ExportSource, takes: int, room: int) -> str:
    """Name an export that fits into `room` bytes."""
    for other in registry.names("deploy.export"):
        if other != source.to and (less := sum(needed(source, other).values())) <= room:
            return f"--to {other} takes about {less / GIB:.2f} GiB, which is available. {ADVICE}"
    return f"A model of this shape with {room / takes:.0%} of the weights would fit. {ADVICE}"


def _tensors(folder: Path) -> dict[str, SafeTensor]:
    return {
        name: each for shard in folder.glob("*.safetensors") for name, each in read_safetensors(shard).items()
    }
