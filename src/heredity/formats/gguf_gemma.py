"""Gemma 3 in a GGUF: the parts of its shape that are written, and those that transformers does not read.

llama.cpp fixes some settings of Gemma 3 itself. Every sixth layer attends to all tokens. The others use
rotary base 10,000. Scores are scaled by the head dimension; the largest model (62 layers) uses hidden size
per head instead.

Promises: a model with other settings is refused when a GGUF is written. When one is read, the configuration
gets the settings that llama.cpp uses.
Leaves to others: tensors and tokens (gguf_write.py).

Source: llama.cpp's conversion and loading of Gemma 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from heredity.core.errors import Refused
from heredity.formats.gguf import GgufValue

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

_EVERY = 6  # of this many layers the last attends to all tokens
_LOCAL_BASE = 10_000.0
_LAYERS_27B = 62
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


def is_one(config: PreTrainedConfig) -> bool:
    """Return True for the configuration of a Gemma 3."""
    return str(config.model_type) == "gemma3_text"


def global_rope(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the rotary settings of layers that attend to all tokens: base, and factor if it is scaled.

    Raises Refused for settings that llama.cpp does not support in Gemma 3.
    """
    ropes = dict(config.rope_parameters)
    local = dict(ropes.get(_LOCAL) or {})
    windows = list(config.layer_types) != _layers(int(config.num_hidden_layers))
    _refuse(windows, "windows in other layers")
    is_plain = local.get("rope_type", "default") == "default"
    turns = not is_plain or float(local.get("rope_theta", 0)) != _LOCAL_BASE
    _refuse(turns, "windowed layers that turn otherwise")
    scalar = config.query_pre_attn_scalar
    _refuse(scalar != _scalar(config), f"scores scaled by {scalar}")
    is_capped = bool(config.final_logit_softcapping or config.attn_logit_softcapping)
    _refuse(is_capped, "capped logits")
    is_both = bool(config.use_bidirectional_attention)
    _refuse(is_both, "attention in both directions")
    return dict(ropes[_GLOBAL])


def _refuse(is_there: bool, what: str) -> None:
    if is_there:
        raise Refused(f"A GGUF of a Gemma 3 with {what} is not written: llama.cpp would compute otherwise.")


def add_shape(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the keys of a Gemma 3 that other models do not have."""
    writer.add_sliding_window(int(config.sliding_window))
    rope = global_rope(config)
    if rope.get("rope_type") == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def complete(config: PreTrainedConfig, metadata: Mapping[str, GgufValue]) -> None:
    """Complete a configuration that transformers has read from a GGUF."""
    values = {key.removeprefix("gemma3."): value for key, value in metadata.items()}
    every = _number(values, "attention.sliding_window_pattern", _EVERY)
    whole: dict[str, object] = {**config.rope_parameters[_GLOBAL]}
    if (how := values.get("rope.scaling.type", "none")) == "linear":
        whole |= {"rope_type": "linear", "factor": _number(values, "rope.scaling.factor", 0)}
    elif how != "none":
        raise Refused("A GGUF of a Gemma 3 whose rotations are not stretched linearly is not read here.")
    base = _number(values, "rope.freq_base_swa", _LOCAL_BASE)
    config.query_pre_attn_scalar = _scalar(config)
    config.layer_types = _layers(int(config.num_hidden_layers), int(every))
    config.rope_parameters = {_GLOBAL: whole, _LOCAL: {"rope_type": "default", "rope_theta": base}}


def _number(values: Mapping[str, GgufValue], key: str, default: float) -> float:
    """Return a number of at least 1."""
    number = values.get(key, default)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 1 <= number < 2**31:
        raise Refused(f"A GGUF of a Gemma 3 whose {key} is {str(number)[:40]} is not read here.")
    return float(number)


def _layers(n_layers: int, every: int = _EVERY) -> list[str]:
    """Return the attention type of each layer."""
    return [_LOCAL if (at + 1) % every else _GLOBAL for at in range(n_layers)]


def _scalar(config: PreTrainedConfig) -> int:
    """Return the number whose inverse square root scales the scores."""
    if int(config.num_hidden_layers) == _LAYERS_27B:
        return int(config.hidden_size) // int(config.num_attention_heads)
    return int(config.head_dim)
