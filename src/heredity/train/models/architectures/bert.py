"""A BERT encoder: learned positions, GELU without a gate, norms after each part, biases everywhere.

There is no dropout, so that a step is a function of its batch. There is no next-sentence task: all tokens
have type 0, and the row of type 1 keeps its initial values.

Source: Devlin et al. 2018 (1810.04805).
"""

from __future__ import annotations

from typing import Any

from heredity.train.models.architectures import Specials, check_encoder, special_tokens
from heredity.train.models.shapes import BertShape, TransformerShape, n_matrix_parameters

OBJECTIVE = "masked"
SHAPE = BertShape
TYPES = 2  # token types: first and second text


def config(shape: TransformerShape, specials: Specials) -> dict[str, Any]:
    """The configuration of a BERT of this shape. Raises UsageError for unsupported heads."""
    check_encoder("bert", shape, specials)
    return special_tokens(specials) | {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.wide,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context,
        "type_vocab_size": TYPES,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-12,
        "tie_word_embeddings": True,
    }


def flops_per_token(shape: TransformerShape, length: float, hidden: float) -> float:
    """FLOPs of one token in a chunk of this length, forward and backward. A multiply-add counts as two.

    hidden: the share of masked tokens, on which the head runs.
    """
    head = hidden * (shape.vocabulary * shape.width + shape.width**2)
    return 3 * (2 * (n_matrix_parameters(shape) + head) + 4 * shape.layers * shape.width * length)
