"""A low-rank adapter applied to a resident base: x W' + scale * (x A') B', in the file format of PEFT.

Promises: the weights of the base are in memory once for any number of adapters. Only safetensors and JSON are
opened. An adapter with anything but low-rank matrices is refused.
Leaves to others: the base (weights.py) and making adapters (train/).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from safetensors import safe_open
from torch.nn import functional

from heredity.core.errors import Damaged, Unavailable
from heredity.engines.formats.weights import Linear, Weights, read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PLACE = re.compile(
    r"base_model\.model\.(?:model\.)*layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight"
)
# Of an activated adapter (aLoRA, 2504.12397) only the tokens behind its invocation are adapted, not all.
_OTHER_THAN_PLAIN = (
    "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "alora_invocation_tokens",
)  # fmt: skip
_FUSED = {"qkv": ("q_proj", "k_proj", "v_proj"), "out": ("o_proj",), "gate_up": ("gate_proj", "up_proj")}
_FUSED |= {"down": ("down_proj",)}


class _LoraShape(msgspec.Struct):
    r: Annotated[int, msgspec.Meta(gt=0)]
    lora_alpha: float
    use_rslora: bool | None = False


Pair = tuple[torch.Tensor, torch.Tensor]  # A (rank, in) and B (out, rank)


def scale_of(config: Mapping[str, object]) -> float:
    """Return alpha / r, or alpha / sqrt(r) of a rank-stabilized adapter.

    Raises Unavailable for an adapter that is not plain LoRA.
    """
    odd = [key for key in _OTHER_THAN_PLAIN if config.get(key)]
    if config.get("peft_type") != "LORA" or odd or config.get("bias", "none") != "none":
        raise Unavailable(f"The adapter is not plain LoRA ({', '.join(odd) or config.get('peft_type')}).")
    try:
        shape = msgspec.convert(config, _LoraShape)
    except msgspec.ValidationError as error:
        raise Damaged(f"The adapter's {CONFIG} does not read: {error}.") from None
    return shape.lora_alpha / (math.sqrt(shape.r) if shape.use_rslora else shape.r)


def pairs(folder: Path) -> dict[tuple[int, str], Pair]:
    """Return the matrices of an adapter by layer and projection, in fp32. Raises Damaged."""
    found: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
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
    """Return the base with an adapter added to its matmuls; the tensors of the base are shared."""
    scale, matrices = scale_of(read_json(folder / CONFIG)), pairs(folder)
    blocks = []
    for i, block in enumerate(weights.blocks):

        def adapted(base: Linear, field: str, layer: int = i) -> Linear:
            parts = [matrices.get((layer, name)) for name in _FUSED[field]]
            return add_low_rank(base, parts, scale, sizes(weights, field), dtype) if any(parts) else base

        blocks.append(
            dataclasses.replace(
                block,
                qkv=adapted(block.qkv, "qkv"),
                out=adapted(block.out, "out"),
                gate_up=adapted(block.gate_up, "gate_up"),
                down=adapted(block.down, "down"),
            )
        )
    return dataclasses.replace(weights, blocks=tuple(blocks), base=weights)


def sizes(weights: Weights, field: str) -> list[int]:
    """Return the number of outputs of each part of a fused matmul; [] for a single part."""
    shape = weights.shape
    if field == "qkv":
        return [shape.n_heads * shape.head_dim, *[shape.n_kv_heads * shape.head_dim] * 2]
    return [shape.intermediate_size] * 2 if field == "gate_up" else []


def add_low_rank(
    base: Linear, parts: Sequence[Pair | None], scale: float, n_out: Sequence[int], dtype: torch.dtype
) -> Linear:
    """Return one matmul with the stacked A of all parts, and one with their B as blocks."""
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
