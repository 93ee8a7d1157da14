"""The size of a pre-training, as a plan needs it.

Promises: no torch, and no corpus if a vocabulary is given.
Leaves to others: the objectives' own figures (objectives/), and the plan (train/planning/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from heredity.core.errors import UsageError
from heredity.core.readers import naming
from heredity.train.planning.workload import ARCHITECTURES, Workload

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain


def every(n_steps: int, evaluations: int) -> int:
    """Steps between two evaluations; one more follows the last step."""
    return max(1, n_steps // evaluations)


def work(recipe: Pretrain, vocabulary: int = 0, side: int = 0, is_on_cpu: bool = False) -> Workload:
    """The workload of a recipe, for a plan. vocabulary, side of an image in pixels; 0: the corpus's.

    Without the corpus, an evaluation reads as many tokens as the recipe asks for, and no pairs. Raises
    UsageError.
    """
    if recipe.architecture not in ARCHITECTURES:
        raise UsageError(
            f"'{recipe.architecture}' cannot be planned yet; these can: {', '.join(ARCHITECTURES)}.",
            key="architecture",
        )
    if side and recipe.spec.UNIT != "pairs":
        raise UsageError(
            f'--image-size is for images, and objective = "{recipe.objective}" has none. Leave it out.'
        )
    with naming(recipe.file):
        of = recipe.spec.workload(recipe, vocabulary, side)
    n_evaluations = -(-of.n_steps // every(of.n_steps, recipe.evaluations))
    return msgspec.structs.replace(
        of,
        n_evaluated=n_evaluations * of.n_evaluated,
        optimizer=recipe.optimizer,
        architecture=recipe.architecture,
        bytes=4 if recipe.dtype == "float32" else 2,
        is_on_cpu=is_on_cpu,
    )
