"""Say what the teacher would say: a divergence between its distribution and the student's, a token each.

Sources: Hinton et al. 2015 (1503.02531; temperature, and the factor T^2); generalized Jensen-Shannon
divergence as in GKD, Agarwal et al. 2023 (2306.13649, equation 1), where beta 0 stands for forward and 1 for
reverse KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from heredity.train.network import Network
from heredity.train.objectives import Loss
from heredity.train.steps import Batch

Divergence = Literal["forward", "reverse", "js"]


@dataclass(frozen=True)
class Distilled:
    """`share` of it is the divergence, the rest cross-entropy on the data's own answers."""

    teacher: Network
    divergence: Divergence = "forward"
    temperature: float = 1.0
    share: float = 1.0
    beta: float = 0.5  # of js

    def loss(self, network: Network, batch: Batch) -> Loss:
        """Summed over the batch's learned tokens. The teacher reads the same tokens, without gradients."""
        with torch.no_grad():
            theirs = self.teacher.hidden(batch)
        n_words = min(len(network.head), len(self.teacher.head))  # heads may be padded to different sizes
        sums = {"divergence": 0.0, "cross-entropy": 0.0}

        def of_rows(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            with torch.no_grad():
                wanted = self.teacher.logits(theirs[rows]).float()[:, :n_words]
            far = divergence(logits[:, :n_words], wanted, self.divergence, self.temperature, self.beta)
            if self.share == 1.0:
                return far
            own = functional.cross_entropy(logits, batch.targets[rows], reduction="sum")
            sums["divergence"] += float(far.detach())
            sums["cross-entropy"] += float(own.detach())
            return self.share * far + (1 - self.share) * own

        total = network.loss(network.hidden(batch), of_rows)
        return Loss(total, sums if self.share < 1.0 else {})

    def weight(self, batch: Batch) -> float:
        """Learned tokens."""
        return float(len(batch.targets))


def divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    kind: Divergence,
    temperature: float = 1.0,
    beta: float = 0.5,
) -> torch.Tensor:
    """The sum over rows of logits (rows, vocabulary), in nats, times the temperature's square."""
    s = torch.log_softmax(student / temperature, dim=-1)
    t = torch.log_softmax(teacher / temperature, dim=-1)
    if kind == "forward":
        found = functional.kl_div(s, t, reduction="sum", log_target=True)
    elif kind == "reverse":
        found = functional.kl_div(t, s, reduction="sum", log_target=True)
    else:
        weights = torch.tensor([beta, 1 - beta]).log()
        middle = torch.logsumexp(torch.stack([t + weights[0], s + weights[1]]), dim=0)
        of_teacher = functional.kl_div(middle, t, reduction="sum", log_target=True)
        of_student = functional.kl_div(middle, s, reduction="sum", log_target=True)
        found = beta * of_teacher + (1 - beta) * of_student
    return found * temperature**2
