"""Say what the teacher would say: a divergence between its distribution and the student's, a token each.

Sources: Hinton et al. 2015 (1503.02531; temperature, and the factor T^2); generalized Jensen-Shannon
divergence as in GKD, Agarwal et al. 2023 (2306.13649, equation 1), where beta 0 stands for forward and 1 for
reverse KL.

Of a teacher whose likeliest tokens are kept (scores.py) the distribution is over those and one event more,
"any other token": a divergence over coarser events, never above the whole one.
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


# (the student's logits, which rows of the batch they are) -> log-probabilities of the same events, the
# student's and the teacher's
LogprobPair = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Distillation:
    """`share` of it is the divergence, the rest cross-entropy on the data's own answers."""

    teacher: CausalLM | TeacherLogprobs
    divergence: Divergence = "forward"
    temperature: float = 1.0
    share: float = 1.0
    beta: float = 0.5  # of js

    def loss(self, network: CausalLM, batch: PackedBatch) -> Loss:
        """Summed over the batch's learned tokens. The teacher reads the same tokens, without gradients."""
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
        """Learned tokens."""
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
                f"kept at temperature {scores.temperature:g}, asked for at {self.temperature:g}",
                code="temperature-differs",
            )
        tokens, theirs = scores.of(batch)

        def pair(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
            at = tokens[rows]
            mine = _logprobs(logits[:, : scores.n_words], self.temperature)
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
    """The sum over rows of logits (rows, vocabulary), in nats, times the temperature's square."""
    return (
        _divergence(_logprobs(student, temperature), _logprobs(teacher, temperature), kind, beta)
        * temperature**2
    )


def _logprobs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.log_softmax(logits / temperature, dim=-1)


def _divergence(s: torch.Tensor, t: torch.Tensor, kind: Divergence, beta: float) -> torch.Tensor:
    """Of log-probabilities (rows, events), the student's and the teacher's."""
    if kind == "forward":
        return functional.kl_div(s, t, reduction="sum", log_target=True)
    if kind == "reverse":
        return functional.kl_div(t, s, reduction="sum", log_target=True)
    weights = torch.tensor([beta, 1 - beta]).log()
    middle = torch.logsumexp(torch.stack([t + weights[0], s + weights[1]]), dim=0)
    of_teacher = functional.kl_div(middle, t, reduction="sum", log_target=True)
    of_student = functional.kl_div(middle, s, reduction="sum", log_target=True)
    return beta * of_teacher + (1 - beta) * of_student
