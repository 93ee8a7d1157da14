"""The training loop, for every objective, trainable set and data source, with its optimizers and checkpoints.

The network computes in its own dtype. Master weights are kept in fp32 and copied into it after each step, so
that small updates are not lost to rounding. Gradients of a step's microbatches are summed in fp32.

    checkpoint.safetensors           one process: everything
    checkpoint.json                  several: the run, its progress, and where the rows of each tensor are
    checkpoint.STEP/P.safetensors    the rows of shard P

Sources: AdamW, Loshchilov & Hutter 2017 (1711.05101). Muon: Jordan et al. 2024, Moonlight 2502.16982, whose
learning rate is matched to AdamW's. Warmup-stable-decay: 2404.06395.

Promises: a run that is killed resumes from its last checkpoint and ends with the same bits. A checkpoint is
complete or the previous one remains; any number of processes reads it, and another run's is refused. A loss
that is not finite stops the run and keeps the last good checkpoint. A guard goes back to it instead and skips
the data since. Weight decay is on matrices that are not embeddings. Every step is a row of training.jsonl.
Every epoch is a permutation of all examples, and a step's batches are a function of seed and step only. In a
single process every collective is the identity.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from heredity.core import host
from heredity.core.errors import Damaged, HeredityError
from heredity.core.files import Rows, replacing, write_atomic
from heredity.core.host import Device
from heredity.core.progress import Progress, TimeLeft, TimeSpan, Watch, Work, phase
from heredity.core.records import Record, encode
from heredity.formats.linear_layers import number_of, settings_of, text_config
from heredity.train.data.chat import TokenizedExample
from heredity.train.models.causal_lm import CausalLM, PackedBatch, Trainable, collate
from heredity.train.models.shapes import FP32_BYTES, DecoderActivations, TransformerShape
from heredity.train.objectives import Objective

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Schedule = Literal["cosine", "wsd", "constant"]
OptimizerName = Literal["adamw", "muon"]
BETAS = (0.9, 0.95)
MICROBATCH_TOKENS = 2048  # in one forward pass of a tuning; a longer example is alone
_EMBEDDINGS = ("embed", "wte", "wpe")  # in the names of embeddings, of tokens and of positions


@dataclass(frozen=True)
class DistContext:
    """This process, `rank` of `world_size`. mesh: (replicas, shards), or None in a single process."""

    rank: int = 0
    world_size: int = 1
    replicas: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None

    @property
    def is_single_process(self) -> bool:
        """Whether this is the only process."""
        return self.mesh is None

    @property
    def is_main_process(self) -> bool:
        """Whether this is the main process: it writes, the others only compute."""
        return self.rank == 0

    @property
    def n_shards(self) -> int:
        """Processes that the weights are sharded over."""
        return self.world_size // self.replicas

    @property
    def shard_index(self) -> int:
        """The index of this process's shard of every weight."""
        return self.rank % self.n_shards

    def rows(self, n: int) -> tuple[int, int]:
        """(first row, end) of this process's shard of `n` rows."""
        return shard_span(n, self.shard_index, self.n_shards)

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sum each number over all processes."""
        if self.is_single_process:
            return list(numbers)
        totals = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(totals)
        return [float(each) for each in totals.tolist()]

    def broadcast(self, numbers: Sequence[float]) -> list[float]:
        """The numbers of the main process, in every process."""
        if self.is_single_process:
            return list(numbers)
        n = int(self.sum([len(numbers) if self.is_main_process else 0])[0])
        return self.sum(list(numbers) if self.is_main_process else [0.0] * n) if n else []

    def barrier(self) -> None:
        """Wait for every process."""
        self.sum([0.0])

    def norm(self, of_shard: float) -> float:
        """The norm of a vector, given the norm of this process's shard of it."""
        return of_shard if self.is_single_process else math.sqrt(self.sum([of_shard**2])[0] / self.replicas)

    def to_device(self, batch: PackedBatch) -> PackedBatch:
        """The batch on this process's device."""
        return batch if self.device.type == "cpu" else batch.to(self.device)


SINGLE_PROCESS = DistContext()


def placed(dist: DistContext | None, device: Device) -> DistContext:
    """A single process on a device; several processes stay on theirs."""
    host.prepare_device(device)
    return DistContext(device=device.torch) if dist is None or dist.is_single_process else dist


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor; the whole tensor if it is not sharded."""
    mine: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return mine


def shard_span(n: int, shard_index: int, n_shards: int) -> tuple[int, int]:
    """(first row, end) of a shard, as FSDP splits `n` rows: equal sizes while rows are left."""
    each = -(-n // n_shards)
    return min(n, shard_index * each), min(n, (shard_index + 1) * each)


class MasterWeights:
    """The fp32 master weights of the trainable parameters, and the optimizer over them."""

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        kind: OptimizerName,
        lr: float,
        weight_decay: float,
        dist: DistContext = SINGLE_PROCESS,
    ) -> None:
        self.names = [name for name, _ in parameters]
        self.parameters = [parameter for _, parameter in parameters]
        self.masters = [
            _at_least_1d(local_shard(p.detach())).clone().float().requires_grad_() for p in self.parameters
        ]
        self.n_rows = {
            name: len(p) if p.ndim else 1 for name, p in parameters
        }  # of the whole weight, not of a shard
        self.lr, self.dist = lr, dist
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            parameter.register_post_accumulate_grad_hook(_gradient_hook(master))
        decays = [
            m.ndim == 2 and not any(each in name for each in _EMBEDDINGS)
            for name, m in zip(self.names, self.masters, strict=True)
        ]
        hidden = [
            does and kind == "muon" and "lm_head" not in name
            for name, does in zip(self.names, decays, strict=True)
        ]
        pick = [place for place, use in enumerate(hidden) if use]
        rest = list(zip(self.masters, decays, hidden, strict=True))
        groups: list[dict[str, Any]] = [
            {"params": [m for m, does, use in rest if does and not use], "weight_decay": weight_decay},
            {"params": [m for m, does, _ in rest if not does], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.optimizers: list[torch.optim.Optimizer] = []
        if groups:
            self.optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True))
        if pick:
            self.optimizers.append(self._muon(pick, weight_decay))

    def _muon(self, places: list[int], weight_decay: float) -> torch.optim.Optimizer:
        masters = [self.masters[place] for place in places]
        if self.dist.is_single_process:
            return torch.optim.Muon(
                masters, lr=self.lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        n_rows = [self.n_rows[self.names[place]] for place in places]
        return ShardedMuon(masters, n_rows, self.dist, self.lr, weight_decay)

    def step(self, share: float, grad_clip: float) -> float:
        """Update with `share` of the learning rate; return the global gradient norm before clipping.

        grad_clip: the norm that gradients are clipped to; 0 disables clipping.
        """
        gradients = [m.grad for m in self.masters if m.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
        norm = self.dist.norm(norm)
        if grad_clip and norm > grad_clip:
            torch._foreach_mul_(gradients, grad_clip / norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.copy_down()
        return norm

    @torch.no_grad()
    def are_finite(self) -> bool:
        """Whether every master weight is finite, in all processes."""
        n_bad = sum(not bool(torch.isfinite(master).all()) for master in self.masters)
        return not self.dist.sum([float(n_bad)])[0]

    @torch.no_grad()
    def copy_down(self) -> None:
        """Copy the master weights into the network."""
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            local_shard(parameter).copy_(master.view_as(local_shard(parameter)))

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors that a resumed run needs: master weights and moments, by name."""
        tensors = {f"master/{name}": m.detach() for name, m in zip(self.names, self.masters, strict=True)}
        place = {id(m): name for name, m in zip(self.names, self.masters, strict=True)}
        for optimizer in self.optimizers:
            for master, moments in optimizer.state.items():
                for key, value in moments.items():
                    tensors[f"{key}/{place[id(master)]}"] = torch.as_tensor(value)
        return tensors

    def forget(self) -> None:
        """Drop the accumulated gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        for optimizer in self.optimizers:
            optimizer.state.clear()
        by_name = dict(zip(self.names, self.masters, strict=True))
        owner = {
            id(master): optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for master in group["params"]
        }
        with torch.no_grad():
            for name, master in by_name.items():
                master.copy_(state[f"master/{name}"])
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            if kind != "master" and name in by_name:
                owner[id(by_name[name])].state[by_name[name]][kind] = tensor.to(by_name[name].device).clone()
        self.copy_down()


class ShardedMuon(torch.optim.Optimizer):
    """torch's Muon for matrices that are sharded by rows. Momentum is sharded, too.

    Matrices are taken in groups of one per process. Each process gathers one of them, computes its update,
    and sends the rows back to their shards. n_rows: the rows of each whole matrix.
    """

    def __init__(
        self,
        shards: Sequence[torch.Tensor],
        n_rows: Sequence[int],
        dist: DistContext,
        lr: float,
        weight_decay: float,
    ) -> None:
        super().__init__(shards, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self._n_rows, self._dist = n_rows, dist

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        (group,) = self.param_groups
        n = self._dist.n_shards
        for start in range(0, len(group["params"]), n):
            some = slice(start, start + n)
            masters = group["params"][some]
            wanted = [self._wanted(master, group["momentum"]) for master in masters]
            for master, change in zip(
                masters, self._changes(wanted, self._n_rows[some], group["lr"]), strict=True
            ):
                master.mul_(1 - group["lr"] * group["weight_decay"]).add_(change)

    def _wanted(self, master: torch.Tensor, momentum: float) -> torch.Tensor:
        """The Nesterov gradient of a shard."""
        assert master.grad is not None
        kept = self.state[master].setdefault("momentum_buffer", torch.zeros_like(master))
        kept.lerp_(master.grad, 1 - momentum)
        return master.grad.lerp(kept, momentum)

    def _changes(self, shards: list[torch.Tensor], n_rows: Sequence[int], lr: float) -> list[torch.Tensor]:
        """The updates of the shards, for at most one matrix per process."""
        n, mine = self._dist.n_shards, self._dist.shard_index
        sizes = [shard.numel() for shard in shards] + [0] * (n - len(shards))
        spans = (
            [shard_span(n_rows[mine], each, n) for each in range(n)] if mine < len(shards) else [(0, 0)] * n
        )
        columns = shards[mine].shape[1] if mine < len(shards) else 0
        whole_sizes = [(high - low) * columns for low, high in spans]
        whole = self._exchanged(torch.cat([shard.flatten() for shard in shards]), sizes, whole_sizes)
        if columns:
            whole = muon_update(whole.view(-1, columns), lr).flatten()
        back = self._exchanged(whole, whole_sizes, sizes)
        return [part.view_as(shard) for part, shard in zip(back.split(sizes), shards, strict=False)]

    def _exchanged(self, given: torch.Tensor, to: list[int], of: list[int]) -> torch.Tensor:
        """All-to-all: `to[i]` numbers go to shard i's process, and `of[i]` come from it."""
        got = given.new_empty(sum(of))
        assert self._dist.mesh is not None
        group = self._dist.mesh.get_group("shards")
        torch.distributed.all_to_all_single(got, given, of, to, group=group)
        return got


def muon_update(wanted: torch.Tensor, lr: float) -> torch.Tensor:
    """The update by torch's own Muon for a gradient, without momentum and weight decay."""
    change = torch.zeros_like(wanted).requires_grad_()
    change.grad = wanted
    torch.optim.Muon(
        [change], lr=lr, weight_decay=0.0, momentum=0.0, nesterov=False, adjust_lr_fn="match_rms_adamw"
    ).step()
    return change.detach()


def _at_least_1d(tensor: torch.Tensor) -> torch.Tensor:
    """A scalar as a row of one, as a sharded weight has it."""
    return tensor if tensor.ndim else tensor.view(1)


def _gradient_hook(master: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def add(parameter: torch.Tensor) -> None:
        if parameter.grad is None:
            return
        gradient = _at_least_1d(local_shard(parameter.grad))
        if master.grad is None:
            master.grad = gradient.float().clone()
        else:
            master.grad += gradient
        parameter.grad = None

    return add


def lr_factor(step: int, n_steps: int, schedule: Schedule, n_warmup: int, decay_share: float = 0.2) -> float:
    """The factor of the peak learning rate at a step counted from 0; it is never 0."""
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    left = (n_steps - step) / max(1, n_steps - n_warmup)  # from 1 to nearly 0
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    return min(1.0, left / decay_share)


class TensorFile(NamedTuple):
    """A file's metadata, and its tensors by name."""

    about: dict[str, str]
    state: dict[str, torch.Tensor]


def write_tensors(path: Path, state: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """Write tensors and metadata to a file atomically."""
    with replacing(path) as temporary:
        save_file(state, temporary, metadata=about)


def read_tensors(path: Path, what: str, then: str) -> TensorFile:
    """Read the tensors of a file.

    The error message has `what`, the kind of file, and `then`, the effect of deleting it.
    Raises Damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return TensorFile(file.metadata() or {}, state)
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{path}: not {what} ({error}). Delete it; {then}") from None


SINGLE_FILE = "checkpoint.safetensors"
RANDOM_STATE = "random"


class CheckpointState(NamedTuple):
    """The contents of a checkpoint: steps done, tokens seen, tensors by name, and batches skipped."""

    n_steps: int
    n_tokens: int
    state: dict[str, torch.Tensor]
    n_skipped: int = 0


def write_single_file(folder: Path, training: str, kept: CheckpointState) -> None:
    """Write the state of a run, and torch's random state, as one file. training: the run's digest."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in kept.state.items()}
    tensors[RANDOM_STATE] = torch.get_rng_state()
    about = {"training": training, "n_steps": str(kept.n_steps), "n_tokens": str(kept.n_tokens)}
    about["n_skipped"] = str(kept.n_skipped)
    write_tensors(folder / SINGLE_FILE, tensors, about)


def read_single_file(folder: Path, training: str) -> CheckpointState | None:
    """Read the state in a folder and restore torch's random state; None if there is no checkpoint.

    Raises Damaged for a checkpoint of another run, or one that cannot be read.
    """
    path = folder / SINGLE_FILE
    if not path.exists():
        return None
    about, state = read_tensors(path, "a checkpoint", "the training begins again.")
    if about.get("training") != training:
        raise Damaged(f"{path}: a checkpoint of another training. Delete it, or name another folder.")
    torch.set_rng_state(state.pop(RANDOM_STATE))
    n_steps, n_tokens, n_skipped = (
        int(about.get(name, "0")) for name in ("n_steps", "n_tokens", "n_skipped")
    )
    return CheckpointState(n_steps, n_tokens, state, n_skipped)


INDEX_FILE = "checkpoint.json"
_FIRST_ROWS = "first rows"


class _TensorShard(Record, frozen=True):
    """Rows `start` to `start + n` of a tensor. n 0: a scalar, stored whole."""

    file: str
    start: int
    n: int


class _CheckpointIndex(Record, frozen=True):
    training: str
    n_steps: int
    n_tokens: int
    n_skipped: int
    tensors: dict[str, list[_TensorShard]]
    schema: int = 1


def write_checkpoint(
    folder: Path, training: str, kept: CheckpointState, n_rows: Mapping[str, int], dist: DistContext
) -> None:
    """Write the state of a run. n_rows: the rows of each whole weight, by name."""
    if dist.is_single_process:
        write_single_file(folder, training, kept)
        (folder / INDEX_FILE).unlink(missing_ok=True)
        _delete_old_shards(folder)
        return
    place = folder / f"checkpoint.{kept.n_steps}"
    if dist.rank < dist.n_shards:  # further replicas hold the same
        path = place / f"{dist.shard_index}.safetensors"
        mine, starts = {}, {}
        for key, tensor in kept.state.items():
            if tensor.ndim and len(tensor):
                starts[key] = dist.rows(n_rows[key.partition("/")[2]])[0]
            if dist.is_main_process if not tensor.ndim else len(tensor):
                mine[key] = tensor.cpu().contiguous()
        if dist.is_main_process:
            mine[RANDOM_STATE], starts[RANDOM_STATE] = torch.get_rng_state(), 0
        write_tensors(path, mine, {_FIRST_ROWS: json.dumps(starts)})
    dist.barrier()
    if dist.is_main_process:
        files = [f"{place.name}/{shard}.safetensors" for shard in range(dist.n_shards)]
        index = _CheckpointIndex(
            training, kept.n_steps, kept.n_tokens, kept.n_skipped, _list_tensors(folder, files)
        )
        write_atomic(folder / INDEX_FILE, encode(index) + b"\n")
        (folder / SINGLE_FILE).unlink(missing_ok=True)
        _delete_old_shards(folder, place)


def read_checkpoint(
    folder: Path, training: str, n_rows: Mapping[str, int], dist: DistContext
) -> CheckpointState | None:
    """Read this process's part of the newest state, and restore torch's random state.

    None if there is no checkpoint. Raises Damaged for one of another run, or one that cannot be read.
    """
    # A process that was killed between the two forms leaves both: the one with more steps counts.
    forms = [form for form in (_index_of_single_file(folder), _index_of_shards(folder)) if form is not None]
    index = max(forms, key=lambda index: index.n_steps, default=None)
    if index is None or (dist.is_single_process and not (folder / INDEX_FILE).exists()):
        return read_single_file(folder, training)
    if index.training != training:
        raise Damaged(f"{folder}: a checkpoint of another training. Delete it, or name another folder.")
    with _open_shards(folder) as rows:
        state = {
            name: rows(name, shards, _rows_needed(name, shards, n_rows, dist))
            for name, shards in index.tensors.items()
        }
    torch.set_rng_state(state.pop(RANDOM_STATE))
    return CheckpointState(index.n_steps, index.n_tokens, state, index.n_skipped)


def _delete_old_shards(folder: Path, but: Path | None = None) -> None:
    for path in folder.glob("checkpoint.*"):
        if path.is_dir() and path != but:
            shutil.rmtree(path, ignore_errors=True)


def _list_tensors(folder: Path, files: list[str]) -> dict[str, list[_TensorShard]]:
    """The shards of each tensor, from the headers of the files."""
    by_name: dict[str, list[_TensorShard]] = {}
    for name in files:
        with safe_open(folder / name, framework="pt") as file:
            starts = json.loads((file.metadata() or {}).get(_FIRST_ROWS, "{}"))
            for key in file.keys():  # noqa: SIM118 (no mapping)
                shape = file.get_slice(key).get_shape()
                shard = _TensorShard(name, starts.get(key, 0), shape[0] if shape else 0)
                by_name.setdefault(key, []).append(shard)
    return by_name


def _index_of_shards(folder: Path) -> _CheckpointIndex | None:
    if not (folder / INDEX_FILE).exists():
        return None
    try:
        return msgspec.json.decode((folder / INDEX_FILE).read_bytes(), type=_CheckpointIndex)
    except (OSError, msgspec.DecodeError) as error:
        raise _damaged(folder / INDEX_FILE, error) from None


def _index_of_single_file(folder: Path) -> _CheckpointIndex | None:
    if not (folder / SINGLE_FILE).exists():
        return None
    try:
        with safe_open(folder / SINGLE_FILE, framework="pt") as file:
            about = file.metadata() or {}
        tensors = _list_tensors(folder, [SINGLE_FILE])
    except (SafetensorError, OSError) as error:
        raise _damaged(folder / SINGLE_FILE, error) from None
    n_steps, n_tokens, n_skipped = (
        int(about.get(name, "0")) for name in ("n_steps", "n_tokens", "n_skipped")
    )
    return _CheckpointIndex(about.get("training", ""), n_steps, n_tokens, n_skipped, tensors)


def _rows_needed(
    key: str, shards: list[_TensorShard], n_rows: Mapping[str, int], dist: DistContext
) -> tuple[int, int]:
    whole = max(shard.start + shard.n for shard in shards)
    name = key.partition("/")[2]
    return dist.rows(whole) if whole and name in n_rows else (0, whole)


RowReader = Callable[[str, list[_TensorShard], tuple[int, int]], torch.Tensor]


@contextmanager
def _open_shards(folder: Path) -> Iterator[RowReader]:
    """Yield a reader (name, shards, (first row, end)) -> rows. Each file is opened once."""
    with ExitStack() as stack:
        files: dict[str, Any] = {}

        def of(shard: _TensorShard, name: str, low: int, high: int) -> torch.Tensor:
            if shard.file not in files:
                files[shard.file] = stack.enter_context(safe_open(folder / shard.file, framework="pt"))
            file = files[shard.file]
            low, high = (min(max(at - shard.start, 0), shard.n) for at in (low, high))
            tensor: torch.Tensor = file.get_slice(name)[low:high] if shard.n else file.get_tensor(name)
            return tensor

        def rows(name: str, shards: list[_TensorShard], wanted: tuple[int, int]) -> torch.Tensor:
            meeting = [p for p in shards if p.start < wanted[1] and p.start + p.n > wanted[0]]
            ordered = sorted(meeting, key=lambda shard: shard.start) or shards[:1]
            try:
                parts = [of(shard, name, *wanted) for shard in ordered]
            except (SafetensorError, OSError) as error:
                raise _damaged(folder / INDEX_FILE, error) from None
            return torch.cat(parts) if parts[0].ndim else parts[0]

        yield rows


def _damaged(path: Path, error: Exception) -> Damaged:
    return Damaged(f"{path}: not a checkpoint ({error}). Delete it; the training begins again.")


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


@dataclass(frozen=True)
class BatchSampler:
    """`batch` examples per step, in microbatches of at most `microbatch_tokens`.

    A longer example has a microbatch of its own.
    """

    examples: Sequence[TokenizedExample]
    batch: int
    seed: int
    microbatch_tokens: int = MICROBATCH_TOKENS

    def batches(self, step: int) -> list[PackedBatch]:
        """The batches of a step, counted from 0."""
        picked = [
            self.examples[self.at(place)] for place in range(step * self.batch, (step + 1) * self.batch)
        ]
        return [collate(group) for group in group_by_length(picked, self.microbatch_tokens)]

    def at(self, place: int) -> int:
        """The index of the example at a place of the endless order. The epoch is place // n_examples."""
        n = len(self.examples)
        return int(epoch_permutation(self.seed, place // n, n)[place % n])


def group_by_length(
    examples: Sequence[TokenizedExample], microbatch_tokens: int
) -> list[list[TokenizedExample]]:
    """Group examples of similar length, at most `microbatch_tokens` per group; a longer one has its own."""
    groups: list[list[TokenizedExample]] = []
    n_tokens = 0
    for example in sorted(examples, key=lambda e: -e.n_tokens):
        if groups and n_tokens + example.n_tokens <= microbatch_tokens:
            groups[-1].append(example)
            n_tokens += example.n_tokens
        else:
            groups.append([example])
            n_tokens = example.n_tokens
    return groups


@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The order of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(n)


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
        kept = read_checkpoint(self.folder, self.plan.training, self.masters.n_rows, self.dist)
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
        write_checkpoint(self.folder, self.plan.training, kept, self.masters.n_rows, self.dist)

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


# --- memory ---


def estimate_memory(
    network: CausalLM,
    trainable: Trainable,
    optimizer: OptimizerName,
    examples: Sequence[TokenizedExample],
    batch_size: int,
) -> dict[str, int]:
    """Bytes of a training step by part; "weights" are those that are loaded already.

    The gradient of a trained head exists twice when the backward pass begins: as made, and scaled.
    """
    n_trainable = trainable.n_trainable(network)
    n_moments = 1 if optimizer == "muon" else 2  # at least: Muon leaves embedding and vectors to AdamW
    longest = sorted((each.n_tokens for each in examples), reverse=True)
    n_tokens, head = max(longest[0], min(MICROBATCH_TOKENS, sum(longest[:batch_size]))), network.head
    kind = text_config(network.model.config).model_type
    activations = DecoderActivations(
        shape_of_model(network), head.element_size(), head.device.type == "cpu", has_qk_norm=kind == "qwen3"
    )
    n_head = head.nbytes if trainable.FORMAT == "safetensors" else 0
    at_head = max(activations.logits(n_tokens) + n_head, 2 * n_head)
    return {
        "weights": sum(each.nbytes for each in network.model.parameters()),
        "masters": FP32_BYTES * n_trainable,
        "gradients": FP32_BYTES * n_trainable,
        "optimizer": n_moments * FP32_BYTES * n_trainable,
        f"a step of {n_tokens:,} tokens": n_tokens * activations.per_token + at_head,
    }


def shape_of_model(network: CausalLM) -> TransformerShape:
    """The shape of a loaded model. Of experts those count that a token is sent to."""
    config = text_config(network.model.config)
    settings, width = settings_of(config), config.hidden_size

    def number(name: str) -> int:
        return number_of(settings, name) or 0

    heads = number("num_attention_heads") or 1
    wide = number("moe_intermediate_size") or number("intermediate_size") or 4 * width
    return TransformerShape(
        config.num_hidden_layers, width, heads, number("num_key_value_heads") or heads,
        number("head_dim") or width // heads, wide * (number("num_experts_per_tok") or 1),
        number("max_position_embeddings"), len(network.head),
    )  # fmt: skip
