"""Weights as quantization tools pack them, read back as the numbers that they stand for.

    gptq                 4 or 8 bits, with or without a zero point, groups in any order (g_idx)
    awq                  4 bits, as "gemm" packs them
    compressed-tensors   pack-quantized (4 or 8 bits), int-quantized, float-quantized (FP8)
    fp8, fbgemm_fp8      one scale per block, per output or per tensor
    bitsandbytes         4 bits (nf4, fp4) with plain or nested scales; int8

Promises: no library of the tool is needed. Sizes are checked against the tensors: nothing is allocated by a
number in a file.

`read_grids` and `read_gguf_grid` give some rows of a matrix and the steps of its grid, also of a GGUF. A
format that is not known here gives no matrix.

Sources: the formats as AutoGPTQ, AutoAWQ, compressed-tensors, transformers (FP8) and bitsandbytes write them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open

from heredity.core.errors import Damaged, Unavailable
from heredity.formats.gguf import GgufHeader, GgufTensor
from heredity.formats.gguf_weights import Array
from heredity.formats.safetensors_io import SafeTensor

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


Take = Callable[[str], torch.Tensor]
Unpack = Callable[[str, Take], torch.Tensor]  # base name, reader -> float32 (outputs, inputs)

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # of the eight numbers in an int32
_ACTIVATIONS = (
    "input_scale", "output_scale", "activation_scale", "input_zero_point", "output_zero_point",
    "input_global_scale", "k_scale", "v_scale",
)  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """How one tool packs a matrix.

    main: endings of the tensor that holds the numbers. parts: endings of all tensors of a matrix, without its
    bias. unpack: reads a matrix by its base name.
    """

    main: tuple[str, ...]
    parts: tuple[str, ...]
    unpack: Unpack


def packing_of(config: Mapping[str, object], names: Iterable[str]) -> Packing:
    """Return the packing that a quantization_config describes. names: of all tensors of the model.

    Raises Unavailable for one that is not read here, such as AQLM or 3 bits.
    """
    method, bits = str(config.get("quant_method")), config.get("bits")
    if method == "gptq" and bits in (2, 4, 8):
        n_off = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
        return Packing(
            (".qweight",), (".qweight", ".qzeros", ".scales", ".g_idx"), _gptq(int(str(bits)), n_off)
        )
    if method == "awq" and bits in (4, None) and str(config.get("version", "gemm")).lower() == "gemm":
        return Packing((".qweight",), (".qweight", ".qzeros", ".scales"), _awq)
    if method == "compressed-tensors":
        return _compressed(config)
    if method in ("fp8", "fbgemm_fp8"):
        scales = (".weight_scale_inv", ".weight_scale")
        return Packing(
            scales,
            (*scales, *_dotted(_ACTIVATIONS)),
            _scaled(scales, block_of(config)),
        )
    if method == "bitsandbytes" or method.startswith("bitsandbytes_"):
        if any(name.endswith(".SCB") for name in names):
            return Packing((".SCB",), (".SCB", ".weight_format"), _bnb_int8)
        kinds = ("nf4", "fp4")
        states = tuple(f".weight.quant_state.bitsandbytes__{kind}" for kind in kinds)
        parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        return Packing(states, (*states, *(f".weight.{part}" for part in parts)), _bnb_4bit)
    raise Unavailable(
        f"Weights quantized by '{method}'{f' with {bits} bits' if bits else ''} are not read here. Others may"
        " answer: vllm:NAME, or llamacpp:NAME with a GGUF of the model.",
        code="architecture-unsupported",
    )


def _dotted(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{name}" for name in names)


def unpacked_bits(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the unsigned numbers in int32 (rows, columns), lowest first: (rows, columns * 32 / bits)."""
    if packed.dtype != torch.int32 or packed.dim() != 2:
        raise ValueError(f"packed numbers must be int32 of two axes, not {packed.dtype} {list(packed.shape)}")
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    values = torch.bitwise_and(packed[:, :, None] >> shifts, (1 << bits) - 1)
    return values.reshape(len(packed), -1)


def _gptq(bits: int, n_off: int) -> Unpack:
    """n_off: what was subtracted from the zero points before they were packed: 1 in the first format."""

    def unpack(base: str, take: Take) -> torch.Tensor:
        numbers = unpacked_bits(take(f"{base}.qweight").t().contiguous(), bits).t()  # (inputs, outputs)
        zeros = unpacked_bits(take(f"{base}.qzeros"), bits) + n_off
        scales, groups = take(f"{base}.scales").float(), _optional(take, f"{base}.g_idx")
        if groups is None:
            groups = torch.arange(len(numbers)) // _size_of_group(len(numbers), len(scales))
        groups = groups.long()
        return ((numbers - zeros[groups]).float() * scales[groups]).t()

    return unpack


def _awq(base: str, take: Take) -> torch.Tensor:
    def numbers(name: str) -> torch.Tensor:
        unpacked = unpacked_bits(take(f"{base}.{name}"), 4)
        return unpacked.reshape(len(unpacked), -1, 8)[:, :, _AWQ_ORDER].reshape(len(unpacked), -1)

    weights, zeros, scales = numbers("qweight"), numbers("qzeros"), take(f"{base}.scales").float()
    n_each = _size_of_group(len(weights), len(scales))
    return ((weights - zeros.repeat_interleave(n_each, 0)).float() * scales.repeat_interleave(n_each, 0)).t()


def _size_of_group(n: int, n_groups: int) -> int:
    if n_groups < 1 or n % n_groups:
        raise ValueError(f"{n} inputs are not {n_groups} groups")
    return n // n_groups


# --- compressed-tensors, FP8 ---


def _compressed(config: Mapping[str, object]) -> Packing:
    groups, form = config.get("config_groups"), str(config.get("format"))
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    weights = [each.get("weights") for each in schemes if isinstance(each, dict)]
    sizes = {each.get("num_bits") for each in weights if isinstance(each, dict)}
    if form == "pack-quantized" and sizes in ({4}, {8}):
        main, unpack = (".weight_packed",), _pack_quantized(int(sizes.pop()))
    elif form in ("int-quantized", "naive-quantized", "float-quantized") and sizes == {8}:
        main, unpack = (".weight_scale",), _scaled((".weight_scale",), block_of(config))
    else:
        raise Unavailable(
            f"compressed-tensors of the format '{form}' and bits {sorted(map(str, sizes))} are not read here."
            " vllm:NAME may answer.",
            code="architecture-unsupported",
        )
    parts = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
    return Packing(main, _dotted((*parts, *_ACTIVATIONS)), unpack)


def _pack_quantized(bits: int) -> Unpack:
    def unpack(base: str, take: Take) -> torch.Tensor:
        packed, scales = take(f"{base}.weight_packed"), take(f"{base}.weight_scale").float()
        n_out, n_in = take(f"{base}.weight_shape").tolist()
        if n_out != len(packed) or not 0 <= packed.shape[1] * (32 // bits) - n_in < 32 // bits:
            raise ValueError(f"{n_out} by {n_in} are not the numbers of {list(packed.shape)}")
        numbers = unpacked_bits(packed, bits)[:, :n_in] - (1 << (bits - 1))
        zeros = _optional(take, f"{base}.weight_zero_point")
        if zeros is not None:
            if zeros.dtype == torch.int32:  # packed along the outputs
                zeros = unpacked_bits(zeros.t().contiguous(), bits).t()[:n_out] - (1 << (bits - 1))
            scales_in, zeros = _per_input(scales, n_in, base, take), zeros.float()
            return (numbers.float() - _per_input(zeros, n_in, base, take)) * scales_in
        return numbers.float() * _per_input(scales, n_in, base, take)

    return unpack


def _per_input(groups: torch.Tensor, n_in: int, base: str, take: Take) -> torch.Tensor:
    """Return the value of each input's group: (outputs, groups) -> (outputs, inputs)."""
    places = _optional(take, f"{base}.weight_g_idx")
    if places is not None and bool((places >= 0).all()):
        return groups[:, places.long()]
    return groups.repeat_interleave(_size_of_group(n_in, groups.shape[1]), 1)


def _optional(take: Take, name: str) -> torch.Tensor | None:
    try:
        return take(name)
    except KeyError:
        return None


def block_of(config: Mapping[str, object]) -> tuple[int, int] | None:
    """Return the (outputs, inputs) that share a scale; None if the scales divide the matrix evenly."""
    groups = config.get("config_groups")
    schemes = (
        [each.get("weights") for each in groups.values() if isinstance(each, dict)]
        if isinstance(groups, dict)
        else []
    )
    structures = [each.get("block_structure") for each in schemes if isinstance(each, dict)]
    sizes = config.get("weight_block_size") or next(iter(structures), None)
    if isinstance(sizes, str) and (match := re.fullmatch(r"(\d{1,6})x(\d{1,6})", sizes)):  # of older versions
        sizes = [int(match[1]), int(match[2])]
    if isinstance(sizes, list) and len(sizes) == 2 and all(isinstance(n, int) and n > 0 for n in sizes):
        return sizes[0], sizes[1]
    return None


def _scaled(endings: tuple[str, ...], block: tuple[int, int] | None) -> Unpack:
    """Numbers times a scale per tensor, per output, per group, or per block."""

    def unpack(base: str, take: Take) -> torch.Tensor:
        weight = take(f"{base}.weight").float()
        tensors = (_optional(take, base + ending) for ending in endings)
        scale = next(each for each in tensors if each is not None).float()
        zeros = _optional(take, f"{base}.weight_zero_point")
        if zeros is not None:
            weight = weight - _spread(zeros.float(), weight, block)
        return weight * _spread(scale, weight, block)

    return unpack


def _spread(scale: torch.Tensor, weight: torch.Tensor, block: tuple[int, int] | None) -> torch.Tensor:
    """Return the scales in a shape that multiplies weights (outputs, inputs)."""
    if scale.numel() == 1:
        return scale.reshape(())
    wide = scale[:, None] if scale.dim() == 1 else scale
    for axis, (n, size) in enumerate(zip(wide.shape, weight.shape, strict=True)):
        if n in (1, size):
            continue
        side = block[axis] if block else _size_of_group(size, n)
        if math.ceil(size / side) != n:
            raise ValueError(f"{n} scales for {size} numbers in blocks of {side}")
        wide = wide.repeat_interleave(side, axis).narrow(axis, 0, size)
    return wide


# --- bitsandbytes ---


def _bnb_int8(base: str, take: Take) -> torch.Tensor:
    return take(f"{base}.weight").float() * (take(f"{base}.SCB").float()[:, None] / 127)


def _bnb_4bit(base: str, take: Take) -> torch.Tensor:
    name = f"{base}.weight"
    states = (_optional(take, f"{name}.quant_state.bitsandbytes__{kind}") for kind in ("nf4", "fp4"))
    state = json.loads(bytes(next(each for each in states if each is not None).tolist()))
    packed, scales, values = (take(each) for each in (name, f"{name}.absmax", f"{name}.quant_map"))
    flat = packed.reshape(-1)
    numbers = values.float()[torch.stack([flat >> 4, flat & 15], 1).reshape(-1).long()]
    nested = _optional(take, f"{name}.nested_absmax")
    if nested is not None:
        inner = take(f"{name}.nested_quant_map").float()[scales.long()]
        scales = inner * _per_block(nested.float(), len(inner), int(state["nested_blocksize"]))
        scales = scales + state["nested_offset"]
    shape = [int(n) for n in state["shape"]]
    if not 0 <= len(numbers) - math.prod(shape) <= 1:
        raise ValueError(f"{shape} are not the {len(numbers)} numbers of the tensor")
    numbers = numbers[: math.prod(shape)]
    return (numbers * _per_block(scales.float(), len(numbers), int(state["blocksize"]))).reshape(shape)


def _per_block(scales: torch.Tensor, n: int, n_block: int) -> torch.Tensor:
    """Return the scale of each of n numbers, which share one in blocks."""
    if n_block < 1 or math.ceil(n / n_block) != scales.numel():
        raise ValueError(f"{scales.numel()} scales for {n} numbers in blocks of {n_block}")
    return scales.repeat_interleave(min(n_block, n))[:n]


def unpack(packing: Packing, base: str, take: Take) -> torch.Tensor:
    """Return a matrix in float32. Raises Damaged for tensors that do not fit each other."""
    try:
        return packing.unpack(base, take)
    except (
        ValueError, TypeError, KeyError, IndexError, RuntimeError, StopIteration, ArithmeticError
    ) as error:  # fmt: skip
        raise Damaged(f"The matrix {base[:80]!r} does not read as packed: {str(error)[:200]}.") from None
