"""A new model of transformers' own classes, its weights drawn from a seed and from nothing else.

Promises: drawn in fp32, whatever it multiplies in; torch's own random state is left as it was.
Leaves to others: the configuration (architectures/), and what learns (network.py, encoder.py, dual.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from heredity.core import host

WeightChange = Callable[[Any], None]


def from_config(
    config: Mapping[str, Any],
    seed: int,
    dtype: str,
    kind: Any,
    attention: str,
    change: WeightChange | None = None,
) -> Any:
    """A model of one of transformers' kinds; it trains. change: what is done to the weights in fp32.

    dtype: what it multiplies in; "auto": bfloat16 where its product was measured faster.
    """
    import transformers

    host.prepare_transformers()
    told = transformers.AutoConfig.for_model(**config)
    chosen = resolve_dtype(told, dtype)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind.from_config(told, dtype=torch.float32, attn_implementation=attention)
    if change is not None:
        with torch.no_grad():
            change(model)
    model.config.dtype = chosen
    return model.to(getattr(torch, chosen)).train()


def resolve_dtype(config: Any, dtype: str) -> str:
    """What a model of this configuration multiplies in: `dtype`, or for "auto" what was measured faster."""
    if dtype != "auto":
        return dtype
    inner = getattr(config, "text_config", None) or config
    return host.choose_dtype(inner.hidden_size, inner.intermediate_size, 1024)
