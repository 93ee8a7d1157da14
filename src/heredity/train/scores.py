"""What a teacher says at every learned place, kept: its likeliest tokens, for as many students as like.

The teacher then reads the data once, and no training holds it in memory. One file: for each place the ids of
`k` tokens and the log-probabilities of these and of all others together.

Promises: it says whose opinion it is, at which temperature, on which documents, and another's is never read,
nor one whose bytes changed.
Leaves to others: the file (_tensors.py), what is learned of it (objectives/distill.py) and where it lies
(recipes/distill.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from heredity.errors import Damaged
from heredity.train import _tensors
from heredity.train.documents import Example
from heredity.train.network import CHUNK, Network
from heredity.train.steps import PRODUCT, Batch, collate, grouped


class Scores:
    """A teacher's opinions, found again by the documents that they are on."""

    def __init__(
        self,
        tokens: torch.Tensor,
        logs: torch.Tensor,
        starts: dict[bytes, int],
        temperature: float,
        n_words: int,
    ) -> None:
        self._tokens, self._logs, self._starts = tokens, logs, starts
        self.temperature, self.n_words = temperature, n_words  # of the vocabulary that it spoke of

    def of(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """At the batch's learned places: ids (learned, k), log-probabilities (learned, k + 1), the last of
        all other tokens. Raises KeyError for a document that the teacher never read."""
        places = torch.cat(
            [torch.arange(n) + self._starts[key] for key, n in _keys(batch)] or [torch.arange(0)]
        )
        return self._tokens[places].long(), self._logs[places]

    @property
    def covered(self) -> float:
        """Mean share of the teacher's probability that lies on the kept tokens."""
        return float(1 - self._logs[:, -1].exp().mean())

    def __len__(self) -> int:
        return len(self._tokens)


def write(
    path: Path,
    stamp: str,
    teacher: Network,
    examples: Sequence[Example],
    k: int,
    temperature: float,
    n_words: int = 0,
) -> None:
    """Let the teacher read every example, and keep its `k` likeliest tokens of each learned place.

    Of the first `n_words` tokens alone (0: all), where the student's head is the smaller one. `stamp` says
    whose opinion on what this is: `read` asks for it.
    """
    n_words = min(n_words or len(teacher.head), len(teacher.head))
    tokens, logs, keys, starts, n = [], [], list[bytes](), list[int](), 0
    with torch.no_grad():
        for group in grouped(examples, PRODUCT):
            batch = collate(group)
            hidden = teacher.hidden(batch)
            for at in range(0, len(hidden), CHUNK):
                said = teacher.logits(hidden[at : at + CHUNK]).float()[:, :n_words]
                best, ids, rest = _likeliest(said, k, temperature)
                tokens.append(ids.int())
                logs.append(torch.cat([best, rest], 1))
            for key, length in _keys(batch):
                keys.append(key)
                starts.append(n)
                n += length
    state = {
        "tokens": torch.cat(tokens),
        "logs": torch.cat(logs),
        "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1),
        "starts": torch.tensor(starts),
    }
    about = {"stamp": stamp, "temperature": repr(temperature), "n_words": str(n_words)}
    _tensors.write(path, state, {**about, "sha256": _digest(state)})


def read(path: Path, stamp: str) -> Scores:
    """What `write` kept. Raises Damaged where it is another teacher's, or cannot be read."""
    about, state = _tensors.read(path, "a teacher's scores", "the teacher reads again.")
    if about.get("stamp") != stamp:
        raise Damaged(f"{path}: scores of another teacher or other data. Delete it; the teacher reads again.")
    if about.get("sha256") != _digest(state):
        raise Damaged(f"{path}: its bytes are not the ones written. Delete it; the teacher reads again.")
    found = {
        bytes(key.tolist()): int(start) for key, start in zip(state["keys"], state["starts"], strict=True)
    }
    return Scores(state["tokens"], state["logs"], found, float(about["temperature"]), int(about["n_words"]))


def _digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the tensors, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(state[name].contiguous().numpy().data)
    return found.hexdigest()


def _likeliest(
    logits: torch.Tensor, k: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logs = torch.log_softmax(logits / temperature, dim=-1)
    best, ids = logs.topk(k, dim=-1)
    return best, ids, logs.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)


def _keys(batch: Batch) -> Iterator[tuple[bytes, int]]:
    """Of each document: a digest of its tokens and of which are learned, and how many are."""
    tokens, at, document = batch.tokens.numpy(), batch.at.numpy(), batch.document.numpy()
    start = 0
    for number, length in enumerate(batch.lengths):
        places = at[np.searchsorted(document, number) : np.searchsorted(document, number, "right")] - start
        said = tokens[start : start + length].tobytes() + b"|" + places.tobytes()
        yield hashlib.sha256(said).digest()[:16], len(places)
        start += length
