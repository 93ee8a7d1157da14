"""A LoRA adapter over a model of transformers: x W' + scale * (x A') B', without a rounding of the sum.

Promises: the weights of the base stay as they are, so that the delta does not vanish in bfloat16.
Leaves to others: the files (formats/peft.py), merging (recipes/merge_adapter.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from heredity.core.errors import Damaged, EngineFailure, Unavailable
from heredity.engines.transformers.activated import Activation
from heredity.formats.adapted import tensor_names
from heredity.formats.peft import HEAD, LowRank, read_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Hook = Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]


def apply_adapter(model: PreTrainedModel, folder: Path, base: Path) -> Activation | None:
    """Add the adapter in `folder` to a loaded model, whose files are in `base`.

    Returns what wakes an activated adapter; None for another one.

    Raises Unavailable for an adapter that is more than low-rank matrices, Damaged for one that does not fit.
    """
    names = tensor_names(base)
    is_tied = bool(model.config.get_text_config().tie_word_embeddings) and HEAD not in names
    adapter = read_adapter(folder).fitted(names, is_tied, folder, model.config.model_type)
    if adapter.whole or any(low.magnitude is not None for low in adapter.low_rank.values()):
        raise _must_be_merged(folder, "it replaces tensors or is DoRA")
    activation = Activation(adapter.invocation, model.device) if adapter.invocation else None
    modules = dict(model.named_modules())
    for name, low in adapter.low_rank.items():
        module = modules.get(name)
        if module is None or isinstance(module, torch.nn.Embedding):
            raise _must_be_merged(folder, f"it adapts '{name[:80]}'")
        _check(name, low, module)
        module.register_forward_hook(_hook(low, model.dtype, model.device, activation))
    return activation


def _must_be_merged(folder: Path, why: str) -> Unavailable:
    return Unavailable(
        f"{folder}: the engine transformers does not apply this adapter as it is ({why}). Merge it first:"
        " heredity derive merge_adapter ADAPTER BASE.",
        code="adapter-to-be-merged",
    )


def _check(name: str, low: LowRank, module: torch.nn.Module) -> None:
    weight = module.get_parameter("weight")
    n_out, n_in = weight.shape[::-1] if low.is_transposed else weight.shape
    if (len(low.b), low.a.shape[1]) != (n_out, n_in):
        raise Damaged(
            f"The adapter's '{name[:80]}' has {low.a.shape[1]} inputs and {len(low.b)} outputs; its base has"
            f" {n_in} and {n_out}.",
            code="adapter-misfit",
        )


def _hook(
    low: LowRank, dtype: torch.dtype, device: torch.device, activation: Activation | None = None
) -> Hook:
    a, b = low.a.to(device, dtype), (low.b * low.scale).to(device, dtype)
    bias = None if low.bias is None else (low.bias * low.scale).to(device, dtype)

    def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + functional.linear(functional.linear(inputs[0], a), b, bias)

    def add_where_awake(
        _: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        assert activation is not None
        if output.ndim != 3:  # rows of experts are not those of the pass
            raise EngineFailure("an activated LoRA changes a layer whose rows are not tokens in their order")
        return activation.gate.add(
            output, lambda: functional.linear(functional.linear(inputs[0], a), b, bias)
        )

    return add if activation is None else add_where_awake
