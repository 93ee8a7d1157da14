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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from heredity.core.errors import UsageError
from heredity.formats.activation import Gate
from heredity.formats.linear_layers import is_linear, is_transposed, linear_layers, shape_of
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.shapes import LINEAR_LAYERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_READ_AS_EXPERTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")  # by PEFT 0.21


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
    """Adapters of rank `rank` on the linear layers that `target_modules` names, as in PEFT.

    invocation: the tokens that wake an activated LoRA; () for one that is always awake.
    """

    FORMAT: ClassVar[Literal["adapter"]] = "adapter"

    rank: int = 16
    alpha: float = 16.0
    use_rslora: bool = True
    target_modules: tuple[str, ...] = LINEAR_LAYERS
    invocation: tuple[int, ...] = ()

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def open(self, network: CausalLM, seed: int) -> list[tuple[str, nn.Parameter]]:
        """Freeze the model, add adapters and return their weights. Raises UsageError for unknown modules."""
        model = network.model
        found = self._adapted(model)
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        network.gate = Gate() if self.invocation else None
        for full_name in found:
            parent, _, name = full_name.rpartition(".")
            owner = model.get_submodule(parent)
            child = owner.get_submodule(name)
            setattr(owner, name, LoraLinear(child, self.rank, self.scale, generator, network.gate))
        return [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def _adapted(self, model: PreTrainedModel) -> list[str]:
        """The names of the layers that get an adapter.

        An architecture that has other linear layers than the default ones gets an adapter on all of its own.
        In a mixture of experts the feed-forward layers get none, since PEFT reads their names as the experts.
        """
        names = {id(module): name for name, module in model.named_modules()}
        found = [
            f"{names[id(parent)]}.{name}".removeprefix(".")
            for parent in model.modules()
            for name, child in parent.named_children()
            if name in self.target_modules and is_linear(child)
        ]
        missing = set(self.target_modules) - {name.rpartition(".")[2] for name in found}
        has_experts = any(".experts." in name for name, _ in model.named_parameters())
        if not missing and not has_experts:
            return found
        left_out = _READ_AS_EXPERTS if has_experts else ()
        layers = [name for name in linear_layers(model) if name.rpartition(".")[2] not in left_out]
        if self.target_modules == LINEAR_LAYERS and layers:
            return layers
        there = sorted({name.rpartition(".")[2] for name in layers})
        missing |= set(self.target_modules) - set(there)
        if not missing:
            return found
        raise UsageError(
            f"The model has no linear layer '{min(missing)}' for an adapter. It has: {', '.join(there)}.",
            code="unknown-name",
        )

    def n_trainable(self, network: CausalLM) -> int:
        """The number of parameters that the adapters will have. Call it before `open`."""
        layers = [network.model.get_submodule(name) for name in self._adapted(network.model)]
        return sum(self.rank * sum(shape_of(each)) for each in layers)

    def save(self, network: CausalLM, out: Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json, as PEFT does."""
        from safetensors.torch import save_file

        tensors, names, is_turned = dict[str, torch.Tensor](), set[str](), False
        for name, module in _lora_layers(network.model):
            names.add(name.rpartition(".")[2])
            is_turned = is_turned or module.is_transposed
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
            "target_modules": sorted(names),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            **({"fan_in_fan_out": True} if is_turned else {}),
            **({"alora_invocation_tokens": [*self.invocation]} if self.invocation else {}),
        }
        (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


Trainable = FullFinetune | LowRankAdapters


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter: x W' + b + scale * (x A') B'.

    gate: of an activated adapter, which changes some of the rows.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        scale: float,
        generator: torch.Generator,
        gate: Gate | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.base, self.scale, self.is_transposed = base, scale, is_transposed(base)
        (n_in, n_out), weight = shape_of(base), base.get_parameter("weight").detach()
        bound = 1 / math.sqrt(n_in)  # kaiming_uniform with a = sqrt(5), as in PEFT
        initial = (torch.rand((rank, n_in), generator=generator) * 2 - 1) * bound
        self.lora_a = nn.Parameter(initial.to(weight))
        self.lora_b = nn.Parameter(weight.new_zeros((n_out, rank)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)"""
        rows, weight = x.reshape(-1, x.shape[-1]), self.base.get_parameter("weight")
        changed = None if self.gate is None else self.gate.rows
        out: torch.Tensor = _LoraFunction.apply(  # type: ignore[no-untyped-call]
            rows,
            weight.t() if self.is_transposed else weight,
            self.base.bias,
            self.lora_a,
            self.lora_b,
            self.scale,
            None if changed is None else changed.reshape(-1, 1).to(x.dtype),
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
        changed: torch.Tensor | None,
    ) -> torch.Tensor:
        low = functional.linear(x, a)
        low = low if changed is None else low.mul_(changed)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale, ctx.changed = scale, changed
        return functional.linear(x, weight, bias).addmm_(low, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        of_low = (out @ b).mul_(ctx.scale)
        of_low = of_low if ctx.changed is None else of_low.mul_(ctx.changed)
        of_x = torch.addmm(of_low @ a, out, weight) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_low.T @ x, (out.T @ low).mul_(ctx.scale), None, None


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module
