"""The engine of a model by its config.json or GGUF header, and the decoders that the torch engine computes.

Promises: loads neither torch nor transformers. The architectures of transformers are read from the source of
the installed version, which is not run. An engine that is not installed is not named. A decoder that is not
here is refused by name (weights.py).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, cast

from heredity.core import registry
from heredity.core.errors import how_to_install

# Encoders that read two texts as one; with a head of one label they are cross-encoders.
CROSS_ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", "modernbert")
RANKING = "text-ranking"  # their modality
EMBEDDING = "text-embedding"  # the modality of sentence encoders
POOLING = "1_Pooling/config.json"  # a file of those that sentence-transformers saved
STATIC = "model2vec"  # the model type of static embedding models (static_embeddings.py)
ENCODERS = (*CROSS_ENCODERS, STATIC, "clip", "siglip", "siglip2")  # they write no text
_SLOW = "transformers"  # the engine for all other architectures
_OWN = "int8"  # the quantization that heredity writes itself
# The package that transformers needs in order to read weights of a method, as it is imported.
_PACKAGES = {"aqlm": "aqlm", "hqq": "hqq", "quanto": "optimum"}


class EngineChoice(NamedTuple):
    """The engine that would answer: "torch", "transformers", or "" for none.

    reason: why it is not the fast one, or why no engine fits; "" for the fast one.
    architecture, quantization: as the model's files name them; "" if they name none.
    """

    engine: str
    reason: str
    architecture: str
    quantization: str = ""


def choose_by_config(config: Mapping[str, object]) -> EngineChoice:
    """The engine for safetensors with this config.json."""
    inner = config.get("text_config")
    outer = _text(config, "model_type")
    name = (_text(inner, "model_type") if isinstance(inner, dict) else "") or outer
    method = _text(config.get("quantization_config"), "quant_method")
    if not name:
        return EngineChoice("", "its config.json names no architecture (model_type)", "", method)
    if encoder := next((each for each in (name, outer) if each in ENCODERS), ""):
        return EngineChoice("", f"'{encoder}' is an encoder, which writes no text", encoder, method)
    if find_spec("torch") is None or find_spec("transformers") is None:
        return EngineChoice("", f"torch is not installed. {how_to_install('torch')}", name, method)
    is_quantized = method not in ("", _OWN, *PACKED)  # packed weights are dequantized once
    if name in FAST and not is_quantized:
        return EngineChoice("torch", "", name, method)
    why = (
        f"weights quantized by '{method}'" if is_quantized and name in FAST else f"the architecture '{name}'"
    )
    if _SLOW not in registry.names("engines"):
        return EngineChoice("", f"the fast engine does not read {why}", name, method)
    if (known := causal_types()) and not {name, outer} & known:
        return EngineChoice(
            "", f"neither the fast engine nor transformers has '{outer or name}'", name, method
        )
    package = _PACKAGES.get(method, "")
    if package and find_spec(package) is None:
        return EngineChoice("", f"transformers needs the package '{package}' for '{method}'", name, method)
    return EngineChoice(_SLOW, f"the fast engine does not read {why}", name, method)


def modality_of(config: Mapping[str, object], folder: Path | None = None) -> str:
    """The modality of a model with this config.json, in this folder.

    "text-ranking" for a cross-encoder: one of CROSS_ENCODERS with a head of one label, which scores a pair of
    texts. "text-embedding" for a folder with the pooling of a sentence encoder. Else "text".
    """
    heads, labels = config.get("architectures"), config.get("id2label")
    n_labels = len(labels) if isinstance(labels, dict) else config.get("num_labels")
    is_classifier = isinstance(heads, list) and any(
        isinstance(each, str) and each.endswith("ForSequenceClassification") for each in heads
    )
    is_encoder = config.get("model_type") in CROSS_ENCODERS
    if is_classifier and is_encoder and n_labels == 1:
        return RANKING
    return EMBEDDING if folder is not None and (folder / POOLING).is_file() else "text"


def choose_for_gguf(architecture: str) -> EngineChoice:
    """The engine for a GGUF of this architecture, through the safetensors that heredity makes of it."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        return EngineChoice("", f"torch is not installed. {how_to_install('torch')}", architecture, "gguf")
    name = _MODEL_TYPES.get(architecture, architecture)
    if (known := gguf_types()) and not {architecture, name} & known:
        why = f"transformers does not read a GGUF of '{architecture}'"
        return EngineChoice("", why, architecture, "gguf")
    return choose_by_config({"model_type": name})._replace(architecture=architecture, quantization="gguf")


_MODEL_TYPES = {
    "gemma3": "gemma3_text",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gpt-oss": "gpt_oss",
}


def _text(table: object, key: str) -> str:
    value = table.get(key) if isinstance(table, dict) else None
    return value[:80] if isinstance(value, str) else ""


@cache
def causal_types() -> frozenset[str]:
    """The model types that the installed transformers has a causal language model for."""
    return _keys("models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")


@cache
def gguf_types() -> frozenset[str]:
    """The architectures of a GGUF that the installed transformers reads."""
    return _keys("integrations/ggml.py", "GGUF_CONFIG_MAPPING")


def _keys(path: str, name: str) -> frozenset[str]:
    """The keys of a mapping in the source of transformers: a dictionary, or a call with a list of pairs.

    {} if this version keeps it elsewhere: then nothing is ruled out.
    """
    spec = find_spec("transformers")
    source = Path(spec.origin).parent / path if spec is not None and spec.origin else None
    if source is None or not source.is_file():
        return frozenset()
    for node in ast.parse(source.read_bytes()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        if (
            isinstance(target, ast.Name)
            and target.id == name
            and isinstance(node, (ast.Assign, ast.AnnAssign))
        ):
            return frozenset(
                each.value
                for each in _key_nodes(node.value)
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            )
    return frozenset()


def _key_nodes(value: ast.expr | None) -> list[ast.expr | None]:
    if isinstance(value, ast.Dict):
        return list(value.keys)
    pairs = value.args[0] if isinstance(value, ast.Call) and value.args else None
    if isinstance(pairs, (ast.List, ast.Tuple)):
        return [pair.elts[0] for pair in pairs.elts if isinstance(pair, ast.Tuple) and pair.elts]
    return []


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
    path, config = folder / "config.json", cast(object, None)
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
