"""A trainable encoder: transformers' own, over packed documents that attend only to themselves.

Promises: a document's numbers are those of transformers for it by itself, within rounding. The head
runs only on masked positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from heredity.core import host
from heredity.train.kernels import Lengths, bidirectional_attention
from heredity.train.models.causal_lm import CausalLM, PackedBatch, init_model

_ATTENTION = "heredity_encoder"


class MaskedLM(CausalLM):
    """transformers' model for masked text, with the methods that objectives need."""

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """Transformed hidden states at the masked positions, input of the head: (targets, hidden)."""
        padded = batch.padded
        inputs = model_inputs(self.model, padded.tokens[None], padded.positions[None], padded.lengths)
        states = self.model.base_model(**inputs).last_hidden_state.squeeze(0)
        picked: torch.Tensor = head_transform(self.model)(states.index_select(0, batch.at))
        return picked


def model_inputs(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, lengths: Lengths
) -> dict[str, Any]:
    """The arguments of a forward pass. BERT's learned positions wrap in padding longer than a context."""
    inputs = {"input_ids": input_ids, "position_ids": position_ids, "lengths": lengths}
    if model.config.model_type != "bert":
        return inputs
    places = position_ids % model.config.max_position_embeddings
    return inputs | {"position_ids": places, "token_type_ids": torch.zeros_like(input_ids)}


def head_transform(model: Any) -> Any:
    """The part of a model between its hidden states and the head's matmul."""
    return model.cls.predictions.transform if model.config.model_type == "bert" else model.head


def from_config(config: Mapping[str, Any], seed: int, dtype: str = "auto") -> MaskedLM:
    """Initialize a new encoder by transformers' rule. Weights depend only on the seed."""
    import transformers

    transformers.AttentionInterface.register(_ATTENTION, bidirectional_attention)
    return MaskedLM(init_model(config, seed, dtype, transformers.AutoModelForMaskedLM, _ATTENTION), Path())


def load(folder: Path, dtype: str = "float32") -> MaskedLM:
    """Load the encoder of a folder for inference."""
    import transformers

    host.prepare_transformers()
    transformers.AttentionInterface.register(_ATTENTION, bidirectional_attention)
    model = transformers.AutoModelForMaskedLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=_ATTENTION, trust_remote_code=False,
        local_files_only=True,
    )  # fmt: skip
    return MaskedLM(model.eval(), folder)
