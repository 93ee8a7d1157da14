"""Quantized matrices as values and the steps of their grids: GGUF, GPTQ, AWQ, compressed-tensors, FP8, nf4.

Promises: some rows of one matrix are in memory at a time. A format that is not known here gives no matrix.
Leaves to others: answering with such weights (engines/), and what the values are compared with.

Sources: the layouts of AutoGPTQ, AutoAWQ, compressed-tensors, bitsandbytes and ggml (the gguf package).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open

from heredity.formats.gguf import GgufHeader, GgufTensor
from heredity.formats.gguf_write import Array
from heredity.formats.packed import block_of
from heredity.formats.safetensors_io import SafeTensor

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # of the eight numbers in a word
_BITS = (2, 4, 8)
_PLAIN = ("F32", "F16", "BF16", "F64")
EXPERT = re.compile(r"\.experts\.(\d+)\.")
_SUB_BLOCK = {"Q2_K": 16, "Q3_K": 16, "Q6_K": 16}  # numbers that share a scale; 32 in other formats


class QuantizedRows(NamedTuple):
    """Rows [:n] of a matrix: the values that it stands for in fp32, and the step of its grid at each."""

    values: torch.Tensor  # (rows, columns)
    steps: torch.Tensor  # broadcasts to `values`; infinity where a block shows no step


Reader = Callable[[int], QuantizedRows]  # the largest number of elements -> the first rows
Places = Mapping[str, tuple[Path, SafeTensor]]


def read_grids(places: Places, quantization: Mapping[str, object]) -> dict[str, Reader]:
    """Return a reader of every quantized matrix of a folder, by the name that its whole matrix would have.

    places: the folder's tensors. quantization: `quantization_config` of its config.json.
    """
    readers: dict[str, Reader] = {}
    for name in places:
        module, _, kind = name.rpartition(".")
        whole = f"{module}.weight"
        if kind == "qweight":
            read = _read_awq if quantization.get("quant_method") == "awq" else _read_gptq
            readers[whole] = partial(read, places, module, quantization)
        elif kind == "weight_packed":
            readers[whole] = partial(_read_packed, places, module)
        elif kind == "weight" and f"{name}.absmax" in places:
            readers[name] = partial(_read_nf4, places, name)
        elif kind == "weight" and places[name][1].dtype == "I8":
            readers[name] = partial(_read_int8, places, name, quantization)
        elif kind == "weight" and places[name][1].dtype == "F8_E4M3":
            readers[name] = partial(_read_fp8, places, name, quantization)
    return readers


def read_gguf_grid(path: Path, tensor: GgufTensor, most: int) -> QuantizedRows:
    """Return the first rows of a tensor of a GGUF. Of an unquantized format the steps are infinite."""
    import gguf

    kind = gguf.GGMLQuantizationType(tensor.type)
    columns = tensor.shape[0]
    n_rows = min(math.prod(tensor.shape[1:]), max(1, most // columns))
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    n_bytes = columns // per_block * block_bytes * n_rows
    wide: Array
    raw = np.fromfile(path, np.uint8, n_bytes, offset=tensor.start).reshape(n_rows, -1)
    if kind.name == "BF16":
        wide = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif kind.name in _PLAIN:
        wide = raw.view({"F32": np.float32, "F16": np.float16, "F64": np.float64}[kind.name])
    else:
        wide = gguf.quants.dequantize(raw, kind)
    values = torch.from_numpy(np.ascontiguousarray(wide, dtype=np.float32)).reshape(n_rows, columns)
    if kind.name in _PLAIN:
        return QuantizedRows(values, torch.tensor(math.inf))
    return QuantizedRows(values, _smallest_gaps(values, _SUB_BLOCK.get(kind.name, 32)))


def gguf_places(header: GgufHeader, names: Sequence[str]) -> dict[str, GgufTensor]:
    """Return the tensor of a GGUF of each of transformers' names; {} for an architecture without a map.

    All experts of a layer are in one tensor.
    """
    import gguf

    known = {word: number for number, word in gguf.MODEL_ARCH_NAMES.items()}
    kind = header.text("general.architecture")
    n_layers = header.metadata.get(f"{kind}.block_count")
    if kind not in known or not isinstance(n_layers, int) or n_layers > 10_000:
        return {}
    table = gguf.get_tensor_name_map(known[kind], n_layers)
    tensors = {each.name: each for each in header.tensors}
    written = {
        name: table.get_name(EXPERT.sub(".experts.", name), try_suffixes=(".weight", ".bias"))
        for name in names
    }
    return {name: tensors[place] for name, place in written.items() if place in tensors}


# --- formats in safetensors ------------------------------------------------------------------------


def _get(places: Places, name: str, rows: int | None = None) -> torch.Tensor:
    with safe_open(places[name][0], framework="pt") as file:
        part = file.get_slice(name)
        tensor: torch.Tensor = part[:] if rows is None else part[:rows]
        return tensor


def _outputs(places: Places, name: str, n: int) -> torch.Tensor:
    """The first n columns of a tensor (inputs, outputs)."""
    with safe_open(places[name][0], framework="pt") as file:
        outputs: torch.Tensor = file.get_slice(name)[:, :n]
        return outputs


def _read_gptq(places: Places, module: str, how: Mapping[str, object], most: int) -> QuantizedRows:
    """Return rows of (out, in) from words of (in / n, out). v1 keeps each zero point less one."""
    bits = _bits(how)
    n_words, n_out = places[f"{module}.qweight"][1].shape
    n_in = n_words * 32 // bits
    n = min(n_out, max(1, most // n_in))
    numbers = _unpacked(_outputs(places, f"{module}.qweight", n), bits, 0)
    scales = _outputs(places, f"{module}.scales", n).float()
    zeros = _unpacked(_outputs(places, f"{module}.qzeros", -(-n * bits // 32)), bits, 1)[:, :n]
    zeros = zeros + (0 if how.get("checkpoint_format") == "gptq_v2" else 1)
    if f"{module}.g_idx" in places:
        group = _get(places, f"{module}.g_idx").long()
    else:
        group = torch.arange(n_in) // max(1, n_in // len(scales))
    scale = scales[group]
    return QuantizedRows(((numbers - zeros[group]) * scale).T, scale.abs().T)


def _read_awq(places: Places, module: str, how: Mapping[str, object], most: int) -> QuantizedRows:
    bits = _bits(how)
    n_in, n_words = places[f"{module}.qweight"][1].shape
    n_each = 32 // bits
    n = n_each * min(n_words, max(1, most // (n_in * n_each)))
    numbers, zeros = (
        _reordered(_unpacked(_outputs(places, f"{module}.{kind}", n // n_each), bits, 1))
        for kind in ("qweight", "qzeros")
    )
    scales = _outputs(places, f"{module}.scales", n).float()
    group = torch.arange(n_in) // max(1, n_in // len(scales))
    scale = scales[group]
    return QuantizedRows(((numbers - zeros[group]) * scale).T, scale.abs().T)


def _read_packed(places: Places, module: str, most: int) -> QuantizedRows:
    """Return rows of compressed-tensors' `pack-quantized`: 4-bit or 8-bit numbers, with or without zero."""
    rows, columns = (int(each) for each in _get(places, f"{module}.weight_shape"))
    n = min(rows, max(1, most // columns))
    words = _get(places, f"{module}.weight_packed", n)
    bits = 32 * words.shape[1] // columns
    middle = 1 << (bits - 1)
    numbers = _unpacked(words, bits, 1)[:, :columns] - middle
    scale = _get(places, f"{module}.weight_scale", n).float()
    group = torch.arange(columns) // max(1, columns // scale.shape[1])
    if f"{module}.weight_g_idx" in places:
        chosen = _get(places, f"{module}.weight_g_idx").long()
        group = chosen if bool((chosen >= 0).all()) else group
    scale = scale[:, group]
    if f"{module}.weight_zero_point" in places:
        zeros = _get(places, f"{module}.weight_zero_point")
        if zeros.dtype == torch.int32:  # packed along the outputs
            zeros = _unpacked(zeros, bits, 0) - middle
        numbers = numbers - zeros[:n].float()[:, group]
    return QuantizedRows(numbers * scale, scale.abs())


def _read_int8(places: Places, name: str, how: Mapping[str, object], most: int) -> QuantizedRows:
    """Return rows of compressed-tensors' integers, or of those of bitsandbytes with their largest values."""
    shape = places[name][1].shape
    n = min(shape[0], max(1, most // shape[1]))
    if (largest := f"{name.removesuffix('weight')}SCB") in places:
        scale = _get(places, largest).float()[:n, None] / 127
    else:
        scale = _of_rows(_get(places, f"{name}_scale").float(), n, shape, block_of(how))
    numbers = _get(places, name, n).float()
    if f"{name}_zero_point" in places:
        numbers -= _of_rows(_get(places, f"{name}_zero_point").float(), n, shape, block_of(how))
    return QuantizedRows(numbers * scale, scale.abs())


def _read_fp8(places: Places, name: str, how: Mapping[str, object], most: int) -> QuantizedRows:
    """Return rows of E4M3 with one scale, one a row, or one a square block."""
    shape = places[name][1].shape
    n = min(shape[0], max(1, most // shape[1]))
    numbers = _get(places, name, n).float()
    scale_name = next((f"{name}_{end}" for end in ("scale", "scale_inv") if f"{name}_{end}" in places), "")
    scale = torch.ones(1, 1)
    if scale_name:
        scale = _of_rows(_get(places, scale_name).float(), n, shape, block_of(how))
    exponent = torch.floor(torch.log2(numbers.abs().clamp_min(2.0**-6)))
    return QuantizedRows(numbers * scale, torch.exp2(exponent - 3) * scale.abs())


def _of_rows(scale: torch.Tensor, n: int, shape: list[int], block: tuple[int, int] | None) -> torch.Tensor:
    """Return the scale of each number of the first n rows, in a shape that broadcasts to them.

    scale: of all, of each row, of groups of a row, or of blocks, of which the last may be cut off.
    """
    if scale.numel() == 1:
        return scale.reshape(1, 1)
    wide = scale[:, None] if scale.ndim == 1 else scale
    tall, broad = (
        1 if have == size else size if have == 1 else block[axis] if block else -(-size // have)
        for axis, (have, size) in enumerate(zip(wide.shape, shape, strict=True))
    )
    return wide[torch.arange(n) // tall].repeat_interleave(broad, 1)[:, : shape[1]]


def _read_nf4(places: Places, name: str, most: int) -> QuantizedRows:
    """Return rows of bitsandbytes' 4-bit numbers; the step at a value is its larger gap to a neighbour."""
    state = next(each for each in places if each.startswith(f"{name}.quant_state."))
    about = json.loads(bytes(_get(places, state).tolist()))
    rows, columns = about["shape"]
    block = int(about["blocksize"])
    n = min(rows, max(1, most // columns))
    packed = _get(places, name).flatten()[: -(-n * columns // 2)].int()
    index = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[: n * columns].long()
    table, largest = _get(places, f"{name}.quant_map").float(), _get(places, f"{name}.absmax")
    if f"{name}.nested_absmax" in places:
        nested, size = _get(places, f"{name}.nested_absmax").float(), int(about["nested_blocksize"])
        spread = nested.repeat_interleave(size)[: len(largest)]
        largest = _get(places, f"{name}.nested_quant_map").float()[largest.long()] * spread
        largest = largest + float(about["nested_offset"])
    scale = largest.float().repeat_interleave(block)[: n * columns].reshape(n, columns)
    gaps = table.diff()
    step = torch.maximum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]]))
    return QuantizedRows(table[index].reshape(n, columns) * scale, step[index].reshape(n, columns) * scale)


def _bits(how: Mapping[str, object]) -> int:
    """Bits of a number. Raises ValueError for an unknown size."""
    bits = how.get("bits", 4)
    if bits not in _BITS:
        raise ValueError(f"{bits} bits")
    return int(str(bits))


def _unpacked(words: torch.Tensor, bits: int, axis: int) -> torch.Tensor:
    """Return the numbers in 32-bit words, lowest bits first, along an axis of a matrix."""
    if bits not in _BITS:
        raise ValueError(f"{bits} bits")
    shifts = torch.arange(0, 32, bits)
    spread = (words.long().unsqueeze(axis + 1) >> shifts.view([-1, *[1] * (1 - axis)])) & ((1 << bits) - 1)
    return spread.flatten(axis, axis + 1).float()


def _reordered(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.view(len(numbers), -1, 8)[:, :, list(_AWQ_ORDER)].reshape(numbers.shape)


def _smallest_gaps(values: torch.Tensor, block: int) -> torch.Tensor:
    """Return the smallest gap between two different values of each block: the step of a linear grid."""
    rows, columns = values.shape
    if columns % block:
        return torch.full((rows, 1), math.inf)
    gaps = values.view(rows, -1, block).sort(-1).values.diff(dim=-1)
    span = values.abs().amax()
    smallest = torch.where(gaps > span * 1e-6, gaps, math.inf).amin(-1, keepdim=True)
    return smallest.expand(-1, -1, block).reshape(rows, columns)
