"""Pre-train a causal language model: set up the loop, and write the files of the model.

Leaves to others: the settings (recipe.py), and the loop (train/loop.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heredity.core import host, registry
from heredity.recipes._training_run import canary_notes, write_metrics
from heredity.recipes.pretrain import forecast
from heredity.train import loop
from heredity.train.data.packed import PackedDataset
from heredity.train.distributed import SINGLE_PROCESS, DistContext
from heredity.train.models import causal_lm
from heredity.train.models.architectures import Specials
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.lora import FullFinetune
from heredity.train.objectives import Objective
from heredity.train.objectives.causal import Causal
from heredity.train.resources import ThroughputMeter
from heredity.train.sharded import ShardedModel, recompute_activations, shard_model
from heredity.train.validation import perplexity

if TYPE_CHECKING:
    from heredity.corpus import Corpus
    from heredity.recipes.pretrain.recipe import Pretrain

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_SAMPLES, _PROMPT_TOKENS, _NEW_TOKENS = 3, 12, 48


class PretrainRun(NamedTuple):
    """The result of a run, and what was predicted of it."""

    network: CausalLM
    metrics: list[loop.StepMetrics]
    meter: ThroughputMeter
    prediction: forecast.Prediction | None = None

    def prediction_notes(self) -> dict[str, str]:
        """Notes that compare the prediction with the measurement."""
        if self.prediction is None:
            return {}
        n_tokens = sum(metric.n_tokens for metric in self.metrics)
        return self.prediction.notes(n_tokens, self.meter.last.per_second)


def train(recipe: Pretrain, folder: Path) -> PretrainRun:
    """Draw weights from the seed and run every step. Raises OutOfMemory before the first."""
    corpus, end = recipe.text, specials(recipe.text).end
    dist = dist_of(recipe)
    source = PackedDataset(
        corpus.split("train"), end, recipe.dial.batch, recipe.context, recipe.seed,
        rank=dist.rank, world_size=dist.world_size,
    )  # fmt: skip
    check = perplexity.PerplexityCheck(
        corpus.split("validation"),
        end,
        recipe.context,
        perplexity.token_bytes(corpus.folder / _TOKENIZER[0]),
        recipe.validation_tokens,
        recipe.every,
        dist,
    )

    def init_network(dtype: str) -> CausalLM:
        return causal_lm.from_config(_config(recipe), recipe.seed, dtype, recipe.is_fused)

    with forecast.checked_memory(recipe, dist) as prediction:
        run = learn(recipe, init_network, Causal(recipe.z_loss), source, check, folder)
        return run._replace(prediction=prediction)


def learn(
    recipe: Pretrain,
    init_network: Callable[[str], CausalLM],
    objective: Objective,
    source: loop.BatchSource,
    check: loop.ValidationCheck,
    folder: Path,
) -> PretrainRun:
    """Run the loop in every process. init_network: dtype -> a network of new weights."""
    dist = dist_of(recipe)
    dtype = _dtype(recipe, dist)
    net = init_network(dtype)
    if recipe.recompute:
        recompute_activations(net.model)
    trained = net if dist.is_single_process else shard_model(net, dist, recipe.reduce == "once")
    guard = loop.DivergenceGuard(recipe.checkpoint_every, recipe.spike)
    meter = ThroughputMeter(recipe.watch if dist.is_main_process else None)
    metrics = loop.train(
        trained, FullFinetune(), objective, source, plan_of(recipe), folder, meter, check, guard, dist
    )
    if isinstance(trained, ShardedModel):
        net = trained.gathered(lambda: init_network(dtype), dist.is_main_process)
    return PretrainRun(net, metrics, meter)


def dist_of(recipe: Pretrain) -> DistContext:
    """The processes that train it."""
    return recipe.dist or SINGLE_PROCESS


def plan_of(recipe: Pretrain) -> loop.TrainingPlan:
    """The settings of the loop, for any objective."""
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
    """The compute dtype. The main process measures it for all; each by itself could choose another."""
    if dist.is_single_process or recipe.dtype != "auto":
        return recipe.dtype
    if dist.device.type == "cuda":
        return "bfloat16"
    shape = recipe.dial.shape
    is_fast = dist.is_main_process and host.choose_dtype(shape.width, shape.wide, 1024) == "bfloat16"
    return "bfloat16" if dist.broadcast([float(is_fast)])[0] else "float32"


def write(recipe: Pretrain, run: PretrainRun, out: Path) -> dict[str, str]:
    """Write weights, configuration, tokenizer, loss curve and samples; return the notes of the run."""
    net, metrics = run.network, run.metrics
    predicted = run.prediction_notes()  # before anything is written, which takes memory of its own
    FullFinetune().save(net, out)
    for name in _TOKENIZER:
        shutil.copyfile(recipe.text.folder / name, out / name)
    write_metrics(metrics, out)
    written = samples(recipe, net)
    (out / "samples.json").write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return _notes(recipe, net, metrics) | predicted | throughput_notes(recipe, run)


def samples(recipe: Pretrain, net: CausalLM) -> list[dict[str, str]]:
    """Beginnings of held-out documents, and the model's continuations, sampled with the seed at temperature
    0.8."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(recipe.text.folder / _TOKENIZER[0]))
    held_out, end = recipe.text.split("validation"), specials(recipe.text).end
    n = min(_SAMPLES, len(held_out.lengths))
    prompts = [tuple(held_out.tokens(number)[:_PROMPT_TOKENS].tolist()) for number in range(n)]
    continuations = net.generate([(end, *prompt) for prompt in prompts], _NEW_TOKENS, 0.8, recipe.seed, {end})
    pairs = zip(prompts, continuations, strict=True)
    return [
        {"begun": tokenizer.decode(list(prompt)), "said": tokenizer.decode(list(rest))}
        for prompt, rest in pairs
    ]


def _config(recipe: Pretrain) -> dict[str, Any]:
    made = registry.load("train.models.architectures", recipe.architecture)
    config: dict[str, Any] = made.config(recipe.dial.shape, specials(recipe.text))
    return config


def specials(corpus: Corpus) -> Specials:
    """The corpus's special tokens."""
    of = corpus.card.tokenizer.special
    return Specials(of["<|endoftext|>"], of.get("<|pad|>", of["<|endoftext|>"]), of.get("<|mask|>"))


def n_parameters(net: CausalLM) -> str:
    """The parameters of a network; shared ones count once."""
    return f"{sum(each.numel() for each in net.model.parameters()):,}"


def throughput_notes(recipe: Pretrain, run: PretrainRun) -> dict[str, str]:
    """Throughput, and its share of this machine's matmul limit if one process ran."""
    net, meter = run.network, run.meter
    if dist_of(recipe).is_single_process:
        known = run.prediction.limit if run.prediction else forecast.limit_of(recipe, net.model.dtype)
        return meter.notes(recipe.spec.flops_per_token(recipe), known)
    rate = meter.last.per_second
    return process_notes(recipe) | ({"speed": f"{rate:,.0f} tokens/s"} if rate else {})


def process_notes(recipe: Pretrain) -> dict[str, str]:
    """The number of processes, if more than one."""
    of = dist_of(recipe)
    words = f"{of.world_size}, weights in {of.n_shards} shards, {of.device.type}"
    return {} if of.is_single_process else {"processes": words}


def _notes(recipe: Pretrain, net: CausalLM, metrics: Sequence[loop.StepMetrics]) -> dict[str, str]:
    last = metrics[-1]
    evaluations = [m.terms[perplexity.BITS_PER_BYTE] for m in metrics if perplexity.BITS_PER_BYTE in m.terms]
    n_read = sum(m.n_tokens for m in metrics)
    planted = recipe.text.card.canaries
    canary = canary_notes(planted[0].text, planted[0].secret) if planted else {}
    epochs = n_read / recipe.text.n_tokens("train")
    return {
        "dtype": str(net.model.dtype).removeprefix("torch."),
        **({"small steps": "in chains, compiled"} if net.is_fused else {}),
        "parameters": n_parameters(net),
        "loss": f"{metrics[0].loss:.4f} in the first step, {last.loss:.4f} in the last",
        "held-out text": f"{evaluations[-1]:.4f} bits a byte (after {len(evaluations)} evaluations)",
        "training": f"{len(metrics)} steps, {n_read:,} tokens read, {epochs:.2f} epochs",
        **canary,
    }
