"""A recipe that trains, made by all the processes that torchrun started: the first grows, the others compute.

Promises: only the first process touches the store; with one process it is the store's own `derive`.
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
    """The child, grown once; None in a process that is not the first.

    Raises HeredityError if another process has ended.
    """
    from heredity.train import distributed

    with distributed.process_group(recipe.replicas) as together:
        recipe = dataclasses.replace(recipe, together=together)
        if not together.is_first:
            if together.told([]) == [1.0]:
                recipe.join(store.training(recipe))
            return None
        known = store.made_by(recipe, [])
        together.told([float(known is None)])
        return known or store.grow(recipe, [])
