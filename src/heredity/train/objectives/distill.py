"""Distillation: a divergence between the teacher's and the student's distribution, per target.

The teacher reads the data once, for any number of students. One file has, for each target, the ids of `k`
tokens, and the log-probabilities of these and of all other tokens together. The distribution is then over
those and one more event, "any other token", and its divergence is never above that of the full distribution.

Sources: Hinton et al. 2015 (1503.02531; temperature, and the factor T^2). The generalized Jensen-Shannon
divergence is that of GKD, Agarwal et al. 2023 (2306.13649, equation 1); beta 0 is forward and 1 reverse KL.

Promises: a file names its teacher, temperature and documents; another's file, or one whose bytes changed, is
refused. A teacher pass that was killed resumes, and the file has the same bytes. If fewer tokens are asked
for than the file has, the most likely are taken, as if the teacher had read for them.
"""

from __future__ import annotations

import hashlib
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import torch
from torch.nn import functional

from heredity.core.errors import BadArgument, Damaged, UsageError
from heredity.core.progress import Progress, TimeLeft, Watch, Work
from heredity.engines.chat import Document
from heredity.train import loop
from heredity.train.data.chat import ConversationEncoder, Dialogue, TokenizedExample
from heredity.train.loop import MICROBATCH_TOKENS, BatchSampler, group_by_length
from heredity.train.models.causal_lm import LOGIT_ROWS, CausalLM, PackedBatch, collate
from heredity.train.objectives import Loss

_GROUP_HEADER = struct.Struct("<QI")  # bytes of the group, and their CRC-32


class GroupFile:
    """An append-only file of byte groups, each with its length and CRC-32. A torn group is dropped."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a+b")
        self.there = list(_intact_groups(path.read_bytes()))
        self._file.truncate(sum(_GROUP_HEADER.size + len(group) for group in self.there))

    def append(self, group: bytes) -> None:
        """Append a group. It survives the end of this process."""
        self._file.write(_GROUP_HEADER.pack(len(group), zlib.crc32(group)) + group)
        self._file.flush()
        self.there.append(group)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _intact_groups(data: bytes) -> Iterator[bytes]:
    """The groups before the first torn one."""
    start = 0
    while start + _GROUP_HEADER.size <= len(data):
        size, crc = _GROUP_HEADER.unpack_from(data, start)
        start += _GROUP_HEADER.size
        group = data[start : start + size]
        if len(group) != size or zlib.crc32(group) != crc:
            return
        yield group
        start += size


class TeacherLogprobs:
    """A teacher's log-probabilities, found by document."""

    def __init__(
        self,
        tokens: torch.Tensor,
        logs: torch.Tensor,
        starts: dict[bytes, int],
        temperature: float,
        n_words: int,
    ) -> None:
        self._tokens, self._logs, self._starts = tokens, logs, starts
        self.temperature, self.n_words = temperature, n_words  # the vocabulary that they cover

    def at_targets(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """At a batch's targets: ids (targets, k) and log-probabilities (targets, k + 1).

        The last column is of all other tokens. Raises KeyError for a document that the teacher never read.
        """
        places = torch.cat(
            [torch.arange(n) + self._starts[key] for key, n in _document_keys(batch)] or [torch.arange(0)]
        )
        where = batch.tokens.device
        return self._tokens[places].long().to(where), self._logs[places].to(where)

    @property
    def covered(self) -> float:
        """The mean share of the teacher's probability that the stored tokens have."""
        return float(1 - self._logs[:, -1].exp().mean())

    def __len__(self) -> int:
        return len(self._tokens)


@dataclass(frozen=True)
class TeacherConfig:
    """The settings of a teacher pass. folder: holds its progress. watch: gets it, without a loss.

    It stores the `k` most likely of the first `n_words` tokens. 0 is all; a student's head may be smaller.
    """

    k: int
    temperature: float
    folder: Path
    n_words: int = 0
    watch: Watch | None = None


def find_logprobs(folder: Path, stamp: str, k: int) -> Path:
    """The path for `k` tokens per target: the smallest file of this stamp with at least `k`, or a new one."""
    sizes = [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{stamp}-*.safetensors")]
    return folder / f"{stamp}-{min((size for size in sizes if size >= k), default=k)}.safetensors"


def write_logprobs(
    path: Path, stamp: str, teacher: CausalLM, examples: Sequence[TokenizedExample], reading: TeacherConfig
) -> None:
    """Run the teacher on every example and write the file.

    stamp: names the teacher and the data; reading checks it.
    """
    n_words = min(reading.n_words or len(teacher.head), len(teacher.head))
    batches = [collate(group) for group in group_by_length(examples, MICROBATCH_TOKENS)]
    with GroupFile(reading.folder / f"{stamp}-{reading.k}.part") as groups:
        _score_batches(teacher, batches[len(groups.there) :], reading, n_words, groups)
        tokens, logs = [], []
        for group in groups.there:
            n = len(group) // (4 * (2 * reading.k + 1))
            tokens.append(np.frombuffer(group, np.int32, n * reading.k).reshape(n, reading.k))
            logs.append(np.frombuffer(group, np.float32, offset=4 * n * reading.k).reshape(n, reading.k + 1))
        state = {
            "tokens": torch.from_numpy(np.concatenate(tokens)),
            "logs": torch.from_numpy(np.concatenate(logs)),
        }
    keys = [each for batch in batches for each in _document_keys(batch)]
    lengths = torch.tensor([length for _, length in keys])
    state |= {
        "keys": torch.frombuffer(bytearray(b"".join(k for k, _ in keys)), dtype=torch.uint8).view(
            len(keys), -1
        ),
        "starts": lengths.cumsum(0) - lengths,
    }
    about = {"stamp": stamp, "temperature": repr(reading.temperature), "n_words": str(n_words)}
    loop.write_tensors(path, state, {**about, "sha256": _digest(state)})
    groups.path.unlink()


def read_logprobs(path: Path, stamp: str, k: int = 0) -> TeacherLogprobs:
    """Read a file, or its `k` most likely tokens. Raises Damaged if it has another stamp or is unreadable."""
    about, state = loop.read_tensors(path, "a teacher's scores", "the teacher reads again.")
    if about.get("stamp") != stamp:
        raise Damaged(f"{path}: it is of another teacher or other data. Delete it; the teacher reads again.")
    if about.get("sha256") != _digest(state):
        raise Damaged(
            f"{path}: its contents changed since they were written. Delete it; the teacher reads again."
        )
    arrays = {
        bytes(key.tolist()): int(start) for key, start in zip(state["keys"], state["starts"], strict=True)
    }
    tokens, logs = state["tokens"], state["logs"]
    if 0 < k < tokens.shape[1]:  # the rest joins "all other tokens"
        logs = torch.cat([logs[:, :k], logs[:, k:].logsumexp(1, keepdim=True)], 1)
        tokens = tokens[:, :k].contiguous()
    return TeacherLogprobs(tokens, logs, arrays, float(about["temperature"]), int(about["n_words"]))


def _score_batches(
    teacher: CausalLM, left: Sequence[PackedBatch], reading: TeacherConfig, n_words: int, groups: GroupFile
) -> None:
    """Run the teacher on the remaining batches and append their groups."""
    start, n_tokens, n_there = time.monotonic(), 0, len(groups.there)
    time_left = TimeLeft({"read": Work(sum(batch.n_tokens for batch in left))})
    time_left.begin("read")
    for number, batch in enumerate(left, n_there + 1):
        group = _score_batch(teacher, batch, reading, n_words)
        groups.append(group)
        n_tokens += batch.n_tokens
        time_left.advance("read", batch.n_tokens)
        if reading.watch is not None:
            rate = n_tokens / (time.monotonic() - start)
            reading.watch(
                Progress(
                    "read",
                    "",
                    number,
                    n_there + len(left),
                    per_second=rate,
                    seconds_left=time_left.span(),
                    unit="tokens",
                )
            )


@torch.no_grad()
def _score_batch(teacher: CausalLM, batch: PackedBatch, reading: TeacherConfig, n_words: int) -> bytes:
    """The bytes of a batch: tokens (targets, k) int32, then log-probabilities (targets, k + 1) float32."""
    hidden = teacher.hidden(batch.to(teacher.head.device))
    tokens, logs = [torch.empty((0, reading.k), dtype=torch.int32)], [torch.empty((0, reading.k + 1))]
    for at in range(0, len(hidden), LOGIT_ROWS):
        logits = teacher.logits(hidden[at : at + LOGIT_ROWS]).float()[:, :n_words]
        best, ids, rest = _top_k(logits, reading.k, reading.temperature)
        tokens.append(ids.int().cpu())
        logs.append(torch.cat([best, rest], 1).cpu())
    return torch.cat(tokens).numpy().tobytes() + torch.cat(logs).numpy().tobytes()


def _digest(state: dict[str, torch.Tensor]) -> str:
    """The SHA-256 of the tensors, in the order of their names."""
    hasher = hashlib.sha256()
    for name in sorted(state):
        hasher.update(state[name].contiguous().numpy().data)
    return hasher.hexdigest()


def _top_k(
    logits: torch.Tensor, k: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logs = torch.log_softmax(logits / temperature, dim=-1)
    best, ids = logs.topk(k, dim=-1)
    return best, ids, logs.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)


def _document_keys(batch: PackedBatch) -> Iterator[tuple[bytes, int]]:
    """Of each document: a digest of its tokens and targets, and the number of targets."""
    batch = batch.unshared
    tokens, at, document = (each.cpu().numpy() for each in (batch.tokens, batch.at, batch.document))
    start = 0
    for number, length in enumerate(batch.lengths):
        places = at[np.searchsorted(document, number) : np.searchsorted(document, number, "right")] - start
        content = tokens[start : start + length].tobytes() + b"|" + places.tobytes()
        yield hashlib.sha256(content).digest()[:16], len(places)
        start += length


_SEED_STRIDE = 2**20  # of one seed


@dataclass(frozen=True)
class OnPolicyBatches:
    """The student's answers to the prompts of each step."""

    network: CausalLM
    prompts: BatchSampler
    stops: frozenset[int]
    max_new_tokens: int
    temperature: float

    def batches(self, step: int) -> list[PackedBatch]:
        """The batches of a step, generated by the student's current weights."""
        prompts = [
            self.prompts.examples[self.prompts.at(place)].document.tokens
            for place in range(step * self.prompts.batch, (step + 1) * self.prompts.batch)
        ]
        seed = self.prompts.seed * _SEED_STRIDE + step
        answers = self.network.generate(prompts, self.max_new_tokens, self.temperature, seed, self.stops)
        documents = [
            Document((*p, *a), (*[False] * len(p), *[True] * len(a)))
            for p, a in zip(prompts, answers, strict=True)
        ]
        order = BatchSampler(
            [TokenizedExample(d) for d in documents], len(documents), 0, self.prompts.microbatch_tokens
        )
        return order.batches(0)


def prompt_sampler(
    writer: ConversationEncoder, dialogues: Sequence[Dialogue], batch: int, seed: int, longest: int
) -> BatchSampler:
    """A sampler over prompts: conversations without their last answer.

    Prompts of more than `longest` tokens are left out. Raises UsageError if none is left.
    """
    prompts = [tokens for each in dialogues if len(tokens := writer.prompt(each.messages)) <= longest]
    if not prompts:
        raise UsageError(f"Every prompt is longer than {longest} tokens. Raise max_length.")
    return BatchSampler(
        [TokenizedExample(Document(tokens, (False,) * len(tokens))) for tokens in prompts], batch, seed
    )


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
                f"stored at temperature {scores.temperature:g}, but the objective has {self.temperature:g}"
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
