"""What kinds of model are made of: parameters, FLOPs and kept bytes of each, for a recipe's shape.

    anatomy(work) -> Anatomy    of a file named as its architecture; what has none is a decoder

A unit is what a work counts: a token of text, or a pair of picture and caption.

Promises: parameters, and bytes that a forward keeps, are those of transformers' model, to the last one (tests
hold both equal).
Leaves to others: what lies on a device when (memory.py), and what FLOPs cost (forecast.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from heredity.core import registry

if TYPE_CHECKING:
    from heredity.train.planning.workload import Workload

LAYER_PARTS = ("attention", "attention scores", "feed-forward")


@dataclass(frozen=True)
class TowerCosts:
    """Layers that follow one another. Bytes are of one unit."""

    layers: int
    parameters: int  # of all layers
    each: int  # of one: the largest
    kept: int  # what all layers keep for their way back
    begin: int  # what is kept before them
    end: int  # and behind them: it is gone when the last layer's way back begins
    most: int  # what one keeps: the one that keeps most
    entry: int  # a layer's input: what it keeps where it runs again
    back: int  # what one layer's way back takes beside what was kept


@dataclass(frozen=True)
class CostModel:
    """A model of this kind and shape."""

    parameters: dict[str, int]  # by part
    matrices: int  # parameters that Muon steps
    flops: dict[str, float]  # of a unit, forward and backward, by part
    towers: tuple[TowerCosts, ...]  # in the order in which the way back goes through them
    head: int  # parameters whose gradient is made with the loss, before the way back
    loose: int  # parameters outside of layers whose gradients wait beside their masters'
    logits: Callable[[int], int]  # units at once -> bytes
    period: int = 1  # layers after which their kinds come again

    @property
    def n_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def n_layers(self) -> int:
        return sum(tower.layers for tower in self.towers)

    @property
    def in_layers(self) -> int:
        """Parameters of all layers."""
        return sum(tower.parameters for tower in self.towers)

    @property
    def root(self) -> int:
        """Parameters outside of them."""
        return self.n_parameters - self.in_layers

    @property
    def again(self) -> float:
        """How much more is multiplied where layers run forward a second time."""
        return sum(self.flops.get(part, 0.0) for part in LAYER_PARTS) / 3 / sum(self.flops.values())

    def left(self, n: int, runs_again: bool) -> int:
        """Bytes a unit that is kept, all but the first `n` towers of the way back having gone it."""
        return sum(
            tower.begin + tower.end + (tower.layers * tower.entry if runs_again else tower.kept)
            for tower in self.towers[n:]
        )


@lru_cache(maxsize=64)
def cost_model_of(work: Workload) -> CostModel:
    """The anatomy of a work's model."""
    name = work.architecture
    known = name in registry.names("train.planning.cost_models")
    found: CostModel = registry.load("train.planning.cost_models", name if known else "decoder").cost_model(
        work
    )
    return found
