"""LoRA adapters of random values in PEFT's files, written without PEFT, which takes seconds to load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_adapter(
    base: Path, out: Path, seed: int, rank: int = 4, targets: Sequence[str] = ALL, strength: float = 0.3,
    more: Sequence[str] = (), **settings: object,
) -> Path:  # fmt: skip
    """Write an adapter of `base`. more: further tensors of each target. settings: of adapter_config.json."""
    stream, tensors = torch.Generator().manual_seed(seed), {}
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                module = name.removesuffix(".weight")
                if not name.endswith(".weight") or module.rpartition(".")[2] not in targets:
                    continue
                n_out, n_in = file.get_slice(name).get_shape()
                sizes: dict[str, tuple[int, ...]] = {"lora_A.weight": (rank, n_in)}
                sizes |= {"lora_B.weight": (n_out, rank), **dict.fromkeys(more, (n_out,))}
                for side, size in sizes.items():
                    drawn = torch.randn(size, generator=stream) * strength
                    tensors[f"base_model.model.{module}.{side}"] = drawn
    out.mkdir(parents=True)
    save_file(tensors, out / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, **settings}
    (out / "adapter_config.json").write_text(json.dumps({**config, "target_modules": list(targets)}))
    return out
