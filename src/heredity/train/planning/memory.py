"""Bytes that a pre-training takes on one device, by part.

Shards are those of FSDP2 in torch: masters, gradients and moments lie in equal shards; weights are gathered
for the root and for two layers at once (the one that is multiplied, the next that is fetched).

Promises: the worst of the moments of a step, each counted as a run has it.
Leaves to others: what a forward keeps (anatomies/), and what an allocator and the device's own libraries take
(forecast.py keeps a reserve).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from heredity.train.memory import FP32_BYTES
from heredity.train.planning import cost_models
from heredity.train.planning.cost_models import CostModel
from heredity.train.planning.workload import Workload


def training_memory(
    work: Workload, n: int, shards: int = 1, runs_again: bool = False, n_products: int = 2
) -> dict[str, int]:
    """Bytes by part at the worst of a step's moments, while `n` tokens or pairs are multiplied at once.

    runs_again: layers keep their input alone. n_products: of a step; from the second on, gradients of the
    first lie there already.
    """
    step = _StepMemory(work, cost_models.cost_model_of(work), n, shards, runs_again, n_products > 1)
    return max(step.moments(), key=lambda parts: sum(parts.values()))


@dataclass(frozen=True)
class _StepMemory:
    """Of a device. is_later: a product before this one has left its gradients."""

    work: Workload
    made: CostModel
    n: int
    shards: int
    runs_again: bool
    is_later: bool

    def moments(self) -> Iterator[dict[str, int]]:
        """Bytes by part at each that may be the worst."""
        yield self._turn()
        yield from self._back()
        yield self._end()

    def _turn(self) -> dict[str, int]:
        """Forward is done: all that was kept is there, a part's logits, and the gradient of the head."""
        return self._lasting(n_gathered=0) | {
            "gradients": self.work.bytes * self.made.head + self._gradients(0),
            "activations": self.n * self.made.left(0, self.runs_again),
            "logits": self.made.logits(self.n),
        }

    def _back(self) -> Iterator[dict[str, int]]:
        """A tower's last layer is on its way back; it is there in full, even where it runs again."""
        n_done, made = 0, self.made
        for place, tower in enumerate(made.towers):
            full = tower.back - tower.end + (tower.most if self.runs_again else 0)
            waiting = self.work.bytes * (made.loose if place else made.head)
            yield self._lasting(n_gathered=2) | {
                "gradients": waiting + self._gradients(n_done),
                "activations": self.n * (made.left(place, self.runs_again) + full),
                "logits": 0,
            }
            n_done += tower.parameters

    def _end(self) -> dict[str, int]:
        """The way back is done but for the first layer and the embedding: gradients are there, and the
        root's."""
        made, size = self.made, self.work.bytes
        tower = made.towers[-1]
        whole = made.root + tower.each  # its gradients are summed over devices just now
        flying = (size + FP32_BYTES) * whole if self.shards > 1 else size * made.loose
        return self._lasting(n_gathered=2) | {
            "gradients": self._gradients(made.n_parameters) + flying,
            "activations": self.n * (tower.most + tower.back + tower.entry * self.runs_again),
            "logits": 0,
        }

    def _gradients(self, n_done: int) -> int:
        """In fp32, of so many parameters, or of all from the second product on."""
        return FP32_BYTES * _shard(self.made.n_parameters if self.is_later else n_done, self.shards)

    def _lasting(self, n_gathered: int) -> dict[str, int]:
        """What is there all the time; of sharded weights the root and so many layers are gathered."""
        made, work = self.made, self.work
        layers = min(n_gathered, work.shape.layers) * made.towers[0].each
        return {
            "weights": work.bytes * (made.n_parameters if self.shards == 1 else made.root + layers),
            "masters": FP32_BYTES * _shard(made.n_parameters, self.shards),
            "optimizer": _shard(optimizer_memory(work), self.shards),
        }


def n_parameters(work: Workload) -> int:
    """All of them."""
    return cost_models.cost_model_of(work).n_parameters


def optimizer_memory(work: Workload) -> int:
    """Moments in fp32: two of AdamW; Muon has one, of the matrices that it steps."""
    made = cost_models.cost_model_of(work)
    return FP32_BYTES * (2 * made.n_parameters - (made.matrices if work.optimizer == "muon" else 0))


def logits_memory(work: Workload, n: int) -> int:
    """Bytes of the logits that are there at once, of so many tokens or pairs."""
    return cost_models.cost_model_of(work).logits(n)


def activation_memory(work: Workload, runs_again: bool = False) -> int:
    """Bytes of a token or a pair that a whole forward keeps for the way back."""
    return cost_models.cost_model_of(work).left(0, runs_again)


def _shard(n: int, shards: int) -> int:
    return -(-n // shards)
