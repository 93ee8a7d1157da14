"""The decoders that the torch engine computes, and where the layers of each differ from Llama's.

Promises: loads no torch. An architecture that is not here is refused by name (weights.py).
Leaves to others: settings that config.json gives as numbers (weights.py); the arithmetic (torch/decoder.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class NormNames(NamedTuple):
    """The norms of a layer, by the name of their tensor; "" for a norm that the architecture lacks."""

    attention: str = "input_layernorm"
    attention_out: str = ""
    mlp: str = "post_attention_layernorm"
    mlp_out: str = ""


_AROUND = NormNames(
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_AFTER = NormNames("", "post_attention_layernorm", "", "post_feedforward_layernorm")


class ExpertNames(NamedTuple):
    """The tensors of a layer with experts, by name.

    gate_up, down: with {} for the number of an expert. shared_gate_up, shared_down: an expert for every row.
    is_stacked: whether gate_up and down are one tensor each, (experts, inputs, outputs), and have no {}.
    is_normed: whether the weights of the chosen ones sum to 1, whatever config.json says.
    """

    router: str = "mlp.gate"
    gate_up: tuple[str, ...] = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj")
    down: tuple[str, ...] = ("mlp.experts.{}.down_proj",)
    shared_gate_up: tuple[str, ...] = ()
    shared_down: tuple[str, ...] = ()
    is_stacked: bool = False
    is_normed: bool = False
    is_sigmoid: bool = False


class LayerNames(NamedTuple):
    """The tensors of a layer, by their names in a model's files. The matrices of a field are one matmul.

    has_one_window: whether `sliding_window` holds in all layers; elsewhere `layer_types` names the layers.
    settings: of config.json, those that transformers reads for this architecture and not for all others.
    rotates_neighbours: whether a channel is rotated with the next one, not with the one half a head away.
    """

    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    out: tuple[str, ...] = ("self_attn.o_proj",)
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: tuple[str, ...] = ("mlp.down_proj",)
    norms: NormNames = NormNames()
    experts: ExpertNames | None = None
    has_one_window: bool = False
    settings: frozenset[str] = frozenset()
    rotates_neighbours: bool = False


ARCHITECTURES: Mapping[str, LayerNames] = {
    "llama": LayerNames(),
    "mistral": LayerNames(has_one_window=True),
    "qwen2": LayerNames(),
    "qwen3": LayerNames(),
    "gemma3_text": LayerNames(norms=_AROUND),
    "gemma3": LayerNames(norms=_AROUND),
    "phi3": LayerNames(
        qkv=("self_attn.qkv_proj",),
        gate_up=("mlp.gate_up_proj",),
        has_one_window=True,
        settings=frozenset({"partial_rotary_factor"}),
    ),
    "olmo2": LayerNames(norms=_AFTER),
    "olmo3": LayerNames(norms=_AFTER),
    "granite": LayerNames(
        settings=frozenset(
            {"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"}
        )
    ),
    "smollm3": LayerNames(settings=frozenset({"no_rope_layers"})),
    "qwen3_moe": LayerNames(
        experts=ExpertNames(), has_one_window=True, settings=frozenset({"norm_topk_prob"})
    ),
    "mixtral": LayerNames(
        experts=ExpertNames(
            router="block_sparse_moe.gate",
            gate_up=("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3"),
            down=("block_sparse_moe.experts.{}.w2",),
            is_normed=True,
        ),
        has_one_window=True,
    ),
    "llama4_text": LayerNames(
        gate_up=("feed_forward.gate_proj", "feed_forward.up_proj"),
        down=("feed_forward.down_proj",),
        experts=ExpertNames(
            router="feed_forward.router",
            gate_up=("feed_forward.experts.gate_up_proj",),
            down=("feed_forward.experts.down_proj",),
            shared_gate_up=("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
            shared_down=("feed_forward.shared_expert.down_proj",),
            is_stacked=True,
            is_sigmoid=True,
        ),
        settings=frozenset(
            {"no_rope_layers", "attention_chunk_size", "use_qk_norm", "attn_temperature_tuning"}
        ),
        rotates_neighbours=True,
    ),
}

# A matrix of a layer that is rounded where a model is quantized; not the router.
MATRIX = re.compile(
    r"model\.layers\.\d+\."
    r"(self_attn|mlp|block_sparse_moe|feed_forward)\."
    r"(experts\.\d+\.|shared_expert\.)?(\w+_proj|w[123])\.weight"
)

# Of config.json, "model_type": those that engines/torch/decoder.py computes.
FAST = tuple(ARCHITECTURES)
# Quantizations that are read without their tool and dequantized once (formats/packed.py).
PACKED = ("gptq", "awq", "compressed-tensors", "fp8", "fbgemm_fp8", "bitsandbytes")
_MAX_CONFIG_BYTES = 4 << 20

_NUMBERS = {"num_bits": 8, "type": "int", "symmetric": True}
# `quantization_config` of our own int8 (formats/int8.py), which the torch engine computes in integers.
INT8: dict[str, object] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_NUMBERS, "strategy": "channel", "dynamic": False},
            "input_activations": {**_NUMBERS, "strategy": "token", "dynamic": True},
        }
    },
}


class Form(NamedTuple):
    """Architecture and quantization of safetensors, as config.json names them; "" where it names none."""

    architecture: str = ""
    quantization: str = ""


def form_of(folder: Path) -> Form:
    """Return what config.json says; nothing if it is missing or malformed, which loading reports."""
    path, config = folder / "config.json", {}
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= _MAX_CONFIG_BYTES:  # a pipe or a device would not end
            config = json.loads(path.read_text("utf-8"))
    if not isinstance(config, dict):
        return Form()
    inner, how = config.get("text_config"), config.get("quantization_config")
    names = [each.get("model_type") for each in (inner, config) if isinstance(each, dict)]
    architecture = next((name for name in names if isinstance(name, str)), "")
    if how == INT8:
        return Form(architecture[:80])
    method = how.get("quant_method") if isinstance(how, dict) else None
    return Form(architecture[:80], str(method or ("unknown" if how else ""))[:80])
