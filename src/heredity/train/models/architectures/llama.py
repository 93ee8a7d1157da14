"""A decoder as Llama's: grouped attention, SwiGLU, RMS norms before each part.

Source: Llama 3 (2407.21783).
"""

from __future__ import annotations

from typing import Any

from heredity.train.models.architectures import Specials, qwen3
from heredity.train.models.shapes import TransformerShape

OBJECTIVE = "causal"
SHAPE = TransformerShape


def config(shape: TransformerShape, specials: Specials) -> dict[str, Any]:
    """The configuration of a Llama of this shape."""
    return qwen3.config(shape, specials) | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "mlp_bias": False,
    }
