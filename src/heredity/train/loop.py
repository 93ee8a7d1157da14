"""The loop: whatever is learned, by whatever weights, from whatever data.

Promises: killed at any moment, it goes on from its last checkpoint to the same bits; a loss that is no number
stops it and keeps the last good checkpoint; every step is a row of metrics.jsonl.
Leaves to others: data (steps.py), what is minimized (objectives/), the arithmetic of a step (optimizer.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import torch

from heredity.errors import HeredityError
from heredity.records import Record
from heredity.store import Rows
from heredity.train import checkpoint
from heredity.train.checkpoint import Kept
from heredity.train.network import Network
from heredity.train.objectives import Objective
from heredity.train.optimizer import Kind, Masters, Schedule, share_at
from heredity.train.steps import Batch
from heredity.train.trainable import Everything, Lora

METRICS = "training.jsonl"
KEEP_SECONDS = 60.0  # between checkpoints, and never more than a tenth of the time on them
_SHARE = 10


class Metric(Record, frozen=True):
    """A row of training.jsonl: one step. `loss` in nats a learned token (or a pair), before the step."""

    step: int
    loss: float
    rate: float
    norm: float
    n_tokens: int  # all that were read
    n_learned: float
    terms: dict[str, float] = msgspec.field(default_factory=dict)
    schema: int = 1


class Watched(NamedTuple):
    """What a progress display shows; `tokens_per_second` is of this run. No loss: a teacher reads first."""

    step: int
    n_steps: int
    loss: float | None
    tokens_per_second: float
    seconds_left: float


Watch = Callable[[Watched], None]


@dataclass(frozen=True)
class Plan:
    """How a training goes. `training` is the digest that its checkpoint bears."""

    training: str
    n_steps: int
    rate: float
    schedule: Schedule = "cosine"
    n_warmup: int = 0
    decay: float = 0.0
    clip: float = 1.0
    optimizer: Kind = "adamw"
    seed: int = 0


class Source(Protocol):
    """What each step learns from: Steps, or Written."""

    def of(self, step: int) -> list[Batch]:
        """The batches of a step, counted from 0."""


class Diverged(HeredityError):
    """The loss is no number any more."""


def train(
    network: Network,
    trainable: Everything | Lora,
    objective: Objective,
    steps: Source,
    plan: Plan,
    folder: Path,
    watch: Watch | None = None,
) -> list[Metric]:
    """Train until the plan's last step; the network has learned then. `folder` keeps checkpoint and metrics.

    Raises Diverged, with the step.
    """
    torch.manual_seed(plan.seed)
    masters = Masters(trainable.open(network, plan.seed), plan.optimizer, plan.rate, plan.decay)
    kept = checkpoint.read(folder, plan.training)
    n_done, n_tokens = 0, 0
    if kept is not None:
        masters.restore(kept.state)
        n_done, n_tokens = kept.n_steps, kept.n_tokens
    clock = _Clock(n_done, plan.n_steps, watch)
    with _metrics(folder, n_done) as rows:
        for step in range(n_done, plan.n_steps):
            metric = _step(network, objective, steps.of(step), masters, plan, step)
            n_tokens += metric.n_tokens
            rows.append(metric)
            rows.write()
            clock.tick(metric)
            if clock.is_due() and step + 1 < plan.n_steps:
                rows.flush()
                with clock.keeping():
                    checkpoint.write(folder, plan.training, Kept(step + 1, n_tokens, masters.state()))
        rows.flush()
        return list(rows)


def _step(
    network: Network, objective: Objective, batches: list[Batch], masters: Masters, plan: Plan, step: int
) -> Metric:
    weight = sum(objective.weight(batch) for batch in batches)
    total, terms = 0.0, dict[str, float]()
    for batch in batches:
        loss = objective.loss(network, batch)
        (loss.total / weight).backward()
        total += float(loss.total.detach())
        for name, value in loss.terms.items():
            terms[name] = terms.get(name, 0.0) + value / weight
    if not math.isfinite(total):
        raise Diverged(
            f"the loss of step {step} is {total}. Lower the rate ({plan.rate:g}), or mend the data."
        )
    share = share_at(step, plan.n_steps, plan.schedule, plan.n_warmup)
    norm = masters.step(share, plan.clip)
    if not math.isfinite(norm):
        raise Diverged(f"the gradient of step {step} is {norm}. Lower the rate ({plan.rate:g}).")
    n_tokens = sum(len(batch.tokens) for batch in batches)
    return Metric(step, total / weight, plan.rate * share, norm, n_tokens, weight, terms)


def _metrics(folder: Path, n_done: int) -> Rows[Metric]:
    """The rows, without those of steps that will be done again."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = Rows(folder / METRICS, Metric)
    kept = [row for row in rows if row.step < n_done]
    rows.path.unlink(missing_ok=True)
    rows.extend(kept)
    return rows


class _Clock:
    """Rate, time left, and when a checkpoint is due."""

    def __init__(self, n_done: int, n_steps: int, watch: Watch | None) -> None:
        self._first, self._n_steps, self._watch = n_done, n_steps, watch
        self._start = self._kept_at = time.monotonic()
        self._n_tokens, self._cost = 0, 0.0

    def tick(self, metric: Metric) -> None:
        self._n_tokens += metric.n_tokens
        if self._watch is None:
            return
        seconds, n = time.monotonic() - self._start, metric.step + 1 - self._first
        left = seconds / n * (self._n_steps - metric.step - 1)
        self._watch(Watched(metric.step + 1, self._n_steps, metric.loss, self._n_tokens / seconds, left))

    def is_due(self) -> bool:
        return time.monotonic() - self._kept_at >= max(KEEP_SECONDS, _SHARE * self._cost)

    def keeping(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        self._kept_at = time.monotonic()

    def __exit__(self, *error: object) -> None:
        now = time.monotonic()
        self._cost, self._kept_at = now - self._kept_at, now
