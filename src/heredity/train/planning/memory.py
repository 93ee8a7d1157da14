"""Bytes per device of a pre-training, by part.

Sharding is torch's FSDP2: masters, gradients and moments are in equal shards. Weights are gathered for the
root and for two layers at once, the current one and the next.

Promises: the largest phase of a step, each counted as a run has it.
Leaves to others: activations (cost_models/), and allocator and libraries (the reserve in forecast.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from heredity.train.planning import cost_models
from heredity.train.planning.cost_models import CostModel
from heredity.train.planning.workload import Workload
from heredity.train.resources import FP32_BYTES


def training_memory(
    work: Workload, n: int, shards: int = 1, recompute: int = 0, n_microbatches: int = 2
) -> dict[str, int]:
    """Bytes by part in the largest phase of a step, with microbatches of `n` tokens or pairs.

    recompute: every n-th layer keeps its input only; 0: none. n_microbatches: per step; from the second one
    on, the gradients of the first are held.
    """
    step = _StepMemory(work, cost_models.cost_model_of(work), n, shards, recompute, n_microbatches > 1)
    return max(step.phases(), key=lambda parts: sum(parts.values()))


@dataclass(frozen=True)
class _StepMemory:
    """A step on one device. is_later: gradients of an earlier microbatch are held."""

    work: Workload
    made: CostModel
    n: int
    shards: int
    recompute: int
    is_later: bool

    def phases(self) -> Iterator[dict[str, int]]:
        """Bytes by part in each phase that may be the largest."""
        yield self._turn()
        yield from self._back()
        yield self._end()

    def _turn(self) -> dict[str, int]:
        """After the forward pass: all activations, a part of the logits, and the gradient of the head."""
        return self._lasting(n_gathered=0) | {
            "gradients": self.work.bytes * self.made.head + self._gradients(0),
            "activations": self.n * self.made.left(0, self.recompute),
            "logits": self.made.logits(self.n),
        }

    def _back(self) -> Iterator[dict[str, int]]:
        """In the backward pass of a tower's last layer, which is whole even if recomputed."""
        n_done, made = 0, self.made
        for place, tower in enumerate(made.towers):
            full = tower.back - tower.end + (tower.most if self.recompute else 0)
            waiting = self.work.bytes * (made.loose if place else made.head)
            yield self._lasting(n_gathered=2) | {
                "gradients": waiting + self._gradients(n_done),
                "activations": self.n * (made.left(place, self.recompute) + full),
                "logits": 0,
            }
            n_done += tower.parameters

    def _end(self) -> dict[str, int]:
        """Before the backward pass of the first layer and the embedding: gradients, with the root's."""
        made, size = self.made, self.work.bytes
        tower = made.towers[-1]
        whole = made.root + tower.each  # its gradients are being reduced
        flying = (size + FP32_BYTES) * whole if self.shards > 1 else size * made.loose
        return self._lasting(n_gathered=2) | {
            "gradients": self._gradients(made.n_parameters) + flying,
            "activations": self.n * (tower.most + tower.back + tower.entry * bool(self.recompute)),
            "logits": 0,
        }

    def _gradients(self, n_done: int) -> int:
        """In fp32, of `n_done` parameters; of all from the second microbatch on."""
        return FP32_BYTES * _shard(self.made.n_parameters if self.is_later else n_done, self.shards)

    def _lasting(self, n_gathered: int) -> dict[str, int]:
        """Bytes that are held throughout. Of sharded weights the root and `n_gathered` layers are whole."""
        made, work = self.made, self.work
        layers = min(n_gathered, work.shape.layers) * made.towers[0].each
        return {
            "weights": work.bytes * (made.n_parameters if self.shards == 1 else made.root + layers),
            "masters": FP32_BYTES * _shard(made.n_parameters, self.shards),
            "optimizer": _shard(optimizer_memory(work), self.shards),
        }


def n_parameters(work: Workload) -> int:
    """All parameters."""
    return cost_models.cost_model_of(work).n_parameters


def optimizer_memory(work: Workload) -> int:
    """Moments in fp32: two for AdamW, one for the matrices of Muon."""
    made = cost_models.cost_model_of(work)
    return FP32_BYTES * (2 * made.n_parameters - (made.matrices if work.optimizer == "muon" else 0))


def logits_memory(work: Workload, n: int) -> int:
    """Bytes of the logits held at once, for `n` tokens or pairs."""
    return cost_models.cost_model_of(work).logits(n)


def activation_memory(work: Workload, recompute: int = 0) -> int:
    """Bytes per token or pair that a forward pass keeps for the backward pass."""
    return cost_models.cost_model_of(work).left(0, recompute)


def _shard(n: int, shards: int) -> int:
    return -(-n // shards)
