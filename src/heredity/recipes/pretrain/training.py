"""Shared by the objectives: a recipe's parts put together for the training loop, and the files of its child.

Leaves to others: data, network and loss of each objective (causal.py, masked.py, contrastive.py), and the
loop itself (train/loop.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heredity.core import host, registry
from heredity.core.files import write_atomic
from heredity.core.host import Device
from heredity.core.progress import phase
from heredity.core.sanitize import plural
from heredity.recipes._training_run import FEWEST_STEPS, few_steps, write_metrics
from heredity.recipes.pretrain import forecast
from heredity.train import loop
from heredity.train.data.packed import PackedDataset
from heredity.train.distributed import SINGLE_PROCESS, DistContext
from heredity.train.models.architectures import Specials
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.lora import FullFinetune
from heredity.train.objectives import Objective
from heredity.train.resources import ThroughputMeter
from heredity.train.sharded import ShardedModel, recompute_activations, shard_model

if TYPE_CHECKING:
    from heredity.corpus import Corpus
    from heredity.corpus.card import Cut
    from heredity.corpus.images import ImageCorpus
    from heredity.recipes.pretrain.recipe import Pretrain

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


class PretrainRun(NamedTuple):
    """A trained network, its training curve, and what was predicted (None on several processes)."""

    network: CausalLM
    metrics: list[loop.StepMetrics]
    meter: ThroughputMeter
    prediction: forecast.Prediction | None

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
    with forecast.checked_memory(recipe, dist) as prediction:
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
            else forecast.limit_of(recipe, run.network.model.dtype, dist_of(recipe).device)
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
