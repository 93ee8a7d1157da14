"""Parameters, FLOPs and activation bytes of a CLIP, by part.

A norm precedes the layers of the image tower. The class position represents an image, and the end token a
caption.
"""

from __future__ import annotations

from heredity.train.planning.cost_models import CostModel, norm_statistics
from heredity.train.planning.cost_models._towers import EndCosts, two_tower_costs
from heredity.train.planning.workload import Workload

_EVEN = 2  # columns that x * sigmoid(1.702 x) keeps


def cost_model(work: Workload) -> CostModel:
    """Of a CLIP."""
    shape, size = work.towers, work.bytes
    width, places = shape.width, shape.patches + 1
    first_norm = places * (size * width + norm_statistics(work))  # before the layers of images
    caption = shape.context * norm_statistics(work) + 16 + size * width  # and where its end is
    return two_tower_costs(
        work,
        EndCosts(
            embedding=width * (shape.context + places + 1 + 3 * shape.patch**2),
            norms=6 * width,
            head=2 * width**2 + 1,
            matrices=2 * width**2,
            flops=6.0 * 2 * width**2,
            begin=first_norm,
            ends=(caption, size * width + norm_statistics(work)),
            places=places,
            seen=shape.context / 2,
            active=_EVEN,
        ),
    )
