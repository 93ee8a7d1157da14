"""A CLIP: a vision transformer, and a causal text transformer whose end token represents the caption.

Source: Radford et al. 2021 (2103.00020).
"""

from __future__ import annotations

from typing import Any

from heredity.train.models.architectures import Specials
from heredity.train.models.shapes import DualShape, TransformerShape

OBJECTIVE = "contrastive"


def config(shape: TransformerShape, specials: Specials) -> dict[str, Any]:
    """The configuration of a CLIP of this shape."""
    assert isinstance(shape, DualShape)
    tower = shared_tower_config(shape) | {"hidden_act": "quick_gelu", "projection_dim": shape.width}
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": shape.width,
        "text_config": tower | text(shape, specials),
        "vision_config": tower | vision(shape),
    }


def shared_tower_config(shape: DualShape) -> dict[str, Any]:
    """The settings that both towers share."""
    return {
        "hidden_size": shape.width,
        "intermediate_size": shape.wide,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
    }


def text(shape: DualShape, specials: Specials) -> dict[str, Any]:
    """The settings of the text tower."""
    return {
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "bos_token_id": specials.end,
        "eos_token_id": specials.end,
        "pad_token_id": specials.pad,
    }


def vision(shape: DualShape) -> dict[str, Any]:
    """The settings of the image tower."""
    return {"image_size": shape.side, "patch_size": shape.patch, "num_channels": 3}
