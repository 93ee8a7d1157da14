"""Parameters, FLOPs and activation bytes of each architecture, for a recipe's shape.

    cost_model(work) -> CostModel    of the file named as the architecture; the default is decoder.py

A unit is what a workload counts: a token of text, or an image-caption pair.

Promises: parameters and activation bytes equal those of transformers' model exactly; tests hold them equal.
Leaves to others: memory over time (memory.py), and the time of FLOPs (forecast.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from heredity.core import registry
from heredity.train.resources import FP32_BYTES

if TYPE_CHECKING:
    from heredity.train.planning.workload import Workload

LAYER_PARTS = ("attention", "attention scores", "feed-forward")


@dataclass(frozen=True)
class TowerCosts:
    """A stack of layers. Bytes are per unit."""

    layers: int
    parameters: int  # of all layers
    each: int  # of the largest layer
    kept: int  # activations of all layers
    begin: int  # activations before the layers
    end: int  # activations after them, released before the backward pass of the last layer
    most: int  # the largest activations of one layer
    entry: int  # a layer's input: all that it keeps if recomputed
    back: int  # what the backward pass of a layer takes in addition

    def layers_kept(self, recompute: int) -> int:
        """Bytes that the layers keep if every `recompute`-th one keeps its input only; 0: none does."""
        again = self.layers // recompute if recompute else 0
        return again * self.entry + -(-self.kept * (self.layers - again) // self.layers)


@dataclass(frozen=True)
class CostModel:
    """The costs of a model of one architecture and shape."""

    parameters: dict[str, int]  # by part
    matrices: int  # parameters that Muon updates
    flops: dict[str, float]  # of a unit, forward and backward, by part
    towers: tuple[TowerCosts, ...]  # in the order of the backward pass
    head: int  # parameters whose gradient is computed with the loss
    loose: int  # parameters outside layers whose gradients are held in addition to the masters'
    logits: Callable[[int], int]  # units at once -> bytes
    period: int = 1  # layers after which their kinds repeat

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
        """Parameters outside the layers."""
        return self.n_parameters - self.in_layers

    def again(self, recompute: int) -> float:
        """The additional share of FLOPs if every `recompute`-th layer is recomputed; 0: none."""
        if not recompute:
            return 0.0
        share = sum(tower.layers // recompute for tower in self.towers) / self.n_layers
        return share * sum(self.flops.get(part, 0.0) for part in LAYER_PARTS) / 3 / sum(self.flops.values())

    def left(self, n: int, recompute: int) -> int:
        """Activation bytes per unit that are held once `n` towers have done their backward pass.

        recompute: every `recompute`-th layer keeps its input only; 0: none.
        """
        return sum(tower.begin + tower.end + tower.layers_kept(recompute) for tower in self.towers[n:])


def norm_statistics(work: Workload) -> int:
    """Bytes of a row's mean and deviation that a norm keeps."""
    return 2 * (work.bytes if work.is_on_cpu else FP32_BYTES)


@lru_cache(maxsize=64)
def cost_model_of(work: Workload) -> CostModel:
    """The cost model of a workload."""
    name = work.architecture
    known = name in registry.names("train.planning.cost_models")
    found: CostModel = registry.load("train.planning.cost_models", name if known else "decoder").cost_model(
        work
    )
    return found
