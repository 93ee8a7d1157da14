"""An encoder that can learn: transformers' own, over documents laid end to end, each seeing all of itself.

Promises: a document's numbers are those of transformers for that document alone, within rounding; the head is
run on the gaps alone.
Leaves to others: what is a gap (gaps.py), attention (bidirectional.py), the rest (network.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from heredity.core import host
from heredity.train.data.batching import PackedBatch
from heredity.train.kernels.attention import Lengths, bidirectional_attention
from heredity.train.models import init as birth
from heredity.train.models.causal_lm import CausalLM

_ATTENTION = "heredity_encoder"


class MaskedLM(CausalLM):
    """transformers' model for masked text behind what an objective asks."""

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """States at the gaps, ready for the product with the head: (gaps, hidden)."""
        laid = batch.filled
        asked = model_inputs(self.model, laid.tokens[None], laid.positions[None], laid.lengths)
        states = self.model.base_model(**asked).last_hidden_state.squeeze(0)
        picked: torch.Tensor = head_transform(self.model)(states.index_select(0, batch.at))
        return picked


def model_inputs(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, lengths: Lengths
) -> dict[str, Any]:
    """What a model is called with. Where places are learned, filler longer than a context begins anew."""
    found = {"input_ids": input_ids, "position_ids": position_ids, "lengths": lengths}
    if model.config.model_type != "bert":
        return found
    places = position_ids % model.config.max_position_embeddings
    return found | {"position_ids": places, "token_type_ids": torch.zeros_like(input_ids)}


def head_transform(model: Any) -> Any:
    """What of a model lies between its states and the product with the head."""
    return model.cls.predictions.transform if model.config.model_type == "bert" else model.head


def from_config(config: Mapping[str, Any], seed: int, dtype: str = "auto") -> MaskedLM:
    """A new encoder of this configuration, its weights drawn by transformers' rule from the seed alone."""
    import transformers

    transformers.AttentionInterface.register(_ATTENTION, bidirectional_attention)
    return MaskedLM(
        birth.from_config(config, seed, dtype, transformers.AutoModelForMaskedLM, _ATTENTION), Path()
    )


def load(folder: Path, dtype: str = "float32") -> MaskedLM:
    """The encoder in a folder, ready to be asked."""
    import transformers

    host.prepare_transformers()
    transformers.AttentionInterface.register(_ATTENTION, bidirectional_attention)
    model = transformers.AutoModelForMaskedLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=_ATTENTION, trust_remote_code=False,
        local_files_only=True,
    )  # fmt: skip
    return MaskedLM(model.eval(), folder)
