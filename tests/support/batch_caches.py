"""What a row leaves in its batch, to the last bit: a token hides most differences, a cache hides none."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heredity.core.records import Request
from heredity.engines.torch.engine import TorchEngine
from heredity.engines.torch.session import BatchRow, ContinuousBatch, Sampler


def caches(engine: TorchEngine, requests: Sequence[Request], n_steps: int = 2) -> dict[int, torch.Tensor]:
    """By key, the last layer's own keys and values behind the prefix: (2, kv heads, tokens, head_dim).

    Requests go through together, as many as the widest batch holds: the prompts, then `n_steps` tokens each.
    """
    widest, found = engine.pool.widths[-1], {}
    for start in range(0, len(requests), widest):
        with torch.inference_mode():
            found |= _together(engine, requests[start : start + widest], n_steps)
    return found


def _together(engine: TorchEngine, requests: Sequence[Request], n_steps: int) -> dict[int, torch.Tensor]:
    batch = None
    for request in requests:
        prefix, own = engine.pool.split(
            engine.codec.shared(request), engine.codec.encode(engine.render(request))
        )
        batch = batch or ContinuousBatch(engine.decoder, prefix, engine.pool.widths, lambda _: False, 1 << 32)
        batch.admit(BatchRow(request.key, own, n_steps + 1, Sampler(request.decoding, request.seed)))
    assert batch is not None
    for _ in range(n_steps):
        batch.step()
    slots = batch._slots
    assert slots is not None
    sides = (slots.keys, slots.values)
    return {
        row.key: torch.stack([side[-1][at, :, : len(row.prompt) - 1 + n_steps] for side in sides])
        for at, row in enumerate(batch.rows)
    }
