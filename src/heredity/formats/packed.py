"""Weights as quantization tools pack them, read back as the numbers that they stand for.

    gptq                 4 or 8 bits, with or without a zero point, groups in any order (g_idx)
    awq                  4 bits, as "gemm" packs them
    compressed-tensors   pack-quantized (4 or 8 bits), int-quantized, float-quantized (FP8)
    fp8, fbgemm_fp8      one scale per block, per output or per tensor
    bitsandbytes         4 bits (nf4, fp4) with plain or nested scales; int8

Promises: no library of the tool is needed. Sizes are checked against the tensors: nothing is allocated by a
number in a file.
Leaves to others: the files (recipes/dequantize.py).

Sources: the formats as AutoGPTQ, AutoAWQ, compressed-tensors, transformers (FP8) and bitsandbytes write them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from heredity.core.errors import Damaged, Unavailable

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
