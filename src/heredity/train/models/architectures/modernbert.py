"""A ModernBERT encoder: rotary positions, GeGLU, norms before each part, no biases.

Every third layer, starting with the first, attends to the whole document; the others to 64 tokens per side.

Source: Warner et al. 2024 (2412.13663).
"""

from __future__ import annotations

from typing import Any

from heredity.train.models.architectures import Specials, check_encoder, special_tokens
from heredity.train.models.shapes import EncoderShape, TransformerShape, n_matrix_parameters

OBJECTIVE = "masked"
SHAPE = EncoderShape
WINDOW = 128  # tokens that a windowed layer attends to: half before, half after
EVERY = 3  # layers, one of which is global
_WIDE_THETA, _NARROW_THETA = 160_000.0, 10_000.0


def config(shape: TransformerShape, specials: Specials) -> dict[str, Any]:
    """The configuration of a ModernBERT of this shape. Raises UsageError for unsupported heads."""
    check_encoder("modernbert", shape, specials)
    return special_tokens(specials) | {
        "model_type": "modernbert",
        "architectures": ["ModernBertForMaskedLM"],
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.wide,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context,
        "local_attention": WINDOW,
        "layer_types": ["sliding_attention" if i % EVERY else "full_attention" for i in range(shape.layers)],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": _WIDE_THETA},
            "sliding_attention": {"rope_type": "default", "rope_theta": _NARROW_THETA},
        },
        "decoder_bias": False,
        "classifier_pooling": "mean",
        "tie_word_embeddings": True,
    }


def flops_per_token(shape: TransformerShape, length: float, hidden: float) -> float:
    """FLOPs of one token in a chunk of this length, forward and backward. A multiply-add counts as two.

    hidden: the share of masked tokens, on which the head runs.
    """
    n_whole = -(-shape.layers // EVERY)
    seen = n_whole * length + (shape.layers - n_whole) * min(length, WINDOW)
    head = hidden * (shape.vocabulary * shape.width + shape.width**2)
    return 3 * (2 * (n_matrix_parameters(shape) + head) + 4 * shape.heads * shape.head * seen)
