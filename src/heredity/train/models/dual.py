"""A trainable dual encoder: transformers' CLIP or SigLIP, with unit-length embeddings of images and captions.

Promises: embeddings are those of transformers for the same images and token rows.
Leaves to others: pairs and the loss (recipes/pretrain/contrastive.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from heredity.core import host
from heredity.train.models.causal_lm import CausalLM, PackedBatch, init_model

MAX_LOG_SCALE = math.log(100)  # of the logit scale, as in CLIP
_SIGMOID_SCALE, _SIGMOID_BIAS = math.log(10), -10.0  # SigLIP's start: most pairs do not match


class PairEmbeddings(NamedTuple):
    """(pairs, hidden) each, of unit length."""

    images: torch.Tensor
    captions: torch.Tensor


class DualEncoder(CausalLM):
    """transformers' model for images and captions."""

    @property
    def is_sigmoid(self) -> bool:
        """Whether it is a SigLIP: it has a logit bias, and each pair is a binary decision."""
        return hasattr(self.model, "logit_bias")

    def embed(self, batch: PackedBatch) -> PairEmbeddings:
        """Embed a batch's images and captions, in fp32."""
        assert batch.images is not None
        rows = batch.tokens.view(batch.n_documents, -1)
        return PairEmbeddings(self.embed_images(batch.images), self.embed_captions(rows))

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """(images, 3, side, side) -> (images, hidden)"""
        features = self.model.get_image_features(pixel_values=images.to(self.model.dtype))
        return functional.normalize(features.pooler_output.float(), dim=1)

    def embed_captions(self, rows: torch.Tensor) -> torch.Tensor:
        """(captions, tokens) -> (captions, hidden)"""
        return functional.normalize(self.model.get_text_features(input_ids=rows).pooler_output.float(), dim=1)

    def similarities(self, embeddings: PairEmbeddings) -> torch.Tensor:
        """Scaled similarities before softmax or sigmoid: (images, captions)."""
        scale = self.model.logit_scale.float().clamp(max=MAX_LOG_SCALE).exp()
        similarities: torch.Tensor = scale * embeddings.images @ embeddings.captions.T
        return similarities + self.model.logit_bias.float() if self.is_sigmoid else similarities


def from_config(config: Mapping[str, Any], seed: int, dtype: str = "auto") -> DualEncoder:
    """Initialize a new model by transformers' rule. Weights depend only on the seed."""
    import transformers

    model = init_model(config, seed, dtype, transformers.AutoModel, "sdpa")
    if hasattr(model, "logit_bias"):
        with torch.no_grad():
            model.logit_scale.fill_(_SIGMOID_SCALE)
            model.logit_bias.fill_(_SIGMOID_BIAS)
    return DualEncoder(model, Path())


def load(folder: Path) -> DualEncoder:
    """Load the model of a folder for inference, in fp32."""
    import transformers

    host.prepare_transformers()
    model = transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True
    )
    return DualEncoder(model.eval(), folder)
