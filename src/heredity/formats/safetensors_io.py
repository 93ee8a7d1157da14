"""Safetensors: a header checked without trusting a number in it, and files written tensor by tensor.

Promises: the size of the file bounds every allocation. An accepted file has a JSON header whose tensors cover
the data exactly, without gap or overlap. Anything else is Damaged. A file is written with one tensor in
memory at a time. A folder that is written again keeps the names of its shards, so that an index stays right;
its other files are linked or copied.

Format: the safetensors project's description: 8 bytes of header length, the header, the data.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import msgspec

from heredity.core.errors import Damaged
from heredity.core.files import explain_full_disk
from heredity.core.progress import Watch, phase

if TYPE_CHECKING:
    import torch

Change = Callable[
    [str, "torch.Tensor"], "torch.Tensor"
]  # name, tensor -> the tensor to write under that name
_SKIPPED = ("training.jsonl", "training.svg", "answers.jsonl")  # they describe how the parent was made


def rewrite(
    folder: Path,
    out: Path,
    change: Change,
    added: Mapping[str, torch.Tensor] = MappingProxyType({}),
    watch: Watch | None = None,
) -> None:
    """Write the model in `folder` into `out`, with each tensor changed by `change`.

    added: further tensors, which go into the last shard. watch: gets the count of tensors.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise Damaged(f"{folder}: there is no safetensors file")
    copy_rest(folder, out)
    n_total = sum(len(read_safetensors(shard)) for shard in shards)
    with phase(watch, "converting", n_total=n_total, unit="tensors") as meter:
        for shard in shards:
            with safe_open(shard, framework="pt") as file:
                made = meter.each(
                    file.keys(), lambda name: (name, change(name, file.get_tensor(name)).contiguous())
                )
                tensors = dict(made)
            if shard == shards[-1]:
                tensors |= added
            with explain_full_disk(out, shard.stat().st_size):
                save_file(tensors, out / shard.name, metadata={"format": "pt"})
    if added and (index := out / INDEX).is_file():
        entries = json.loads(index.read_text("utf-8"))
        entries["weight_map"] |= dict.fromkeys(added, shards[-1].name)
        replace_json(index, entries)


def replace_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON object in place of a file, which may be a link to the parent's."""
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def copy_rest(folder: Path, out: Path) -> None:
    """Link configuration, tokenizer and template into another folder, or copy them."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in _SKIPPED or not path.is_file():
            continue
        try:
            os.link(path, out / path.name)
        except OSError:
            shutil.copyfile(path, out / path.name)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a folder by name."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
    if not tensors:
        raise Damaged(f"{folder}: there is no safetensors file")
    return tensors


INDEX = "model.safetensors.index.json"  # which file holds a tensor, of a model in several
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors package
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_MAX_AXES = 16
# Both limits keep the work linear in the header: a product of many large numbers is not.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class SafeTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of the header: dtype, shape, and its bytes within the data."""

    dtype: str
    shape: Annotated[list[_Count], msgspec.Meta(max_length=_MAX_AXES)]
    data_offsets: tuple[_Count, _Count]


def read_safetensors(path: Path) -> dict[str, SafeTensor]:
    """Check a safetensors file and read its header. Raises Damaged, with what is wrong."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            if size < 8:
                raise Damaged(f"it has {size} bytes")
            if n_header > min(_MAX_HEADER, size - 8):
                raise Damaged(f"cut off, or no such file: a header of {n_header:,} bytes in {size:,}")
            return _read(file.read(n_header), size - 8 - n_header)
    except Damaged as error:
        raise Damaged(
            f"{path}: not a whole safetensors file: {error}. Get it again.",
        ) from error


def _read(header: bytes, n_data: int) -> dict[str, SafeTensor]:
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        if (metadata := entries.pop("__metadata__", None)) is not None:
            msgspec.json.decode(metadata, type=dict[str, str])
        tensors = {name: msgspec.json.decode(raw, type=SafeTensor) for name, raw in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"its header does not read ({str(error)[:120]})") from error
    if not tensors:
        raise Damaged("it holds no tensors")
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        start, end = tensor.data_offsets
        bits = _BITS.get(tensor.dtype)
        if bits is None:
            raise Damaged(f"tensor {name[:80]!r} has the unknown type {tensor.dtype[:20]!r}")
        if start != at or end < start:
            raise Damaged(f"tensor {name[:80]!r} leaves a gap or lies over another")
        if math.prod(tensor.shape) * bits != (end - start) * 8:
            raise Damaged(f"tensor {name[:80]!r} has not the bytes of its shape")
        at = end
    if at != n_data:
        raise Damaged(f"its tensors need {at:,} bytes, it has {n_data:,}")
    return tensors


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[str, Sequence[int]]], tensor: Callable[[str], torch.Tensor]
) -> None:
    """Write a file of tensors whose dtype (in the format's spelling) and shape are known in advance.

    tensor: returns the torch tensor of a name. Raises Damaged if its dtype or shape differs.
    """
    import torch

    entries: dict[str, SafeTensor] = {}
    at = 0
    # Wide types first, as in the safetensors package, so that each offset is a multiple of its size.
    for name in sorted(shapes, key=lambda name: (-_BITS[shapes[name][0]], name)):
        kind, shape = shapes[name]
        end = at + math.prod(shape) * _BITS[kind] // 8
        entries[name] = SafeTensor(kind, list(shape), (at, end))
        at = end
    encoded = msgspec.json.encode({"__metadata__": {"format": "pt"}, **entries})
    encoded += b" " * (-len(encoded) % 8)
    with explain_full_disk(path.parent, at), path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, entry in entries.items():
            made, (start, end) = tensor(name), entry.data_offsets
            data = made.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            if list(made.shape) != entry.shape or data.nbytes != end - start:
                raise Damaged(f"tensor {name[:80]!r} came out with another shape or type than was planned")
            file.write(data.data)
