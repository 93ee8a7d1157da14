"""The training loop, for every objective, trainable set and data source.

Promises: a run that is killed resumes from its last checkpoint and ends with the same bits. A loss that is
not finite stops the run and keeps the last good checkpoint. A guard goes back to it instead and skips the
data since. Every step is a row of training.jsonl.
Leaves to others: data (data/), the loss (objectives/), and the arithmetic of a step (optimizer.py).
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
from heredity.core.files import Rows, write_atomic
from heredity.core.progress import Progress, TimeLeft, TimeSpan, Watch, Work, phase
from heredity.core.records import Record, encode
from heredity.train import checkpoint
from heredity.train.checkpoint import CheckpointState
from heredity.train.data.batching import PackedBatch
from heredity.train.distributed import SINGLE_PROCESS, DistContext
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.lora import Trainable
from heredity.train.objectives import Objective
from heredity.train.optimizer import MasterWeights, OptimizerName, Schedule, lr_factor

METRICS = "training.jsonl"
PROGRESS = "progress.json"  # beside it, while a run is in progress
PROGRESS_SECONDS = 2.0  # between two writes of it
CHECKPOINT_SECONDS = 60.0  # between checkpoints, and never more than a tenth of the time on them
_CHECKPOINT_COST_RATIO = 10


class StepMetrics(Record, frozen=True):
    """A row of training.jsonl: one step. `loss` is in nats per target token, or per pair, before the step.

    The stored names of `lr` and `grad_norm` are part of a model's id, since the file is one of its files.
    """

    step: int
    loss: float
    lr: float = msgspec.field(name="rate")
    grad_norm: float = msgspec.field(name="norm")  # before clipping
    n_tokens: int  # read, targets and context
    n_learned: float
    terms: dict[str, float] = msgspec.field(default_factory=dict)
    schema: int = 1


class RunProgress(Record, frozen=True):
    """The speed of a run in progress, over all steps since it was begun or resumed."""

    n_done: int
    n_steps: int
    per_second: float  # tokens
    seconds_left: TimeSpan | None
    schema: int = 1


@dataclass(frozen=True)
class TrainingPlan:
    """The settings of a run. `training` is the digest that its checkpoints have."""

    training: str
    n_steps: int
    lr: float
    schedule: Schedule = "cosine"
    n_warmup: int = 0
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    optimizer: OptimizerName = "adamw"
    seed: int = 0


class BatchSource(Protocol):
    """The data of each step, such as a BatchSampler or OnPolicyBatches."""

    def batches(self, step: int) -> list[PackedBatch]:
        """The batches of a step, counted from 0."""


class ValidationCheck(Protocol):
    """An evaluation of the current weights, every `every` steps and after the last."""

    @property
    def every(self) -> int:
        """Steps between two evaluations."""

    def evaluate(self, network: CausalLM) -> dict[str, float]:
        """Terms for the row of the step that has just ended."""


@dataclass(frozen=True)
class DivergenceGuard:
    """Restores the last checkpoint when a loss is not finite or spikes, and skips the batches since.

    Source: PaLM (2204.02311, section 5.1). Checkpoints are written at fixed steps, so that a run does not
    depend on the clock.
    """

    keep_every: int = 100  # steps
    spike: float = 2.0  # nats above the median of the last `window` steps
    window: int = 32  # steps; no spike is found before
    tries: int = 3

    def trips(self, loss: float, before: Sequence[float]) -> bool:
        """Whether this loss, after those `before`, is a reason to go back."""
        last = before[-self.window :]
        return not math.isfinite(loss) or (len(last) == self.window and loss > median(last) + self.spike)


class Diverged(HeredityError):
    """The loss, the gradient or the weights are not finite."""

    code = "diverged"


def train(
    network: CausalLM,
    trainable: Trainable,
    objective: Objective,
    source: BatchSource,
    plan: TrainingPlan,
    folder: Path,
    watch: Watch | None = None,
    check: ValidationCheck | None = None,
    guard: DivergenceGuard | None = None,
    dist: DistContext = SINGLE_PROCESS,
) -> list[StepMetrics]:
    """Run `plan.n_steps` optimizer steps; `network` has the trained weights on return.

    folder: where the checkpoint and training.jsonl are kept. With several processes a guard is required, as
    its checkpoints do not depend on the clock. Only the main process writes rows and returns them.
    Raises Diverged, with the step.
    """
    torch.manual_seed(plan.seed)
    masters = MasterWeights(
        trainable.open(network, plan.seed), plan.optimizer, plan.lr, plan.weight_decay, dist
    )
    assert dist.is_single_process or guard is not None
    run = _TrainingRun(network, objective, source, plan, folder, masters, guard)
    run.resume()
    shown_in = folder / PROGRESS if dist.is_main_process else None
    clock = _ProgressClock(run.n_done, plan.n_steps, watch, guard, shown_in)
    try:
        while run.n_done < plan.n_steps:
            metric = run.step()
            if metric is None:
                continue
            is_last = run.n_done == plan.n_steps
            if check is not None and (is_last or run.n_done % check.every == 0):
                with phase(watch, "validating"):
                    values = check.evaluate(network)
                if not all(map(math.isfinite, values.values())):
                    raise Diverged(
                        f"The validation loss is NaN or infinite after step {metric.step}. "
                        f"Lower the learning rate ({plan.lr:g})."
                    )
                metric = msgspec.structs.replace(metric, terms=metric.terms | values)
            run.keep(metric)
            clock.tick(metric)
            if clock.is_due(run.n_done) and not is_last:
                with clock.keeping(), phase(watch, "writing a checkpoint"):
                    run.write()
        run.require_finite()
        run.rows.flush()
        return list(run.rows)
    finally:
        run.rows.close()


class _TrainingRun:
    """The state of a run: the weights, the rows, and how many batches were skipped."""

    def __init__(
        self,
        network: CausalLM,
        objective: Objective,
        source: BatchSource,
        plan: TrainingPlan,
        folder: Path,
        masters: MasterWeights,
        guard: DivergenceGuard | None,
    ) -> None:
        self.network, self.objective, self.source, self.plan = network, objective, source, plan
        self.folder, self.masters, self.guard, self.dist = folder, masters, guard, masters.dist
        self.n_done = self.n_tokens = self.n_skipped = self.n_rollbacks = 0
        self.losses: list[float] = []
        self.rows: Rows[StepMetrics] | _DiscardedRows

    def resume(self) -> None:
        """Restore the last checkpoint. With a guard, one is written before the first step."""
        kept = checkpoint.read_checkpoint(self.folder, self.plan.training, self.masters.n_rows, self.dist)
        if kept is not None:
            self.masters.restore(kept.state)
            self.n_done, self.n_tokens, self.n_skipped = kept.n_steps, kept.n_tokens, kept.n_skipped
        self.rows = _open_metrics(self.folder, self.n_done) if self.dist.is_main_process else _DiscardedRows()
        self.losses = self.dist.broadcast([row.loss for row in self.rows])
        if kept is None and self.guard is not None:
            self.write()

    def step(self) -> StepMetrics | None:
        """One optimizer step; None if the guard went back instead."""
        batches = self.source.batches(self.n_done + self.n_skipped)
        try:
            metric = _optimizer_step(
                self.network, self.objective, batches, self.masters, self.plan, self.n_done, self._trips
            )
        except Diverged:
            if self.guard is None or self.n_rollbacks >= self.guard.tries:
                raise
            at, n_rollbacks = self.n_done + self.n_skipped, self.n_rollbacks + 1
            self.rows.close()
            self.resume()
            self.n_skipped, self.n_rollbacks = at + 1 - self.n_done, n_rollbacks
            return None
        self.n_done += 1
        return metric

    def keep(self, metric: StepMetrics) -> None:
        """Write the row of a finished step."""
        self.n_tokens += metric.n_tokens
        self.losses.append(metric.loss)
        self.rows.append(metric)
        self.rows.write()

    def write(self) -> None:
        """Write a checkpoint. Weights that are not finite never replace the last good one."""
        self.require_finite()
        self.rows.flush()
        kept = CheckpointState(self.n_done, self.n_tokens, self.masters.state(), self.n_skipped)
        checkpoint.write_checkpoint(self.folder, self.plan.training, kept, self.masters.n_rows, self.dist)

    def require_finite(self) -> None:
        """Raise Diverged for weights that are not finite: a step's loss is of the weights before it."""
        if not self.masters.are_finite():
            raise Diverged(
                f"Weights are NaN or infinite after step {self.n_done - 1}. Lower the learning rate "
                f"({self.plan.lr:g}) or the weight decay ({self.plan.weight_decay:g})."
            )

    def _trips(self, loss: float) -> bool:
        return self.guard is not None and self.guard.trips(loss, self.losses)


def _optimizer_step(
    network: CausalLM,
    objective: Objective,
    batches: list[PackedBatch],
    masters: MasterWeights,
    plan: TrainingPlan,
    step: int,
    trips: Callable[[float], bool],
) -> StepMetrics:
    dist = masters.dist
    (weight,) = dist.sum([sum(objective.weight(batch) for batch in batches)])
    losses, terms = list[torch.Tensor](), dict[str, float]()
    for left, batch in reversed(list(enumerate(reversed(batches)))):
        network.begin(is_last=left == 0)
        loss = objective.loss(network, dist.to_device(batch))
        (loss.total / weight).backward()
        losses.append(loss.total.detach())
        for name, value in loss.terms.items():
            terms[name] = terms.get(name, 0.0) + value / weight
    mine = [sum(map(float, losses)), sum(batch.n_tokens for batch in batches), *terms.values()]
    total, n_tokens, *summed = dist.sum(mine)
    terms = dict(zip(terms, summed, strict=True))
    if not math.isfinite(total) or trips(total / weight):
        masters.forget()
        raise Diverged(
            f"The loss of step {step} is {total}. Lower the learning rate ({plan.lr:g}), or check the data."
        )
    share = lr_factor(step, plan.n_steps, plan.schedule, plan.n_warmup)
    norm = masters.step(share, plan.grad_clip)
    if not math.isfinite(norm):
        raise Diverged(f"The gradient norm of step {step} is {norm}. Lower the learning rate ({plan.lr:g}).")
    return StepMetrics(step, total / weight, plan.lr * share, norm, int(n_tokens), weight, terms)


def _open_metrics(folder: Path, n_done: int) -> Rows[StepMetrics]:
    """The rows of training.jsonl, without those of steps after the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = Rows(folder / METRICS, StepMetrics)
    kept = [row for row in rows if row.step < n_done]
    rows.path.unlink(missing_ok=True)
    rows.extend(kept)
    return rows


class _DiscardedRows:
    """The rows of a process that does not write them."""

    def append(self, row: StepMetrics) -> None:
        """Discard the row."""

    def write(self) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def __iter__(self) -> Iterator[StepMetrics]:
        return iter(())


class _ProgressClock:
    """Throughput, time left, and when a checkpoint is due."""

    def __init__(
        self,
        n_done: int,
        n_steps: int,
        watch: Watch | None,
        guard: DivergenceGuard | None,
        shown_in: Path | None,
    ) -> None:
        self._n_steps, self._watch, self._guard = n_steps, watch, guard
        self._start = self._kept_at = self._shown_at = time.monotonic()
        self._n_tokens, self._cost, self._shown_in = 0, 0.0, shown_in
        self._left = TimeLeft({"train": Work(n_steps - n_done)})
        self._left.begin("train")
        if watch is not None:  # the first step may take long
            watch(Progress("train", "", n_done, n_steps, unit="tokens"))

    def tick(self, metric: StepMetrics) -> None:
        self._n_tokens += metric.n_tokens
        now = time.monotonic()
        seconds = now - self._start
        self._left.advance("train")
        left = self._left.span()
        if self._shown_in is not None and now - self._shown_at >= PROGRESS_SECONDS:
            shown = RunProgress(metric.step + 1, self._n_steps, self._n_tokens / seconds, left)
            write_atomic(self._shown_in, encode(shown) + b"\n")
            self._shown_at = now
        if self._watch is None:
            return
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
