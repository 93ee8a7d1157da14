"""Parameters, FLOPs and activation bytes of a SigLIP, by part.

A learned probe attends to all positions of an image. The last position of a caption, which attends to all of
it, represents the caption.
"""

from __future__ import annotations

from heredity.train.planning.cost_models import CostModel, norm_statistics
from heredity.train.planning.cost_models._towers import EndCosts, two_tower_costs
from heredity.train.planning.workload import Workload


def cost_model(work: Workload) -> CostModel:
    """Of a SigLIP."""
    shape, size = work.towers, work.bytes
    width, places, wide = shape.width, shape.patches, shape.wide
    asking = 4 * width * (width + 1) + 2 * width * wide + wide + width
    products = width**2 + 2 * width**2 * (places + 1) + 2 * width * wide + 2 * width * places
    captions = shape.context * (size * width + norm_statistics(work))  # all that the last norm gives is held
    images = places * (
        norm_statistics(work) + 3 * size * width + size * shape.heads
    )  # and keys and values of it
    probe = size * (5 * width + 2 * wide) + norm_statistics(work)
    return two_tower_costs(
        work,
        EndCosts(
            embedding=width * (shape.context + places + 3 * shape.patch**2 + 1),
            norms=4 * width,
            head=width * (width + 1) + width + asking + 2 * width + 2,
            matrices=width**2 + 4 * width**2 + 2 * width * wide,
            flops=6.0 * products,
            begin=0,
            ends=(captions, images + probe),
            places=places,
            seen=float(shape.context),
            active=1,
        ),
    )
