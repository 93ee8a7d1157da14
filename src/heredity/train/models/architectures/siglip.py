"""A SigLIP: each pair is a binary decision, without a sum over all pairs.

Source: Zhai et al. 2023 (2303.15343).
"""

from __future__ import annotations

from typing import Any

from heredity.train.models.architectures import Specials
from heredity.train.models.architectures.clip import shared_tower_config, text, vision
from heredity.train.models.shapes import DualShape, TransformerShape

OBJECTIVE = "contrastive"


def config(shape: TransformerShape, specials: Specials) -> dict[str, Any]:
    """The configuration of a SigLIP of this shape."""
    assert isinstance(shape, DualShape)
    tower = shared_tower_config(shape) | {"hidden_act": "gelu_pytorch_tanh"}
    return {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "text_config": tower | text(shape, specials) | {"projection_size": shape.width},
        "vision_config": tower | vision(shape),
    }
