"""Shared by the objectives: a recipe's parts put together for the training loop, and the files of its child.

Bits per byte of held-out text make models with different tokenizers comparable. Every evaluation reads the
same documents from their beginning; no gradient and no random number is used.
Leaves to others: data, network and loss of each objective (causal.py, masked.py, contrastive.py), and the
loop itself (train/loop.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import torch

from heredity.core import host, registry
from heredity.core.files import write_atomic
from heredity.core.host import Device
from heredity.core.progress import Progress, Watch, phase
from heredity.core.sanitize import plural
from heredity.recipes._training_run import FEWEST_STEPS, few_steps, write_metrics
from heredity.train import forecast, loop
from heredity.train.data.packed import PackedDataset
from heredity.train.distributed import ShardedModel, recompute_activations, shard_model
from heredity.train.forecast import Workload, n_parameters, training_memory
from heredity.train.loop import SINGLE_PROCESS, DistContext
from heredity.train.models.architectures import Specials
from heredity.train.models.causal_lm import CausalLM, FullFinetune
from heredity.train.models.shapes import FP32_BYTES, PRETRAIN_MICROBATCH_TOKENS, matmul_limit
from heredity.train.objectives import Objective

if TYPE_CHECKING:
    from heredity.corpus import Corpus, ImageCorpus
    from heredity.corpus.storage import Cut
    from heredity.recipes.pretrain.recipe import Pretrain
import math
from functools import cached_property

import numpy as np

from heredity.train.data.packed import PackedChunk, TokenizedDocuments, split_microbatches
from heredity.train.models.causal_lm import PackedBatch
from heredity.train.objectives.causal import Causal

BITS_PER_BYTE = "bits per byte"


@dataclass(frozen=True)
class PerplexityCheck:
    """Evaluates the first `n_tokens` of held-out documents (the last one whole), every `every` steps."""

    documents: TokenizedDocuments
    end: int
    context: int
    token_bytes: np.ndarray[tuple[int], np.dtype[np.int64]]  # bytes of each token
    n_tokens: int
    every: int
    dist: DistContext = SINGLE_PROCESS

    def evaluate(self, network: CausalLM) -> dict[str, float]:
        """Bits per byte of the held-out text."""
        nats = n_bytes = 0.0
        with torch.no_grad():
            for batch in self._batches:
                nats += float(Causal().loss(network, self.dist.to_device(batch)).total)
                n_bytes += float(self.token_bytes[batch.targets.numpy()].sum())
        nats, n_bytes = self.dist.sum([nats, n_bytes])
        return {BITS_PER_BYTE: nats / math.log(2) / n_bytes}

    @cached_property
    def _batches(self) -> list[PackedBatch]:
        dataset = PackedDataset(self.documents, self.end, self.context, self.context, 0)
        chunks = first_chunks(self.documents, self.context, self.n_tokens)
        return [
            dataset.collate(each) for each in rank_microbatches(chunks, dataset.microbatch_tokens, self.dist)
        ]


def rank_microbatches(
    chunks: list[PackedChunk], microbatch_tokens: int, dist: DistContext
) -> list[list[PackedChunk]]:
    """This process's microbatches; all of them if there are fewer chunks than processes."""
    world_size, rank = (dist.world_size, dist.rank) if len(chunks) >= dist.world_size else (1, 0)
    return split_microbatches(chunks, microbatch_tokens, world_size)[rank::world_size]


def first_chunks(documents: TokenizedDocuments, context: int, n_tokens: int) -> list[PackedChunk]:
    """The chunks of the first documents that together have `n_tokens` (the last one whole)."""
    lengths = documents.lengths
    n = int(np.searchsorted(np.cumsum(lengths), n_tokens)) + 1
    return [
        PackedChunk(number, start, min(context, int(lengths[number]) - start))
        for number in range(min(n, len(lengths)))
        for start in range(0, int(lengths[number]), context)
    ]


def token_bytes(tokenizer: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The bytes of each token of a byte-level tokenizer.json; 0 for special tokens."""
    content = json.loads(tokenizer.read_text("utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    special = {token["id"]: 0 for token in content.get("added_tokens", [])}
    n_bytes = np.zeros(max([*vocabulary.values(), *special]) + 1, dtype=np.int64)
    for text, number in vocabulary.items():
        n_bytes[number] = len(text)  # byte-level: one character of the file is one byte
    for number in special:
        n_bytes[number] = 0
    return n_bytes


_HEAP = host.GIB // 2  # at most: freed blocks that other lengths do not fit into (docs/results/plans.md)
_LIBRARIES = host.GIB // 4  # by which torch's libraries grow in a first step, even of a tiny model


@dataclass
class Prediction:
    """Predicted memory and time, and the memory of the process when they were predicted."""

    parts: dict[str, int]
    limit: float  # FLOP/s of matmuls; 0: not measured
    seconds: float  # of the whole run
    resident: int | None  # bytes

    def notes(self, tokens: int, tokens_a_second: float) -> dict[str, str]:
        """Predicted and measured values, for the model's record."""
        memory = f"predicted {sum(self.parts.values()) / host.GIB:.2f} GiB"
        peak = host.peak_memory()
        if peak is not None and self.resident is not None:
            growth = max(0, peak - self.resident)  # negative if earlier runs freed memory meanwhile
            memory += f", measured {growth / host.GIB:.2f} GiB of growth"
        notes = {"memory": memory}
        if tokens_a_second and self.limit:
            notes["time"] = f"predicted {self.seconds:,.0f} s, measured {tokens / tokens_a_second:,.0f} s"
        return notes


def needed(recipe: Pretrain, size: int, dist: DistContext = SINGLE_PROCESS) -> dict[str, int]:
    """Bytes that one process needs, by part, with a compute dtype of `size` bytes."""
    is_on_cpu = dist.device.type == "cpu"
    work = _work(recipe, size, is_on_cpu)
    shards = dist.n_shards
    own = -(-work.batch // dist.world_size)
    at_once = own if work.is_whole else min(own, max(PRETRAIN_MICROBATCH_TOKENS, recipe.context))
    again = recipe.recompute_every if recipe.recompute else 0
    parts = training_memory(work, at_once, shards, again, -(-own // at_once))
    if shards > 1 and recipe.reduce == "once":  # they stay unsharded until the last matmul
        parts["gradients"] += FP32_BYTES * n_parameters(work)
    if not is_on_cpu:
        return parts
    kept = min(_HEAP, 2 * parts["activations"])
    return parts | {"heap between steps": kept, "libraries": _LIBRARIES}


def _work(recipe: Pretrain, size: int, is_on_cpu: bool = True) -> Workload:
    return msgspec.structs.replace(recipe.workload(is_on_cpu=is_on_cpu), bytes=size)


@contextmanager
def checked_memory(recipe: Pretrain, dist: DistContext) -> Iterator[Prediction | None]:
    """Refuse a run that does not fit, before its weights are drawn. Yields the forecast of a single process.

    Processes on a CPU share its memory. A process on a GPU has the free memory of that GPU; its time is not
    forecast. Raises OutOfMemory with the settings to lower, also if an allocation fails inside.
    """
    if dist.device.type != "cpu":
        _require_gpu_memory(recipe, dist)
        yield None
        return
    shape = recipe.dial.shape
    doing, second = f"The pre-training of '{recipe.size}'", recipe.spec.lower_instead(recipe)
    lower = second if recipe.base is not None else f"size ({recipe.size}) or {second}"
    advice = f"Lower {lower}, or take more devices: heredity plan"
    has = round(recipe.memory * host.GIB) or None

    def fitting(size: int) -> dict[str, int]:
        parts = {part: dist.world_size * n for part, n in needed(recipe, size, dist).items()}
        host.require_memory(doing, parts, f"{advice}; or allow more with memory (GiB).", has)
        return parts

    is_open = recipe.dtype == "auto"
    size = 2 if is_open else getattr(torch, recipe.dtype).itemsize
    parts = fitting(size)  # before the dtypes are timed, which takes minutes
    dtype = getattr(torch, host.choose_dtype(shape.width, shape.wide, 1024) if is_open else recipe.dtype)
    if dtype.itemsize != size:
        parts = fitting(dtype.itemsize)
    with host.explain_out_of_memory(doing, f"{advice}."):
        yield _predict(recipe, parts, dtype) if dist.is_single_process else None


def _require_gpu_memory(recipe: Pretrain, dist: DistContext) -> None:
    free = host.Device.parse(str(dist.device)).free_memory()
    size = 2 if recipe.dtype == "auto" else getattr(torch, recipe.dtype).itemsize
    host.require_memory(
        f"The pre-training of '{recipe.size}' on each of {dist.world_size} devices",
        needed(recipe, size, dist),
        'Set recompute = true or reduce = "each", lower replicas, size or context, or take more devices: '
        "heredity plan",
        round(recipe.memory * host.GIB) or free,
    )


def _predict(recipe: Pretrain, parts: dict[str, int], dtype: torch.dtype) -> Prediction:
    seconds = limit = 0.0
    if per_token := recipe.spec.flops_per_token(recipe):
        limit = limit_of(recipe, dtype)
        work = _work(recipe, dtype.itemsize)
        rate = host.memory_bandwidth(PRETRAIN_MICROBATCH_TOKENS, work.shape.width, dtype)
        tokens = work.tokens + work.n_evaluated / forecast.STEP_TO_FORWARD
        seconds = tokens * forecast.cpu_seconds(work, per_token, limit, rate)
    host.reset_peak_memory()
    return Prediction(parts, limit, seconds, host.resident_memory())


def limit_of(recipe: Pretrain, dtype: torch.dtype, device: torch.device | None = None) -> float:
    """FLOP/s that matmuls of the recipe's shapes reach on a device; None: the processor (text objectives)."""
    of_head = recipe.spec.head_share(recipe)
    return matmul_limit(recipe.dial.shape, dtype, of_head, device)


TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


class ThroughputMeter:
    """Passes the progress of a loop to a display, and keeps the last event."""

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch, self.last = watch, Progress("train", "", 0, 0, unit="tokens")

    def __call__(self, at: Progress) -> None:
        if at.per_second:  # not a phase, nor the state before the first step
            self.last = at
        if self._watch is not None:
            self._watch(at)

    def notes(self, of_token: float, limit: float) -> dict[str, str]:
        """Tokens per second, and their share of a limit, as a note for the model's record.

        of_token: FLOPs per token. limit: FLOP/s. {} if this process ran no step.
        """
        if not self.last.per_second:
            return {}
        used = self.last.per_second * of_token
        return {
            "speed": f"{self.last.per_second:,.0f} tokens/s, {used / limit:.0%} of {limit / 1e9:,.0f} "
            "GFLOP/s that this machine's products reach at these shapes"
        }


class PretrainRun(NamedTuple):
    """A trained network, its training curve, and what was predicted (None on several processes)."""

    network: CausalLM
    metrics: list[loop.StepMetrics]
    meter: ThroughputMeter
    prediction: Prediction | None

    def prediction_notes(self) -> dict[str, str]:
        """Predicted and measured values, for the model's record.

        Call it before files are written, because that takes memory too.
        """
        if self.prediction is None:
            return {}
        return self.prediction.notes(sum(m.n_tokens for m in self.metrics), self.meter.last.per_second)


def dist_of(recipe: Pretrain) -> DistContext:
    """The processes that train the model."""
    return recipe.dist or SINGLE_PROCESS


def learn(
    recipe: Pretrain,
    init_network: Callable[[str], CausalLM],
    objective: Objective,
    source: loop.BatchSource,
    check: loop.ValidationCheck,
    folder: Path,
) -> PretrainRun:
    """Draw weights from the seed and run every step, on all processes. Raises OutOfMemory before the first.

    init_network: returns a network of new weights, for a dtype.
    """
    dist = dist_of(recipe)
    watch = recipe.watch if dist.is_main_process else None
    with phase(watch, "loading the libraries"):
        from transformers import PreTrainedModel  # noqa: F401  # it loads late what takes most of the time
    with checked_memory(recipe, dist) as prediction:
        dtype = _dtype(recipe, dist)
        network = init_network(dtype)
        network.model.to(dist.device)
        if recipe.recompute:
            recompute_activations(network.model, recipe.recompute_every)
        trained = network if dist.is_single_process else shard_model(network, dist, recipe.reduce == "once")
        guard = loop.DivergenceGuard(recipe.checkpoint_every, recipe.spike)
        meter = ThroughputMeter(watch)
        metrics = loop.train(
            trained, FullFinetune(), objective, source, _plan(recipe), folder, meter, check, guard, dist
        )
        if isinstance(trained, ShardedModel):
            network = trained.gathered(lambda: init_network(dtype), dist.is_main_process)
        return PretrainRun(network, metrics, meter, prediction)


def _plan(recipe: Pretrain) -> loop.TrainingPlan:
    return loop.TrainingPlan(
        recipe.training,
        recipe.n_steps,
        recipe.dial.rate,
        recipe.schedule,
        int(recipe.warmup * recipe.n_steps),
        recipe.weight_decay,
        recipe.grad_clip,
        recipe.optimizer,
        recipe.seed,
    )


def _dtype(recipe: Pretrain, dist: DistContext) -> str:
    """The compute dtype. All processes use the choice of the first, because each could measure another."""
    shape = recipe.dial.shape
    if recipe.dtype == "auto" and dist.device.type != "cpu":
        return host.choose_dtype(shape.width, shape.wide, device=Device.parse(str(dist.device)))
    if dist.is_single_process or recipe.dtype != "auto":
        return recipe.dtype
    is_fast = dist.is_main_process and host.choose_dtype(shape.width, shape.wide, 1024) == "bfloat16"
    return "bfloat16" if dist.broadcast([float(is_fast)])[0] else "float32"


def config_of(recipe: Pretrain, corpus: Corpus | ImageCorpus) -> dict[str, Any]:
    """The configuration of the architecture, as transformers reads it."""
    architecture = registry.load("train.models.architectures", recipe.architecture)
    config: dict[str, Any] = architecture.config(recipe.dial.shape, specials(corpus))
    return config


def specials(corpus: Corpus | ImageCorpus) -> Specials:
    """The corpus's special tokens."""
    facts = corpus.card.tokenizer
    return Specials(facts.end, facts.special.get("<|pad|>", facts.end), facts.special.get("<|mask|>"))


def packed(recipe: Pretrain, split: Cut, context: int) -> PackedDataset:
    """This process's share of a split's documents, in chunks of `context` tokens."""
    corpus, dist = recipe.text, dist_of(recipe)
    return PackedDataset(
        corpus.split(split), specials(corpus).end, recipe.dial.batch, context, recipe.seed,
        rank=dist.rank, world_size=dist.world_size,
    )  # fmt: skip


# --- files ------------------------------------------------------------------------------------------


def write_weights(run: PretrainRun, out: Path) -> None:
    """Write weights, configuration and the training curve."""
    FullFinetune().save(run.network, out)
    write_metrics(run.metrics, out)


def write_samples(samples: Sequence[dict[str, str]], out: Path) -> None:
    """Write samples.json."""
    (out / "samples.json").write_text(json.dumps(samples, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_tokenizer(
    folder: Path, out: Path, single: str, pair: str | None = None, truncate: int | None = None, **config: Any
) -> None:
    """Write the corpus's tokenizer so that it frames a text as the training did.

    single, pair: tokenizers' templates, with {end} for the end token. truncate: the most tokens, if asked to
    truncate. config: further keys of tokenizer_config.json, also with {end}.
    """
    from tokenizers import Tokenizer, processors

    settings: dict[str, Any] = json.loads((folder / TOKENIZER_CONFIG).read_text("utf-8"))
    end = settings["eos_token"]
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single.format(end=end),
        pair=pair and pair.format(end=end),
        special_tokens=[(end, tokenizer.token_to_id(end))],
    )
    if truncate is not None:
        tokenizer.enable_truncation(truncate)
    settings |= {
        key: value.format(end=end) if isinstance(value, str) else value for key, value in config.items()
    }
    settings.pop("chat_template", None)
    write_atomic(out / TOKENIZER, tokenizer.to_str(pretty=False).encode())
    write_atomic(out / TOKENIZER_CONFIG, json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n")


# --- notes for the model's record -------------------------------------------------------------------


def weight_notes(run: PretrainRun, read: str) -> dict[str, str]:
    """Compute dtype, number of parameters, first and last loss, steps, what was read, and if they are few."""
    network, metrics, advice = run.network, run.metrics, "tokens or pairs, or lower batch_size"
    n_parameters = sum(each.numel() for each in network.model.parameters())  # shared ones once
    return {
        "dtype": str(network.model.dtype).removeprefix("torch."),
        **({"small steps": "in chains, compiled"} if network.is_fused else {}),
        "parameters": f"{n_parameters:,}",
        "loss": f"{metrics[0].loss:.4f} in the first step, {metrics[-1].loss:.4f} in the last",
        "training": f"{plural(len(metrics), 'step')}, {read}",
        **({"warning": few_steps(len(metrics), read, advice)} if len(metrics) < FEWEST_STEPS else {}),
    }


def throughput_notes(recipe: Pretrain, run: PretrainRun) -> dict[str, str]:
    """Throughput; for one process also its share of this machine's matmul limit."""
    meter, prediction = run.meter, run.prediction
    if dist_of(recipe).is_single_process:
        limit = (
            prediction.limit
            if prediction
            else limit_of(recipe, run.network.model.dtype, dist_of(recipe).device)
        )
        return meter.notes(recipe.spec.flops_per_token(recipe), limit)
    rate = meter.last.per_second
    return process_notes(recipe) | ({"speed": f"{rate:,.0f} tokens/s"} if rate else {})


def process_notes(recipe: Pretrain) -> dict[str, str]:
    """The number of processes, if more than one."""
    dist = dist_of(recipe)
    if dist.is_single_process:
        return {}
    return {"processes": f"{dist.world_size}, weights in {dist.n_shards} shards, {dist.device.type}"}
