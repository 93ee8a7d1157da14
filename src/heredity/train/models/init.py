"""New models of transformers' own classes, with weights that depend only on a seed.

Promises: weights are drawn in fp32, whatever the dtype. torch's random state is left as it was.
Leaves to others: the configuration (architectures/), and training (causal_lm.py, encoder.py, dual.py).
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
    """Initialize a model in training mode.

    kind: an AutoModel class of transformers. attention: its attention implementation.
    change: applied to the model while weights are in fp32.
    dtype: "auto" takes bfloat16 if its matmul was measured to be faster than that of float32.
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
    """The dtype of a model of this configuration: `dtype`, or the faster one for "auto"."""
    if dtype != "auto":
        return dtype
    inner = getattr(config, "text_config", None) or config
    return host.choose_dtype(inner.hidden_size, inner.intermediate_size, 1024)
