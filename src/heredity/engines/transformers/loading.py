"""Load a causal language model with transformers, without remote code.

Promises: only safetensors and JSON are opened, and no kernel of a hub. A missing tensor is an error:
transformers would fill it with random numbers. Sampling settings of the folder are ignored.
Leaves to others: answering (engine.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from heredity.core import host
from heredity.core.errors import Damaged, OutOfMemory, Unavailable, first_line
from heredity.core.host import Device
from heredity.formats.choice import ENCODERS
from heredity.formats.weights import CONFIG, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_HERE = {"trust_remote_code": False, "local_files_only": True}
_ADVICE = "Close other programs, or take a smaller model."
_USUAL_WIDTH = 1024
# Names of the context length. A model without one, such as Bloom or Mamba, has no limit.
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration of the model in a folder.

    Raises Unavailable for a model that transformers does not load as a causal language model, Damaged for a
    configuration that makes no sense, OutOfMemory.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not isinstance(name := read_json(folder / CONFIG).get("model_type"), str):
        raise Damaged(f"{folder / CONFIG}: names no architecture (model_type).")
    if name in ENCODERS:
        raise Unavailable(f"'{name}' is an encoder, which writes no text: it cannot be asked.")
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise Unavailable(
            f"transformers {version()} has no causal language model '{name}'. A newer one may; so may"
            " vllm:NAME, or llamacpp:NAME with a GGUF of it.",
            code="architecture-unsupported",
        )
    try:
        with host.explain_out_of_memory(f"Reading {folder / CONFIG}", _ADVICE):
            return AutoConfig.from_pretrained(folder, **_HERE)
    except OutOfMemory:  # it says nothing about the file
        raise
    except Exception as error:  # a configuration is a program's input: anything can be wrong with it
        message = f"{folder / CONFIG}: makes no sense ({first_line(error)})."
        raise Damaged(message) from None


def version() -> str:
    """Return the version of transformers."""
    from transformers import __version__

    return str(__version__)


def load_model(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, device: Device) -> PreTrainedModel:
    """Return the model, in evaluation mode.

    Raises Damaged for missing weights, OutOfMemory, or Unavailable.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    host.prepare_transformers()
    try:
        with host.LOADING, host.explain_out_of_memory(f"Loading {folder}", _ADVICE):
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **_HERE
            )
    except ImportError as error:
        raise Unavailable(
            f"transformers does not load this model here: {first_line(error)}", code="package-missing"
        ) from error
    except (ValueError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        raise Unavailable(
            f"transformers {version()} does not load '{config.model_type}' from {folder}: {first_line(error)}"
        ) from error
    if missing := sorted(found["missing_keys"]) + sorted(each[0] for each in found["mismatched_keys"]):
        raise Damaged(
            f"{folder}: {len(missing)} tensors are missing, or of another shape than {CONFIG} says, such as"
            f" {missing[0]}."
        )
    model.generation_config = GenerationConfig()  # a repetition penalty would change what is measured
    return model.eval().to(device.torch)


def settings_of(config: PreTrainedConfig) -> dict[str, object]:
    """Return the settings of the language model, under the names of transformers and of the architecture."""
    inner = config.get_text_config(decoder=True)
    return {**{name: getattr(inner, name, None) for name in inner.attribute_map}, **inner.to_dict()}


def context_length(config: PreTrainedConfig) -> int | None:
    """Return how many tokens the model can read and write; None if it has no limit."""
    settings = settings_of(config)
    return _first(settings, _LENGTHS)


def faster_dtype(config: PreTrainedConfig, device: Device) -> str:
    """Return the dtype whose products are faster here at the model's shape."""
    settings = settings_of(config)
    hidden = _first(settings, ("hidden_size", "n_embd", "d_model")) or _USUAL_WIDTH
    inner = _first(settings, ("intermediate_size",)) or 4 * hidden
    return host.choose_dtype(hidden, inner, device=device)


def _first(settings: Mapping[str, object], names: Iterable[str]) -> int | None:
    found = (settings.get(name) for name in names)
    return next((n for n in found if isinstance(n, int) and n > 0), None)
