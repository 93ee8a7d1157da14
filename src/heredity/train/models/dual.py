"""Two encoders that can learn: transformers' CLIP or SigLIP, a picture and a caption as arrows of length one.

Promises: the arrows are those of transformers for the same pictures and rows of tokens.
Leaves to others: pairs (pairs.py), and what is asked of the arrows (objectives/contrastive.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from heredity.core import host
from heredity.train.data.batching import PackedBatch
from heredity.train.models import init as birth
from heredity.train.models.causal_lm import CausalLM

MAX_LOG_SCALE = math.log(100)  # of the scale's logarithm, as CLIP has it
_SIGMOID_SCALE, _SIGMOID_BIAS = math.log(10), -10.0  # where SigLIP begins, so that most pairs are none


class PairEmbeddings(NamedTuple):
    """(pairs, width) each, of length one."""

    pictures: torch.Tensor
    captions: torch.Tensor


class DualEncoder(CausalLM):
    """transformers' model for pictures and captions."""

    @property
    def is_sigmoid(self) -> bool:
        """Whether it has a bias, and tells each pair by itself."""
        return hasattr(self.model, "logit_bias")

    def arrows(self, batch: PackedBatch) -> PairEmbeddings:
        """Of a batch's pictures and captions, in fp32."""
        assert batch.pictures is not None
        rows = batch.tokens.view(batch.n_documents, -1)
        return PairEmbeddings(self.of_pictures(batch.pictures), self.of_captions(rows))

    def of_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """(pictures, 3, side, side) -> (pictures, width)"""
        found = self.model.get_image_features(pixel_values=pictures.to(self.model.dtype))
        return functional.normalize(found.pooler_output.float(), dim=1)

    def of_captions(self, rows: torch.Tensor) -> torch.Tensor:
        """(captions, longest) -> (captions, width)"""
        return functional.normalize(self.model.get_text_features(input_ids=rows).pooler_output.float(), dim=1)

    def scores(self, arrows: PairEmbeddings) -> torch.Tensor:
        """(pictures, captions), before softmax or sigmoid."""
        scale = self.model.logit_scale.float().clamp(max=MAX_LOG_SCALE).exp()
        found: torch.Tensor = scale * arrows.pictures @ arrows.captions.T
        return found + self.model.logit_bias.float() if self.is_sigmoid else found


def from_config(config: Mapping[str, Any], seed: int, dtype: str = "auto") -> DualEncoder:
    """A new model of this configuration, its weights drawn by transformers' rule from the seed alone."""
    import transformers

    model = birth.from_config(config, seed, dtype, transformers.AutoModel, "sdpa")
    if hasattr(model, "logit_bias"):
        with torch.no_grad():
            model.logit_scale.fill_(_SIGMOID_SCALE)
            model.logit_bias.fill_(_SIGMOID_BIAS)
    return DualEncoder(model, Path())


def load(folder: Path) -> DualEncoder:
    """The model in a folder, in fp32, to be asked."""
    import transformers

    host.prepare_transformers()
    model = transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True
    )
    return DualEncoder(model.eval(), folder)
