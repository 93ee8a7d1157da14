"""Tiny models whose matrices are packed as the tools of GPTQ, AWQ, FP8 and others pack them.

The packers are written out number by number, apart from the reader that they test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

GROUP = 16
_MATRIX = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
Tensors = dict[str, torch.Tensor]
Packer = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]  # weight -> its tensors, its exact values


def _to_int32(numbers: list[int], bits: int, order: tuple[int, ...] | None = None) -> int:
    """One int32 of numbers, the first in its lowest bits; `order`: which number lies where."""
    word = 0
    for at in range(32 // bits):
        word |= numbers[order[at] if order else at] << (bits * at)
    return word - (1 << 32) if word >= 1 << 31 else word


def _pack_rows(numbers: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """(rows, n) -> int32 (rows, n * bits / 32)"""
    n = 32 // bits
    return torch.tensor(
        [
            [_to_int32(row[at : at + n], bits, order) for at in range(0, len(row), n)]
            for row in numbers.tolist()
        ],
        dtype=torch.int32,
    )


def _quantized(weight: torch.Tensor, groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, ...]:
    """Unsigned numbers (out, in), zero points and half-precision scales (out, groups), exact values."""
    n_groups, most = int(groups.max()) + 1, (1 << bits) - 1
    numbers, exact = torch.zeros_like(weight, dtype=torch.int64), torch.zeros_like(weight)
    zeros = torch.zeros(len(weight), n_groups, dtype=torch.int64)
    scales = torch.zeros(len(weight), n_groups)
    for group in range(n_groups):
        there = groups == group
        part = weight[:, there]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scales[:, group] = ((high - low) / most).half().float()
        zeros[:, group] = torch.round(-low / scales[:, group]).long().clamp(1, most)
        found = torch.round(part / scales[:, group, None]) + zeros[:, group, None]
        numbers[:, there] = found.long().clamp(0, most)
        exact[:, there] = (numbers[:, there] - zeros[:, group, None]).float() * scales[:, group, None]
    return numbers, zeros, scales, exact


def gptq(bits: int = 4, is_ordered: bool = True, version: int = 1) -> Packer:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        groups = torch.arange(weight.shape[1]) // GROUP
        if not is_ordered:
            groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(3))]
        numbers, zeros, scales, exact = _quantized(weight, groups, bits)
        return {
            "qweight": _pack_rows(numbers, bits).t().contiguous(),
            "qzeros": _pack_rows(zeros.t() - int(version == 1), bits),
            "scales": scales.t().half().contiguous(),
            "g_idx": groups.int(),
        }, exact

    return pack


def awq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    numbers, zeros, scales, exact = _quantized(weight, torch.arange(weight.shape[1]) // GROUP, 4)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {
        "qweight": _pack_rows(numbers.t(), 4, order),
        "qzeros": _pack_rows(zeros.t(), 4, order),
        "scales": scales.t().half().contiguous(),
    }
    return tensors, exact


def compressed(bits: int = 4, is_symmetric: bool = True) -> Packer:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        numbers, zeros, scales, exact = _quantized(weight, torch.arange(weight.shape[1]) // GROUP, bits)
        middle = 1 << (bits - 1)
        tensors = {"weight_scale": scales.half(), "weight_shape": torch.tensor(weight.shape)}
        if is_symmetric:
            exact = (numbers - middle).float() * scales.repeat_interleave(GROUP, 1)
        else:
            tensors["weight_zero_point"] = _pack_rows(zeros.t(), bits).t().contiguous()
        return {**tensors, "weight_packed": _pack_rows(numbers, bits)}, exact

    return pack


def int8_by_channel(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    numbers = torch.round(weight / scale)
    return {"weight": numbers.to(torch.int8), "weight_scale": scale}, numbers * scale


def fp8_blocks(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """One scale for 48 by 48 numbers: the last blocks are cut off."""
    n = 48
    rows, columns = (-(-size // n) for size in weight.shape)
    scales, numbers, exact = torch.zeros(rows, columns), torch.zeros_like(weight), torch.zeros_like(weight)
    for i in range(rows):
        for j in range(columns):
            at = slice(i * n, i * n + n), slice(j * n, j * n + n)
            scales[i, j] = weight[at].abs().max() / 448
            numbers[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn).float()
            exact[at] = numbers[at] * scales[i, j]
    return {"weight": numbers.to(torch.float8_e4m3fn), "weight_scale_inv": scales}, exact


def fp8_by_channel(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    numbers = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale": scale}, numbers.float() * scale


_NF4 = torch.tensor(
    [-1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1]
)


def nf4(is_nested: bool) -> Packer:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        blocks = weight.reshape(-1, 64)
        scales = blocks.abs().amax(1)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "shape": list(weight.shape)}
        tensors: Tensors = {"weight.quant_map": _NF4}
        if is_nested:
            table, mean = torch.arange(256) / 128 - 1, float(scales.mean())
            outer = (scales - mean).abs().max().reshape(1)
            codes = ((scales - mean)[:, None] / outer - table).abs().argmin(1)
            scales = table[codes] * outer + mean
            state |= {"nested_blocksize": 256, "nested_offset": mean}
            tensors |= {"weight.nested_absmax": outer, "weight.nested_quant_map": table}
        tensors["weight.absmax"] = codes.to(torch.uint8) if is_nested else scales
        numbers = (blocks[:, :, None] / scales[:, None, None] - _NF4).abs().argmin(2)
        pairs = [(a << 4) | b for a, b in numbers.reshape(-1, 2).tolist()]
        tensors["weight"] = torch.tensor(pairs, dtype=torch.uint8)[:, None]
        text = list(json.dumps(state).encode())
        tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(text, dtype=torch.uint8)
        return tensors, (_NF4[numbers] * scales[:, None]).reshape(weight.shape)

    return pack


def bnb_int8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    most = weight.abs().amax(1)
    numbers = torch.round(weight * 127 / most[:, None])
    return {"weight": numbers.to(torch.int8), "SCB": most}, numbers * (most[:, None] / 127)


def _groups(bits: int, form: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "group_size": GROUP, **more}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


# By name: the quantization_config, and how a matrix is packed under it.
FORMATS: dict[str, tuple[dict[str, Any], Packer]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False}, gptq()),
    "gptq-8": ({"quant_method": "gptq", "bits": 8, "group_size": GROUP, "sym": False}, gptq(8)),
    "gptq-act-order": ({"quant_method": "gptq", "bits": 4, "desc_act": True}, gptq(4, is_ordered=False)),
    "gptq-v2": ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}, gptq(4, version=2)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, awq),
    "pack-4": (_groups(4, "pack-quantized", symmetric=True), compressed()),
    "pack-4-asymmetric": (_groups(4, "pack-quantized", symmetric=False), compressed(4, is_symmetric=False)),
    "pack-8": (_groups(8, "pack-quantized", symmetric=True), compressed(8)),
    "int8": (_groups(8, "int-quantized"), int8_by_channel),
    "float8": (_groups(8, "float-quantized"), fp8_by_channel),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [48, 48]}, fp8_blocks),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4(False)),
    "nf4-nested": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4(True)),
    "bnb-int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, bnb_int8),
}


def pack_folder(folder: Path, name: str) -> Tensors:
    """Pack the matrices of a model's folder in place; return the exact values of all its tensors."""
    from safetensors.torch import load_file, save_file

    config, pack = FORMATS[name]
    place = folder / "model.safetensors"
    written: Tensors = {}
    exact: Tensors = {}
    for key, tensor in load_file(place).items():
        if _MATRIX.fullmatch(key):
            parts, exact[key] = pack(tensor.float())
            written |= {f"{key.removesuffix('weight')}{part}": value.clone() for part, value in parts.items()}
        else:
            written[key] = exact[key] = tensor
    save_file(written, place, {"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": config}))
    return exact
