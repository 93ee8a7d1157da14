"""The loop: whatever is learned, by whatever weights, from whatever data.

Promises: killed at any moment, it goes on from its last checkpoint to the same bits; a loss that is no number
stops it and keeps the last good checkpoint, or with a guard goes back to that and past the data; every step
is a row of training.jsonl.
Leaves to others: data (steps.py), what is minimized (objectives/), the arithmetic of a step (optimizer.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

import msgspec
import torch

from heredity.core.errors import HeredityError
from heredity.core.progress import Progress, Watch
from heredity.core.records import Record
from heredity.core.rows import Rows
from heredity.train import checkpoint
from heredity.train.checkpoint import CheckpointState
from heredity.train.data.batching import PackedBatch
from heredity.train.distributed import SINGLE_PROCESS, DistContext
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.lora import FullFinetune, LowRankAdapters
from heredity.train.objectives import Objective
from heredity.train.optimizer import MasterWeights, OptimizerName, Schedule, lr_factor

METRICS = "training.jsonl"
CHECKPOINT_SECONDS = 60.0  # between checkpoints, and never more than a tenth of the time on them
_CHECKPOINT_COST_RATIO = 10


class StepMetrics(Record, frozen=True):
    """A row of training.jsonl: one step. `loss` in nats a learned token (or a pair), before the step."""

    step: int
    loss: float
    rate: float
    norm: float
    n_tokens: int  # all that were read
    n_learned: float
    terms: dict[str, float] = msgspec.field(default_factory=dict)
    schema: int = 1


@dataclass(frozen=True)
class TrainingPlan:
    """How a training goes. `training` is the digest that its checkpoint bears."""

    training: str
    n_steps: int
    rate: float
    schedule: Schedule = "cosine"
    n_warmup: int = 0
    decay: float = 0.0
    clip: float = 1.0
    optimizer: OptimizerName = "adamw"
    seed: int = 0


class BatchSource(Protocol):
    """What each step learns from: Steps, or Written."""

    def of(self, step: int) -> list[PackedBatch]:
        """The batches of a step, counted from 0."""


class ValidationCheck(Protocol):
    """What is looked at every `every` steps and after the last: sums of the weights as they are then."""

    @property
    def every(self) -> int:
        """Steps between two looks."""

    def of(self, network: CausalLM) -> dict[str, float]:
        """Terms for the row of the step that was just done."""


@dataclass(frozen=True)
class DivergenceGuard:
    """Goes back to the last checkpoint where a loss is no number or leaps, and past what was read since.

    Source: PaLM (2204.02311, section 5.1). Checkpoints are kept at fixed steps, so that where it goes back to
    hangs on no clock.
    """

    keep_every: int = 100  # steps
    spike: float = 2.0  # nats above the median of the last `window` steps
    window: int = 32  # steps; so many must have been done
    tries: int = 3

    def trips(self, loss: float, before: Sequence[float]) -> bool:
        """Whether a loss is one to go back from, after those before."""
        last = before[-self.window :]
        return not math.isfinite(loss) or (len(last) == self.window and loss > median(last) + self.spike)


class Diverged(HeredityError):
    """The loss is no number any more."""

    code = "diverged"


def train(
    network: CausalLM,
    trainable: FullFinetune | LowRankAdapters,
    objective: Objective,
    steps: BatchSource,
    plan: TrainingPlan,
    folder: Path,
    watch: Watch | None = None,
    check: ValidationCheck | None = None,
    guard: DivergenceGuard | None = None,
    together: DistContext = SINGLE_PROCESS,
) -> list[StepMetrics]:
    """Train until the plan's last step; the network has learned then. `folder` keeps checkpoint and metrics.

    Together with other processes there is a guard, for its checkpoints hang on no clock; the first keeps the
    rows, and in the others there are none.

    Raises Diverged, with the step.
    """
    torch.manual_seed(plan.seed)
    masters = MasterWeights(
        trainable.open(network, plan.seed), plan.optimizer, plan.rate, plan.decay, together
    )
    assert together.is_alone or guard is not None
    run = _TrainingRun(network, objective, steps, plan, folder, masters, guard)
    run.go_on()
    clock = _ProgressClock(run.n_done, plan.n_steps, watch, guard)
    try:
        while run.n_done < plan.n_steps:
            metric = run.step()
            if metric is None:
                continue
            is_last = run.n_done == plan.n_steps
            if check is not None and (is_last or run.n_done % check.every == 0):
                told = check.of(network)
                if not all(map(math.isfinite, told.values())):
                    raise Diverged(
                        f"what is held out is told no number after step {metric.step}. Lower the rate "
                        f"({plan.rate:g})."
                    )
                metric = msgspec.structs.replace(metric, terms=metric.terms | told)
            run.keep(metric)
            clock.tick(metric)
            if clock.is_due(run.n_done) and not is_last:
                with clock.keeping():
                    run.write()
        run.refuse_ruined()
        run.rows.flush()
        return list(run.rows)
    finally:
        run.rows.close()


class _TrainingRun:
    """Where a training stands: the weights, the rows, and how far the data is ahead of the steps."""

    def __init__(
        self,
        network: CausalLM,
        objective: Objective,
        steps: BatchSource,
        plan: TrainingPlan,
        folder: Path,
        masters: MasterWeights,
        guard: DivergenceGuard | None,
    ) -> None:
        self.network, self.objective, self.steps, self.plan = network, objective, steps, plan
        self.folder, self.masters, self.guard, self.together = folder, masters, guard, masters.together
        self.n_done = self.n_tokens = self.n_skipped = self.n_back = 0
        self.losses: list[float] = []
        self.rows: Rows[StepMetrics] | _DiscardedRows

    def go_on(self) -> None:
        """From the last checkpoint; with a guard there is one from the beginning."""
        kept = checkpoint.read_checkpoint(self.folder, self.plan.training, self.masters.n_rows, self.together)
        if kept is not None:
            self.masters.restore(kept.state)
            self.n_done, self.n_tokens, self.n_skipped = kept.n_steps, kept.n_tokens, kept.n_skipped
        self.rows = _open_metrics(self.folder, self.n_done) if self.together.is_first else _DiscardedRows()
        self.losses = self.together.told([row.loss for row in self.rows])
        if kept is None and self.guard is not None:
            self.write()

    def step(self) -> StepMetrics | None:
        """One step; None where the guard went back instead."""
        batches = self.steps.of(self.n_done + self.n_skipped)
        try:
            metric = _optimizer_step(
                self.network, self.objective, batches, self.masters, self.plan, self.n_done, self._refuses
            )
        except Diverged:
            if self.guard is None or self.n_back >= self.guard.tries:
                raise
            self._go_back()
            return None
        self.n_done += 1
        return metric

    def keep(self, metric: StepMetrics) -> None:
        """The row of a step that was done."""
        self.n_tokens += metric.n_tokens
        self.losses.append(metric.loss)
        self.rows.append(metric)
        self.rows.write()

    def write(self) -> None:
        """A checkpoint, of weights that are numbers: the last good one is not written over."""
        self.refuse_ruined()
        self.rows.flush()
        kept = CheckpointState(self.n_done, self.n_tokens, self.masters.state(), self.n_skipped)
        checkpoint.write_checkpoint(self.folder, self.plan.training, kept, self.masters.n_rows, self.together)

    def refuse_ruined(self) -> None:
        """A step's loss is that of the weights before it: what the last one did to them, no loss has told."""
        if not self.masters.are_finite():
            raise Diverged(
                f"after step {self.n_done - 1} weights are no numbers. Lower the rate ({self.plan.rate:g})"
                f" or the decay ({self.plan.decay:g}).",
                code="weights-not-finite",
            )

    def _refuses(self, loss: float) -> bool:
        return self.guard is not None and self.guard.trips(loss, self.losses)

    def _go_back(self) -> None:
        at, n_back = self.n_done + self.n_skipped, self.n_back + 1
        self.rows.close()
        self.go_on()
        self.n_skipped, self.n_back = at + 1 - self.n_done, n_back


def _optimizer_step(
    network: CausalLM,
    objective: Objective,
    batches: list[PackedBatch],
    masters: MasterWeights,
    plan: TrainingPlan,
    step: int,
    refuses: Callable[[float], bool],
) -> StepMetrics:
    together = masters.together
    (weight,) = together.sum([sum(objective.weight(batch) for batch in batches)])
    total, terms = 0.0, dict[str, float]()
    for left, batch in reversed(list(enumerate(reversed(batches)))):
        network.begin(is_last=left == 0)
        loss = objective.loss(network, together.here(batch))
        (loss.total / weight).backward()
        total += float(loss.total.detach())
        for name, value in loss.terms.items():
            terms[name] = terms.get(name, 0.0) + value / weight
    mine = [total, sum(len(batch.tokens) for batch in batches), *terms.values()]
    total, n_tokens, *summed = together.sum(mine)
    terms = dict(zip(terms, summed, strict=True))
    if not math.isfinite(total) or refuses(total / weight):
        masters.forget()
        raise Diverged(
            f"the loss of step {step} is {total}. Lower the rate ({plan.rate:g}), or mend the data.",
            code="loss-not-finite",
        )
    share = lr_factor(step, plan.n_steps, plan.schedule, plan.n_warmup)
    norm = masters.step(share, plan.clip)
    if not math.isfinite(norm):
        raise Diverged(
            f"the gradient of step {step} is {norm}. Lower the rate ({plan.rate:g}).",
            code="gradient-not-finite",
        )
    return StepMetrics(step, total / weight, plan.rate * share, norm, int(n_tokens), weight, terms)


def _open_metrics(folder: Path, n_done: int) -> Rows[StepMetrics]:
    """The rows, without those of steps that will be done again."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = Rows(folder / METRICS, StepMetrics)
    kept = [row for row in rows if row.step < n_done]
    rows.path.unlink(missing_ok=True)
    rows.extend(kept)
    return rows


class _DiscardedRows:
    """Rows of a process that keeps none: the first does."""

    def append(self, row: StepMetrics) -> None:
        """Nothing, as in the rest."""

    def write(self) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def __iter__(self) -> Iterator[StepMetrics]:
        return iter(())


class _ProgressClock:
    """Rate, time left, and when a checkpoint is due."""

    def __init__(self, n_done: int, n_steps: int, watch: Watch | None, guard: DivergenceGuard | None) -> None:
        self._first, self._n_steps, self._watch, self._guard = n_done, n_steps, watch, guard
        self._start = self._kept_at = time.monotonic()
        self._n_tokens, self._cost = 0, 0.0

    def tick(self, metric: StepMetrics) -> None:
        self._n_tokens += metric.n_tokens
        if self._watch is None:
            return
        seconds, n = time.monotonic() - self._start, metric.step + 1 - self._first
        left = seconds / n * (self._n_steps - metric.step - 1)
        self._watch(
            Progress(
                "train",
                "",
                metric.step + 1,
                self._n_steps,
                per_second=self._n_tokens / seconds,
                seconds_left=left,
                unit="tokens",
                loss=metric.loss,
            )
        )

    def is_due(self, n_done: int) -> bool:
        if self._guard is not None:
            return n_done % self._guard.keep_every == 0
        return time.monotonic() - self._kept_at >= max(
            CHECKPOINT_SECONDS, _CHECKPOINT_COST_RATIO * self._cost
        )

    def keeping(self) -> _ProgressClock:
        return self

    def __enter__(self) -> None:
        self._kept_at = time.monotonic()

    def __exit__(self, *error: object) -> None:
        now = time.monotonic()
        self._cost, self._kept_at = now - self._kept_at, now
