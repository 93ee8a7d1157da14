"""Pre-train in all processes that torchrun started: the main process grows the model, the others compute.

Promises: only the main process touches the store.
Leaves to others: the processes (train/distributed.py) and their shares of a step (train/).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from heredity.lineage.store import Store
from heredity.lineage.types import Grown

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain


def grow(recipe: Pretrain, store: Store) -> Grown | None:
    """Grow the model once; None in a process that is not the main one.

    Raises HeredityError if another process has ended.
    """
    from heredity.train import distributed

    with distributed.process_group(recipe.replicas) as dist:
        recipe = dataclasses.replace(recipe, dist=dist)
        if not dist.is_main_process:
            if dist.broadcast([]) == [1.0]:
                recipe.join(store.training(recipe))
            return None
        known = store.made_by(recipe, [])
        dist.broadcast([float(known is None)])
        return known or store.grow(recipe, [])
