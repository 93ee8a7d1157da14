"""The linear layers of a decoder, found by the type of their modules and not by their names.

A layer is a torch Linear, or GPT-2's Conv1D, whose matrix is (in, out). Fused ones, such as `qkv_proj` or
`query_key_value`, are one layer. Routers are left out, because a small change of them sends tokens elsewhere.
Experts that are one tensor of three axes are left out too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from heredity.core.errors import Refused

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_ROUTERS = ("gate", "router", "shared_expert_gate", "gate_network")
# A Mamba multiplies with these matrices itself, and does not call their modules. PEFT refuses out_proj too.
_READ_DIRECTLY = ("dt_proj", "out_proj")
_IN_LAYER = re.compile(r".*?([^.]+\.\d+\..+)")  # the list of layers, a number, and what is within


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the language model, if there are several."""
    pre_trained_config: PreTrainedConfig = config.get_text_config(decoder=True)
    return pre_trained_config


def settings_of(config: PreTrainedConfig) -> dict[str, object]:
    """The settings of the language model, under the names of transformers and of the architecture."""
    inner = text_config(config)
    own = inner.to_dict()
    return {**{name: own.get(other) for name, other in inner.attribute_map.items()}, **own}


def number_of(settings: Mapping[str, object], name: str) -> int | None:
    """A setting that is a positive whole number; None if it is missing or something else."""
    number = settings.get(name)
    return number if isinstance(number, int) and number > 0 else None


def read_settings(folder: Path) -> dict[str, object]:
    """The settings of the language model in a folder."""
    from transformers import AutoConfig

    return settings_of(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The model without its head."""
    inner: nn.Module = model.base_model
    if inner is not model:
        return inner
    layers = decoder_layers(model)  # Llama 4 names a part that it does not have
    return next(part for part in model.children() if any(each is layers for each in part.modules()))


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of a decoder: the list of as many modules as the configuration has layers.

    Raises Refused if the model has no such list.
    """
    n_layers = text_config(model.config).num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise Refused(
        f"'{model.config.model_type}' has no list of {n_layers} layers: only decoders can be changed layer by"
        " layer. heredity derive finetune works."
    )


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer keeps its matrix as (in, out), as GPT-2's Conv1D does."""
    return type(module).__name__ == "Conv1D"


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies with one matrix."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def shape_of(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    weight = module.get_parameter("weight")
    n_out, n_in = weight.shape
    return (n_out, n_in) if is_transposed(module) else (n_in, n_out)


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers within the layers of a decoder, by their names in the whole model."""
    within = {id(module) for module in decoder_layers(model).modules()}
    linears: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        if id(module) in within and is_linear(module) and last not in _ROUTERS:
            is_in_mamba = "mamba" in type(model.get_submodule(parent)).__name__.lower()
            if not (is_in_mamba and last in _READ_DIRECTLY):
                linears[name] = module
    return linears


def stored_matrices(folder: Path) -> Mapping[str, bool]:
    """The stored tensors that are matrices of linear layers; True for one that is (in, out).

    The matrices of experts are among them if the files have one for each. Raises Refused for experts that
    are stored as one tensor of three axes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from heredity.formats.safetensors_io import read_safetensors

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = linear_layers(model)
    shards = [read_safetensors(path) for path in sorted(folder.glob("*.safetensors"))]
    stored = {name: each.shape for shard in shards for name, each in shard.items()}
    if joined := [name for name, shape in stored.items() if "experts" in name and len(shape) == 3]:
        raise Refused(
            f"{min(joined)} holds all experts of a layer as one tensor, which is not rounded here. Pull a"
            " quantized repository of this model instead."
        )
    matrices = {stored_name(name, stored): is_transposed(module) for name, module in layers.items()}
    there = {name: turned for name, turned in matrices.items() if name in stored}
    for name, shape in stored.items():
        if ".experts." in name and name.endswith(".weight") and len(shape) == 2:
            there[name] = False
    if not there:
        raise Refused(
            f"{folder}: none of its tensors is the matrix of a linear layer of '{config.model_type}'."
        )
    return there


def stored_name(module: str, stored: Collection[str]) -> str:
    """The stored name of a module's matrix. Files may put another name before the list of layers, or none."""
    name = f"{module}.weight"
    if name in stored:
        return name
    tail = match[1] if (match := _IN_LAYER.fullmatch(name)) else name
    near = [each for each in stored if each == tail or (each.endswith(f".{tail}") and "vision" not in each)]
    return near[0] if len(near) == 1 else name
