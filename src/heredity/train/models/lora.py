"""The trainable weights: all of them, or low-rank adapters (LoRA, in PEFT's file format).

Sources: Hu et al. 2021 (2106.09685); rank-stabilized scale alpha / sqrt(r), Kalajdzievski 2023 (2312.03732).

Promises: a new adapter changes nothing. Its matrices depend only on the seed. Files are as PEFT writes them.
Leaves to others: the loop (loop.py), and inference with an adapter (engines/torch/).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from heredity.core.errors import UsageError
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.shapes import LINEAR_LAYERS


@dataclass(frozen=True)
class FullFinetune:
    """All weights are trainable."""

    FORMAT: ClassVar[Literal["safetensors"]] = "safetensors"  # of the files that `save` writes

    def open(self, network: CausalLM, seed: int) -> list[tuple[str, nn.Parameter]]:  # noqa: ARG002
        """Make all weights trainable and return them by name."""
        network.model.requires_grad_(True)
        return list(network.model.named_parameters())

    def n_trainable(self, network: CausalLM) -> int:
        """The number of trainable parameters."""
        return sum(each.numel() for each in network.model.parameters())

    def save(self, network: CausalLM, out: Path) -> None:
        """Write the whole model as safetensors."""
        network.model.save_pretrained(out, max_shard_size="5GB")


@dataclass(frozen=True)
class LowRankAdapters:
    """Adapters of rank `rank` on the linear layers that `target_modules` names, as in PEFT."""

    FORMAT: ClassVar[Literal["adapter"]] = "adapter"

    rank: int = 16
    alpha: float = 16.0
    use_rslora: bool = True
    target_modules: tuple[str, ...] = LINEAR_LAYERS

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def open(self, network: CausalLM, seed: int) -> list[tuple[str, nn.Parameter]]:
        """Freeze the model, add adapters and return their weights. Raises UsageError for unknown modules."""
        network.model.requires_grad_(False)
        found = [
            (parent, name, child)
            for parent in list(network.model.modules())
            for name, child in parent.named_children()
            if name in self.target_modules and isinstance(child, nn.Linear)
        ]
        missing = set(self.target_modules) - {name for _, name, _ in found}
        if missing:
            raise UsageError(f"The model has no linear layer '{min(missing)}' for an adapter.")
        generator = torch.Generator().manual_seed(seed)
        for parent, name, child in found:
            setattr(parent, name, LoraLinear(child, self.rank, self.scale, generator))
        return [(name, p) for name, p in network.model.named_parameters() if p.requires_grad]

    def n_trainable(self, network: CausalLM) -> int:
        """The number of parameters that the adapters will have. Call it before `open`."""
        layers = [
            module
            for name, module in network.model.named_modules()
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in self.target_modules
        ]
        return sum(self.rank * (each.in_features + each.out_features) for each in layers)

    def save(self, network: CausalLM, out: Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json, as PEFT does."""
        from safetensors.torch import save_file

        tensors = {}
        for name, module in _lora_layers(network.model):
            tensors[f"base_model.model.{name}.lora_A.weight"] = module.lora_a.detach().float().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = module.lora_b.detach().float().contiguous()
        save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "use_rslora": self.use_rslora,
            "target_modules": sorted(self.target_modules),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
        }
        (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


Trainable = FullFinetune | LowRankAdapters


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter: x W' + b + scale * (x A') B'."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        n_out, n_in = base.weight.shape
        bound = 1 / math.sqrt(n_in)  # kaiming_uniform with a = sqrt(5), as in PEFT
        initial = (torch.rand((rank, n_in), generator=generator) * 2 - 1) * bound
        self.lora_a = nn.Parameter(initial.to(base.weight.device, base.weight.dtype))
        self.lora_b = nn.Parameter(base.weight.new_zeros((n_out, rank)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)"""
        rows = x.reshape(-1, x.shape[-1])
        out: torch.Tensor = _LoraFunction.apply(  # type: ignore[no-untyped-call]
            rows, self.base.weight, self.base.bias, self.lora_a, self.lora_b, self.scale
        )
        return out.view(*x.shape[:-1], -1)


class _LoraFunction(torch.autograd.Function):
    """The layer and its adapter as matmuls that accumulate, so that no sum is a pass of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low = functional.linear(x, a)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return functional.linear(x, weight, bias).addmm_(low, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        of_low = (out @ b).mul_(ctx.scale)
        of_x = torch.addmm(of_low @ a, out, weight) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_low.T @ x, (out.T @ low).mul_(ctx.scale), None


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module
