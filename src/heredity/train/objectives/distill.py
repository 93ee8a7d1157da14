"""Distillation: a divergence between the teacher's and the student's distribution, per target.

Sources: Hinton et al. 2015 (1503.02531; temperature, and the factor T^2). The generalized Jensen-Shannon
divergence is that of GKD, Agarwal et al. 2023 (2306.13649, equation 1); beta 0 is forward and 1 reverse KL.

If only the teacher's most likely tokens are stored (data/teacher_logprobs.py), the distribution is over those
and one more event, "any other token". This divergence is never above that of the full distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from heredity.core.errors import BadArgument
from heredity.train.data.batching import PackedBatch
from heredity.train.data.teacher_logprobs import TeacherLogprobs
from heredity.train.models.causal_lm import CausalLM
from heredity.train.objectives import Loss

Divergence = Literal["forward", "reverse", "js"]


# (the student's logits, their rows in the batch) -> log-probabilities of student and teacher, same events
LogprobPair = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Distillation:
    """`share` is the weight of the divergence; the rest is cross-entropy on the data's answers."""

    teacher: CausalLM | TeacherLogprobs
    divergence: Divergence = "forward"
    temperature: float = 1.0
    share: float = 1.0
    beta: float = 0.5  # of js

    def loss(self, network: CausalLM, batch: PackedBatch) -> Loss:
        """Summed over the batch's targets. The teacher reads the same tokens, without gradients."""
        pair = (
            self._kept(self.teacher, batch)
            if isinstance(self.teacher, TeacherLogprobs)
            else self._live(network, batch)
        )
        sums = {"divergence": 0.0, "cross-entropy": 0.0}

        def of_rows(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            far = _divergence(*pair(logits, rows), self.divergence, self.beta) * self.temperature**2
            if self.share == 1.0:
                return far
            own = functional.cross_entropy(logits, batch.targets[rows], reduction="sum")
            sums["divergence"] += float(far.detach())
            sums["cross-entropy"] += float(own.detach())
            return self.share * far + (1 - self.share) * own

        total = network.loss(network.hidden(batch), of_rows)
        return Loss(total, sums if self.share < 1.0 else {})

    def weight(self, batch: PackedBatch) -> float:
        """The number of targets."""
        return float(len(batch.targets))

    def _live(self, network: CausalLM, batch: PackedBatch) -> LogprobPair:
        teacher = self.teacher
        assert isinstance(teacher, CausalLM)
        with torch.no_grad():
            theirs = teacher.hidden(batch)
        n_words = min(len(network.head), len(teacher.head))  # heads may be padded to different sizes

        def pair(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.no_grad():
                wanted = teacher.logits(theirs[rows]).float()[:, :n_words]
            return _logprobs(logits[:, :n_words], self.temperature), _logprobs(wanted, self.temperature)

        return pair

    def _kept(self, scores: TeacherLogprobs, batch: PackedBatch) -> LogprobPair:
        if scores.temperature != self.temperature:
            raise BadArgument(
                f"stored at temperature {scores.temperature:g}, but the objective has {self.temperature:g}",
                code="temperature-differs",
            )
        tokens, theirs = scores.at_targets(batch)

        def pair(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
            at = tokens[rows]
            mine = _logprobs(logits[:, : scores.n_words], self.temperature)
            if tokens.shape[1] == scores.n_words:  # there is no other token
                return mine.gather(1, at), theirs[rows, :-1]
            rest = mine.scatter(1, at, -torch.inf).logsumexp(1, keepdim=True)
            return torch.cat([mine.gather(1, at), rest], 1), theirs[rows]

        return pair


def divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    kind: Divergence,
    temperature: float = 1.0,
    beta: float = 0.5,
) -> torch.Tensor:
    """The divergence summed over rows of logits (rows, vocabulary), in nats, times temperature squared."""
    return (
        _divergence(_logprobs(student, temperature), _logprobs(teacher, temperature), kind, beta)
        * temperature**2
    )


def _logprobs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.log_softmax(logits / temperature, dim=-1)


def _divergence(s: torch.Tensor, t: torch.Tensor, kind: Divergence, beta: float) -> torch.Tensor:
    """The divergence of log-probabilities (rows, events) of student and teacher."""
    if kind == "forward":
        return functional.kl_div(s, t, reduction="sum", log_target=True)
    if kind == "reverse":
        return functional.kl_div(t, s, reduction="sum", log_target=True)
    weights = torch.tensor([beta, 1 - beta]).log()
    middle = torch.logsumexp(torch.stack([t + weights[0], s + weights[1]]), dim=0)
    of_teacher = functional.kl_div(middle, t, reduction="sum", log_target=True)
    of_student = functional.kl_div(middle, s, reduction="sum", log_target=True)
    return beta * of_teacher + (1 - beta) * of_student
