"""How long this machine's processor takes for a token: its products, and the small steps between them.

Products go at the limit that was measured at their shapes. Norms, gates, turns, softmaxes and sums are bound
by memory, and go over what a forward keeps, and over the logits, some times. Muon multiplies once a step.

Promises: numbers in, numbers out.
Leaves to others: measuring both (train/speed.py), and counting (anatomies/, memory.py).
"""

from __future__ import annotations

from heredity.train.planning import cost_models, memory
from heredity.train.planning.flops import Work

PASSES = 22.0  # over the activations, fitted to runs of 3M to 150M parameters (docs/results/plans.md)
WAYS = 3  # a unit that is only looked at goes one of them: forward, and not back to activations and weights
_MUON = 25.0  # FLOPs of a step of Muon's, by parameter and by width: five rounds of three products


def seconds(work: Work, flops: float, limit: float, rate: float) -> float:
    """Of one token, or pair, there and back. flops: of it. limit: FLOP/s of products; rate: bytes/s of a pass
    over what lies in memory (train/speed.py)."""
    logits = work.bytes * work.shape.vocabulary * work.hidden if work.picture is None else 0.0
    if work.optimizer == "muon":
        flops += _MUON * work.shape.width * cost_models.of(work).matrices / work.batch
    return flops / limit + PASSES * (memory.kept(work) + logits) / rate
