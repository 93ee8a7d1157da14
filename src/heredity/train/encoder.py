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

from heredity.engines import _process, _tuning
from heredity.train.bidirectional import attend
from heredity.train.network import Network
from heredity.train.steps import Batch

_NAME = "heredity_encoder"


class Encoder(Network):
    """transformers' model for masked text behind what an objective asks."""

    def hidden(self, batch: Batch) -> torch.Tensor:
        """States at the gaps, ready for the product with the head: (gaps, hidden)."""
        states = self.model.model(
            input_ids=batch.tokens[None], position_ids=batch.positions[None], lengths=batch.lengths
        ).last_hidden_state[0]
        picked: torch.Tensor = self.model.head(states.index_select(0, batch.at))
        return picked


def born(config: Mapping[str, Any], seed: int, dtype: str = "auto") -> Encoder:
    """A new encoder of this configuration, its weights drawn by transformers' rule from the seed alone."""
    import transformers

    transformers.AttentionInterface.register(_NAME, attend)
    return Encoder(drawn(config, seed, dtype, transformers.AutoModelForMaskedLM, _NAME), Path())


def load(folder: Path, dtype: str = "float32") -> Encoder:
    """The encoder in a folder, ready to be asked."""
    import transformers

    quieten()
    transformers.AttentionInterface.register(_NAME, attend)
    model = transformers.AutoModelForMaskedLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=_NAME, trust_remote_code=False,
        local_files_only=True,
    )  # fmt: skip
    return Encoder(model.eval(), folder)


def drawn(config: Mapping[str, Any], seed: int, dtype: str, kind: Any, attention: str) -> Any:
    """A model of one of transformers' kinds, drawn in fp32 from the seed and from nothing else; it trains.

    dtype: what it multiplies in; "auto": bfloat16 where its product was measured faster.
    """
    import transformers

    quieten()
    told = transformers.AutoConfig.for_model(**config)
    inner = getattr(told, "text_config", None) or told
    chosen = (
        _tuning.choose_dtype(inner.hidden_size, inner.intermediate_size, 1024) if dtype == "auto" else dtype
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind.from_config(told, dtype=torch.float32, attn_implementation=attention)
    model.config.dtype = chosen
    return model.to(getattr(torch, chosen)).train()


def quieten() -> None:
    """transformers says nothing while it loads."""
    import transformers

    _process.keep_large_buffers()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
