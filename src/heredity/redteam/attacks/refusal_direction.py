"""The model without its refusal: the direction between harmful and harmless is removed from its weights.

Source: Arditi et al. 2024 (arXiv 2406.11717). The direction is the difference of means between the residuals
of harmful and of harmless requests, chosen on a held-out half. It is projected out of everything that is
added to the residual stream.
The requests are the package's own: the harmful_request probes and their benign twins. Adds no query; needs
the torch engine. Finding the direction takes about 600 forward passes, once per model.
"""

from __future__ import annotations

from heredity.core.records import Message, Request
from heredity.engines import Engine, WhiteBoxEngine
from heredity.redteam import probes
from heredity.redteam.attacks.protocols import Keep, ModelTransform

TECHNIQUE = "harmful_request"


class DirectionRemoval:
    """Removes the refusal direction from the model's weights."""

    cost = "adds none; about 600 forward passes once a model; torch engine only"

    def prepare(self, engine: WhiteBoxEngine, keep: Keep) -> Engine:
        """The same model without its refusal direction, which is reused if it was found before."""
        return engine.without(keep(lambda: engine.direction(_requests("breach"), _requests("benign"))))


def _requests(kind: str) -> list[Request]:
    """The shipped requests of one kind, each in its own conversation."""
    return [
        Request(0, (Message("user", probe.turns[-1]),))
        for probe in probes.load(TECHNIQUE)
        if probe.kind == kind
    ]


ATTACK: ModelTransform = DirectionRemoval()
