"""The distance of exported files from the model as a study runs it: in its engine and its dtype.

A study may ask a model in bfloat16, an adapter over its base, or a GGUF through its dequantized form. Files
with other numbers may answer differently. Here the studied model answers 32 fixed prompts greedily. The files
read the same prompts and answers, in the dtype in which they are stored.

Promises: the engine is the one that a study of this store loads, with the dtype that it chose. Divergences
are over the whole vocabulary. One engine holds weights at a time. A comparison that does not fit into memory
is reported as left out, with the memory that it needs.
Leaves to others: whether readers read the files right (_parity.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heredity.core import host
from heredity.core.progress import phase
from heredity.core.records import Decoding, Message, Request
from heredity.deploy.export._parity import DistributionEngine, ExportSource, LoadedFolder, open_files
from heredity.formats.safetensors_io import read_safetensors
from heredity.lineage.store import load_engine

if TYPE_CHECKING:
    import torch


N_NEW = 32  # tokens of an answer, at most
_TASKS = (
    "Explain {} in one sentence.",
    "List three facts about {}.",
    "Write two lines of verse about {}.",
    "What do many people get wrong about {}?",
)
_SUBJECTS = (
    "rain", "bread", "prime numbers", "the Roman calendar", "bicycles", "honey", "glass", "sleep",
)  # fmt: skip
PROMPTS = tuple(task.format(subject) for subject, task in product(_SUBJECTS, _TASKS))


class Fidelity(NamedTuple):
    """The distance of exported files from the model as a study runs it, over `n` tokens of answers.

    engine: the name of the engine that answered. mean, worst: Kullback-Leibler divergence of a token's
    distribution from the studied one, in nats. shared: greedy tokens of an answer before the first that
    differs, on average; `length` is their mean number. left_out: why nothing was measured, or "".
    """

    engine: str = ""
    dtype: str = ""  # in which the files computed
    n_prompts: int = 0
    n: int = 0
    mean: float = 0.0
    worst: float = 0.0
    shared: float = 0.0
    length: float = 0.0
    left_out: str = ""


class _Answered(NamedTuple):
    """The studied model's answers: their tokens, and the file that keeps their distributions."""

    tokens: tuple[int, ...]
    kept: Path


def measure(source: ExportSource, files: LoadedFolder, memory: int | None) -> Fidelity:
    """Compare the files with the model as a study runs it. memory: as of `export`."""
    dtype = _dtype(files.folder)
    needed = max(_n_bytes(files, dtype), _n_bytes(_studied(source), "float32"))
    limit = host.available_memory() if memory is None else memory
    if limit is not None and needed > limit:
        return Fidelity(left_out=f"it needs about {needed / host.GIB:.2f} GiB of memory")
    engine = load_engine(source.model, source.store, is_batched=False)
    try:
        if not isinstance(engine, DistributionEngine):
            return Fidelity(left_out=f"the engine of studies ({engine.name}) gives no distributions")
        answered, of_engine = _answers(engine, source), engine.name
    finally:
        engine.close()
    with phase(source.watch, "comparing with the files", n_total=len(answered), unit="answers") as meter:
        return _compared(
            of_engine, dtype, meter.each(_distributions(files, dtype, answered), lambda each: each)
        )


def _studied(source: ExportSource) -> LoadedFolder:
    ready = source.store.ready(source.model)
    return LoadedFolder(source.store.base(ready).folder if source.is_adapter else ready.folder)


def _requests() -> list[Request]:
    return [
        Request(key, (Message("user", prompt),), Decoding(max_tokens=N_NEW))
        for key, prompt in enumerate(PROMPTS)
    ]


def _answers(engine: DistributionEngine, source: ExportSource) -> list[_Answered]:
    """Let the studied model answer, and keep its distribution at each token on the disk."""
    from safetensors.torch import save_file

    (folder := source.bench / "studied").mkdir()
    requests = _requests()
    with phase(source.watch, "asking", n_total=len(requests), unit="answers") as meter:
        replied = meter.each(engine.reply(requests), lambda reply: (reply.key, reply.tokens))
        replies = dict(replied)

    def read(request: Request) -> _Answered:
        kept, tokens = folder / f"{request.key}.safetensors", replies[request.key]
        save_file({"logs": engine.log_probabilities(request, tokens).cpu()}, kept)
        return _Answered(tokens, kept)

    with phase(source.watch, "reading", n_total=len(requests), unit="answers") as meter:
        return list(meter.each(requests, read))


def _compared(
    of_engine: str, dtype: str, distributions: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> Fidelity:
    import torch

    divergences, shared, lengths = [], [], []
    for studied, distribution in distributions:
        divergences.append((studied.exp() * (studied - distribution)).sum(-1))
        same = (studied.argmax(-1) == distribution.argmax(-1)).long()
        shared.append(int(same.cumprod(0).sum()))
        lengths.append(len(same))
    nats = torch.cat(divergences).clamp_min(0)
    n = len(lengths)
    mean, worst = float(nats.mean()), float(nats.max())
    return Fidelity(of_engine, dtype, n, len(nats), mean, worst, sum(shared) / n, sum(lengths) / n)


def _distributions(
    files: LoadedFolder, dtype: str, answered: Sequence[_Answered]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The log-probabilities of the studied model and of the files, of each answer: (tokens, vocabulary)."""
    from safetensors.torch import load_file

    engine = open_files(files, dtype)
    try:
        for request, each in zip(_requests(), answered, strict=True):
            yield load_file(each.kept)["logs"], engine.log_probabilities(request, each.tokens).cpu()
    finally:
        engine.close()


def _dtype(folder: Path) -> str:
    """The dtype in which a reader computes by default: that of the file, or float32 for several."""
    kinds = {
        each.dtype for shard in folder.glob("*.safetensors") for each in read_safetensors(shard).values()
    }
    return "bfloat16" if kinds == {"BF16"} else "float32"


def _n_bytes(files: LoadedFolder, dtype: str) -> int:
    """Bytes of the loaded weights, at most."""
    n_stored = sum(path.stat().st_size for path in files.folder.glob("*.safetensors"))
    return n_stored * (2 if dtype == "float32" and _dtype(files.folder) == "bfloat16" else 1)
