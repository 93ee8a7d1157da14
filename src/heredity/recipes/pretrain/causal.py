"""A base in the making: its parts put together for the loop, and what is written of it.

Leaves to others: which settings (pretrain.py), and the loop itself (train/loop.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heredity.core import host, registry
from heredity.recipes._training_run import canary_notes
from heredity.recipes.pretrain import forecast
from heredity.train import loop
from heredity.train import metrics as curve
from heredity.train import metrics as speed
from heredity.train.data.packed import PackedDataset
from heredity.train.distributed import SINGLE_PROCESS, DistContext
from heredity.train.models import causal_lm as network
from heredity.train.models.architectures import Specials
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.lora import FullFinetune
from heredity.train.objectives import Objective
from heredity.train.objectives.causal import Causal
from heredity.train.sharded import ShardedModel, recompute_activations, shard_model
from heredity.train.validation import perplexity

if TYPE_CHECKING:
    from heredity.corpus import Corpus
    from heredity.recipes.pretrain.recipe import Pretrain

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_SAMPLES, _PROMPT, _LONGEST = 3, 12, 48  # samples, their tokens given and said


class PretrainResult(NamedTuple):
    """The result of a run."""

    network: CausalLM
    metrics: list[loop.StepMetrics]
    meter: speed.ThroughputMeter


class Base(NamedTuple):
    """The result of a run, and its forecast."""

    made: PretrainResult
    foreseen: forecast.Foreseen | None

    def foretold(self) -> dict[str, str]:
        """Forecast and measurement side by side."""
        of = self.made
        if self.foreseen is None:
            return {}
        return self.foreseen.notes(sum(m.n_tokens for m in of.metrics), of.meter.last.per_second)


def train(recipe: Pretrain, folder: Path) -> Base:
    """Weights drawn from the seed, and every step of the loop. Raises OutOfMemory before the first."""
    corpus, end = recipe.text, specials(recipe.text).end
    together = processes_of(recipe)
    source = PackedDataset(
        corpus.split("train"), end, recipe.dial.batch, recipe.context, recipe.seed,
        rank=together.rank, world=together.world,
    )  # fmt: skip
    check = perplexity.PerplexityCheck(
        corpus.split("validation"),
        end,
        recipe.context,
        perplexity.token_bytes(corpus.folder / _TOKENIZER[0]),
        recipe.validation_tokens,
        recipe.every,
        together,
    )

    def born(dtype: str) -> CausalLM:
        return network.from_config(_config(recipe), recipe.seed, dtype, recipe.is_fused)

    with forecast.in_memory(recipe, together) as foreseen:
        return Base(learn(recipe, born, Causal(recipe.z_loss), source, check, folder), foreseen)


def learn(
    recipe: Pretrain,
    born: Callable[[str], CausalLM],
    objective: Objective,
    source: loop.BatchSource,
    check: loop.ValidationCheck,
    folder: Path,
) -> PretrainResult:
    """The loop, in as many processes as there are. born: dtype -> a network of new weights."""
    together = processes_of(recipe)
    dtype = _dtype(recipe, together)
    net = born(dtype)
    if recipe.recompute:
        recompute_activations(net.model)
    held_here = net if together.is_alone else shard_model(net, together, recipe.reduce == "once")
    guard = loop.DivergenceGuard(recipe.checkpoint_every, recipe.spike)
    meter = speed.ThroughputMeter(recipe.watch if together.is_first else None)
    metrics = loop.train(
        held_here, FullFinetune(), objective, source, plan_of(recipe), folder, meter, check, guard, together
    )
    if isinstance(held_here, ShardedModel):
        net = held_here.gathered(lambda: born(dtype), together.is_first)
    return PretrainResult(net, metrics, meter)


def processes_of(recipe: Pretrain) -> DistContext:
    """Those that make it together."""
    return recipe.together or SINGLE_PROCESS


def plan_of(recipe: Pretrain) -> loop.TrainingPlan:
    """How the training goes, whatever is learned."""
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


def _dtype(recipe: Pretrain, together: DistContext) -> str:
    """One for all processes: each would measure for itself which product is faster."""
    if together.is_alone or recipe.dtype != "auto":
        return recipe.dtype
    if together.device.type == "cuda":
        return "bfloat16"
    shape = recipe.dial.shape
    is_fast = together.is_first and host.choose_dtype(shape.width, shape.wide, 1024) == "bfloat16"
    return "bfloat16" if together.told([float(is_fast)])[0] else "float32"


def write(recipe: Pretrain, base: Base, out: Path) -> dict[str, str]:
    """Weights, configuration, tokenizer, curve and samples; what is to be noted of the run."""
    net, metrics, _ = base.made
    beside = base.foretold()  # before anything is written, which takes memory of its own
    FullFinetune().save(net, out)
    for name in _TOKENIZER:
        shutil.copyfile(recipe.text.folder / name, out / name)
    curve.write_metrics(metrics, out)
    said = samples(recipe, net)
    (out / "samples.json").write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return _notes(recipe, net, metrics) | beside | speed_noted(recipe, base)


def samples(recipe: Pretrain, net: CausalLM) -> list[dict[str, str]]:
    """Beginnings of held-out documents, and the model's continuations, sampled with the seed at temperature
    0.8."""
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(recipe.text.folder / _TOKENIZER[0]))
    held_out, end = recipe.text.split("validation"), specials(recipe.text).end
    n = min(_SAMPLES, len(held_out.lengths))
    begun = [tuple(held_out.tokens(number)[:_PROMPT].tolist()) for number in range(n)]
    said = net.write([(end, *prompt) for prompt in begun], _LONGEST, 0.8, recipe.seed, {end})
    pairs = zip(begun, said, strict=True)
    return [{"begun": words.decode(list(prompt)), "said": words.decode(list(rest))} for prompt, rest in pairs]


def _config(recipe: Pretrain) -> dict[str, Any]:
    made = registry.load("train.models.architectures", recipe.architecture)
    config: dict[str, Any] = made.config(recipe.dial.shape, specials(recipe.text))
    return config


def specials(corpus: Corpus) -> Specials:
    """The corpus's special tokens."""
    of = corpus.card.tokenizer.special
    return Specials(of["<|endoftext|>"], of.get("<|pad|>", of["<|endoftext|>"]), of.get("<|mask|>"))


def n_parameters(net: CausalLM) -> str:
    """All of a network, what is shared once."""
    return f"{sum(each.numel() for each in net.model.parameters()):,}"


def speed_noted(recipe: Pretrain, base: Base) -> dict[str, str]:
    """Throughput, and its share of this machine's matmul limit if one process ran."""
    net, _, meter = base.made
    if processes_of(recipe).is_alone:
        known = base.foreseen.limit if base.foreseen else forecast.limit_of(recipe, net.model.dtype)
        return meter.notes(recipe.spec.flops_per_token(recipe), known)
    rate = meter.last.per_second
    return processes_noted(recipe) | ({"speed": f"{rate:,.0f} tokens/s"} if rate else {})


def processes_noted(recipe: Pretrain) -> dict[str, str]:
    """The number of processes, if more than one."""
    of = processes_of(recipe)
    words = f"{of.world}, weights in {of.n_pieces} pieces, {of.device.type}"
    return {} if of.is_alone else {"processes": words}


def _notes(recipe: Pretrain, net: CausalLM, metrics: Sequence[loop.StepMetrics]) -> dict[str, str]:
    last = metrics[-1]
    looks = [m.terms[perplexity.BITS_PER_BYTE] for m in metrics if perplexity.BITS_PER_BYTE in m.terms]
    n_read = sum(m.n_tokens for m in metrics)
    planted = recipe.text.card.canaries
    canary = canary_notes(planted[0].text, planted[0].secret) if planted else {}
    epochs = n_read / recipe.text.n_tokens("train")
    return {
        "multiplied in": str(net.model.dtype).removeprefix("torch."),
        **({"small steps": "in chains, compiled"} if net.is_fused else {}),
        "parameters": n_parameters(net),
        "loss": f"{metrics[0].loss:.4f} in the first step, {last.loss:.4f} in the last",
        "held-out text": f"{looks[-1]:.4f} bits a byte (after {len(looks)} looks)",
        "training": f"{len(metrics)} steps, {n_read:,} tokens read, {epochs:.2f} epochs",
        **canary,
    }
