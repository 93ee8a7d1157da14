"""A low-rank adapter beside a resident base: x W' + scale * (x A') B', in the file format of PEFT.

Promises: the base's weights are those of the base and are held once, whatever number of adapters lies over
them; only safetensors and JSON are opened; an adapter that has more than low-rank matrices is refused.
Leaves to others: the base (_weights.py) and making adapters (train/).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn import functional

from heredity.core.errors import Damaged, Unavailable
from heredity.engines.formats.weights import Linear, Weights, read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PLACE = re.compile(
    r"base_model\.model\.(?:model\.)*layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight"
)
_FUSED = {"qkv": ("q_proj", "k_proj", "v_proj"), "out": ("o_proj",), "gate_up": ("gate_proj", "up_proj")}
_FUSED |= {"down": ("down_proj",)}

Pair = tuple[torch.Tensor, torch.Tensor]  # A (rank, in) and B (out, rank)


def scale_of(config: dict[str, Any]) -> float:
    """alpha / r, or alpha / sqrt(r) where the adapter is rank-stabilized. Raises Unavailable for what is not
    plain LoRA."""
    odd = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
    if config.get("peft_type") != "LORA" or odd or config.get("bias", "none") != "none":
        raise Unavailable(f"The adapter is not plain LoRA ({', '.join(odd) or config.get('peft_type')}).")
    rank = int(config["r"])
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def pairs(folder: Path) -> dict[tuple[int, str], Pair]:
    """The matrices of an adapter by layer and projection, in fp32. Raises Damaged."""
    found: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                place = _PLACE.fullmatch(name)
                if place is None:
                    raise Unavailable(f"{folder / TENSORS} adapts {name[:80]!r}, which is not known here.")
                key = (int(place[1]), place[2])
                found.setdefault(key, {})[place[3]] = file.get_tensor(name).float()
    except (OSError, ValueError, RuntimeError) as error:
        raise Damaged(f"{folder / TENSORS}: cannot be read ({error}).") from None
    if any(len(both) != 2 for both in found.values()) or not found:
        raise Damaged(f"{folder / TENSORS}: not the matrices A and B of an adapter.")
    return {key: (both["A"], both["B"]) for key, both in found.items()}


def apply_adapter(weights: Weights, folder: Path, dtype: torch.dtype) -> Weights:
    """The same base with an adapter beside its products; the base's own tensors are shared."""
    scale, matrices = scale_of(read_json(folder / CONFIG)), pairs(folder)
    blocks = []
    for i, block in enumerate(weights.blocks):
        changed: dict[str, Any] = {
            field: beside(getattr(block, field), parts, scale, sizes(weights, field), dtype)
            for field, names in _FUSED.items()
            if any(parts := [matrices.get((i, name)) for name in names])
        }
        blocks.append(dataclasses.replace(block, **changed))
    return dataclasses.replace(weights, blocks=tuple(blocks), base=weights)


def sizes(weights: Weights, field: str) -> list[int]:
    """How many outputs each part of a fused product has; [] where there is one part alone."""
    shape = weights.shape
    if field == "qkv":
        return [shape.n_heads * shape.head_dim, *[shape.n_kv_heads * shape.head_dim] * 2]
    return [shape.intermediate] * 2 if field == "gate_up" else []


def beside(
    base: Linear, parts: Sequence[Pair | None], scale: float, n_out: Sequence[int], dtype: torch.dtype
) -> Linear:
    """One product with the A of all parts on top of each other, one with their B as blocks."""
    there = [pair for pair in parts if pair is not None]
    a = torch.cat([pair[0] for pair in there]).to(dtype).contiguous()
    rows, column = [], 0
    n_columns = len(a)
    for pair, size in zip(parts, n_out or [len(there[0][1])], strict=True):
        block = torch.zeros(size, n_columns)
        if pair is not None:
            rank = pair[0].shape[0]
            block[:, column : column + rank] = pair[1] * scale
            column += rank
        rows.append(block)
    b = torch.cat(rows).to(dtype).contiguous()
    return lambda x: base(x) + functional.linear(functional.linear(x, a), b)
