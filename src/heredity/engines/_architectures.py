"""The architecture of a model's files, and whether the torch engine has it. Loads no torch."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from heredity.engines.formats.architectures import ARCHITECTURES

# Of config.json, "model_type": those that engines/torch/decoder.py computes.
FAST = tuple(ARCHITECTURES)
# Quantizations that are read without their tool and dequantized once (formats/packed.py).
PACKED = ("gptq", "awq", "compressed-tensors", "fp8", "fbgemm_fp8", "bitsandbytes")
_MOST_BYTES = 4 << 20  # of a config.json

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
    path, found = folder / "config.json", {}
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= _MOST_BYTES:  # a pipe or a device would not end
            found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict):
        return Form()
    inner, how = found.get("text_config"), found.get("quantization_config")
    names = [each.get("model_type") for each in (inner, found) if isinstance(each, dict)]
    architecture = next((name for name in names if isinstance(name, str)), "")
    if how == INT8:
        return Form(architecture[:80])
    method = how.get("quant_method") if isinstance(how, dict) else None
    return Form(architecture[:80], str(method or ("unknown" if how else ""))[:80])
