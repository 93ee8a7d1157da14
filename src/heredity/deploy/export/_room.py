"""What memory an export takes at its widest place, reckoned from the sizes of the tensors before it starts.

hf: transformers holds the embedding or the head in fp32, and one layer at a time. gguf: transformers reads
the file back whole, in the precision that was written. The torch engine, against which both are held, takes
one layer.

Promises: errs low, so that nothing that fits is refused; who is refused is told what would fit.
Leaves to others: how much there is (engines/_memory.py).
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from heredity.core.host import GIB, available_memory, require_memory
from heredity.deploy.export._parity import ExportSource
from heredity.engines.formats.safetensors_io import SafeTensor, read_safetensors

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_WIDTH = {"BF16": 2, "F16": 2}  # bytes of a number that is read back; of any other kind 4
ADVICE = "Nothing can be set lower here: close other programs, or export on a machine with more."


def refuse_too_large(source: ExportSource, said: str, has: int | None) -> None:
    """Raise OutOfMemory, with what would fit, where the export takes more than there is, or than `has`."""
    if (room := available_memory() if has is None else has) is None:
        return
    parts = needed(source, source.to)
    require_memory(said, parts, _fitting(source, sum(parts.values()), room), room)


def needed(source: ExportSource, to: str) -> dict[str, int]:
    """Bytes at the widest place of writing `to` and reading it back, by part."""
    tensors = _tensors(source.whole.folder)
    sizes = {name: math.prod(each.shape) for name, each in tensors.items()}
    if to == "gguf":
        kinds = {each.dtype for each in tensors.values()}
        is_rounded = source.model.record.format == "gguf"  # its blocks stand for numbers of any kind
        width = 4 if is_rounded or len(kinds) > 1 else _WIDTH.get(kinds.pop(), 4)
        return {"weights as they are read back": sum(sizes.values()) * width}
    layers: dict[str, int] = {}
    for name, size in sizes.items():
        if found := _LAYER.match(name):
            layers[found[1]] = layers.get(found[1], 0) + size
    rest = max((size for name, size in sizes.items() if not _LAYER.match(name)), default=0)
    return {"embedding or head in fp32": 4 * rest, "one layer": 4 * max(layers.values(), default=0)}


def _fitting(source: ExportSource, takes: int, room: int) -> str:
    """What could be had in `room` bytes instead."""
    from heredity.deploy.export import names

    for other in names():
        if other != source.to and (less := sum(needed(source, other).values())) <= room:
            return f"--to {other} takes about {less / GIB:.2f} GiB, which is there. {ADVICE}"
    return f"A model of its shape and {room / takes:.0%} of its weights would fit. {ADVICE}"


def _tensors(folder: Path) -> dict[str, SafeTensor]:
    return {
        name: each for shard in folder.glob("*.safetensors") for name, each in read_safetensors(shard).items()
    }
