"""A decoder as Qwen3's: grouped attention, normalized queries and keys, SwiGLU, RMS norms before each part.

Source: Qwen3 technical report (2505.09388); QK-norm keeps attention logits small (2302.05442).
"""

from __future__ import annotations

from typing import Any

from heredity.train.models.architectures import Specials
from heredity.train.models.shapes import TransformerShape

OBJECTIVE = "causal"
SHAPE = TransformerShape
THETA = 10_000.0  # of rotary positions, for contexts of a few thousand tokens


def config(shape: TransformerShape, specials: Specials) -> dict[str, Any]:
    """The configuration of a Qwen3 of this shape."""
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.wide,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "max_position_embeddings": shape.context,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": shape.is_tied,
        "initializer_range": 0.02,
        "bos_token_id": specials.end,
        "eos_token_id": specials.end,
        "pad_token_id": specials.pad,
    }
