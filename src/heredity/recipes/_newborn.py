"""A base in the making: its parts put together for the loop, and what is written of it.

Leaves to others: which settings (pretrain.py), and the loop itself (train/loop.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heredity import registry
from heredity.train import curve, held, loop, network, sizes, speed
from heredity.train.architectures import Specials
from heredity.train.network import Network
from heredity.train.objectives.causal import Causal
from heredity.train.stream import Stream
from heredity.train.trainable import Everything

if TYPE_CHECKING:
    from heredity.recipes.pretrain import Pretrain
    from heredity.train.corpus import Corpus

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_SAMPLES, _PROMPT, _LONGEST = 3, 12, 48  # samples, their tokens given and said


class Made(NamedTuple):
    """What came of a run."""

    network: Network
    metrics: list[loop.Metric]
    meter: speed.Meter


def train(recipe: Pretrain, folder: Path) -> Made:
    """Weights drawn from the seed, and every step of the loop."""
    corpus, dial, n_steps = recipe.text, recipe.dial, recipe.n_steps
    net = network.born(_config(recipe), recipe.seed, recipe.dtype)
    end = specials(corpus).end
    stream = Stream(corpus.split("train"), end, dial.batch, recipe.context, recipe.seed)
    check = held.HeldOut(
        corpus.split("validation"),
        end,
        recipe.context,
        held.token_bytes(corpus.folder / _TOKENIZER[0]),
        recipe.held_out,
        max(1, n_steps // recipe.checks),
    )
    plan = plan_of(recipe)
    guard, meter = loop.Guard(recipe.keep_every, recipe.spike), speed.Meter(recipe.watch)
    objective = Causal(recipe.z_loss)
    metrics = loop.train(net, Everything(), objective, stream, plan, folder, meter, check, guard)
    return Made(net, metrics, meter)


def plan_of(recipe: Pretrain) -> loop.Plan:
    """How the training goes, whatever is learned."""
    return loop.Plan(
        recipe.training,
        recipe.n_steps,
        recipe.dial.rate,
        recipe.schedule,
        int(recipe.warmup * recipe.n_steps),
        recipe.decay,
        recipe.clip,
        recipe.optimizer,
        recipe.seed,
    )


def write(recipe: Pretrain, made: Made, out: Path) -> dict[str, str]:
    """Weights, configuration, tokenizer, curve and samples; what is to be noted of the run."""
    net, metrics, meter = made
    Everything().save(net, out)
    for name in _TOKENIZER:
        shutil.copyfile(recipe.text.folder / name, out / name)
    curve.write(metrics, out)
    said = samples(recipe, net)
    (out / "samples.json").write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return _notes(recipe, net, metrics) | meter.notes(net, recipe.dial.shape, recipe.text.lengths("train"))


def samples(recipe: Pretrain, net: Network) -> list[dict[str, str]]:
    """How held-out documents begin, and how the model goes on, drawn from the seed at temperature 0.8."""
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(recipe.text.folder / _TOKENIZER[0]))
    held_out, end = recipe.text.split("validation"), specials(recipe.text).end
    n = min(_SAMPLES, len(held_out.lengths))
    begun = [tuple(held_out.tokens(number)[:_PROMPT].tolist()) for number in range(n)]
    said = net.write([(end, *prompt) for prompt in begun], _LONGEST, 0.8, recipe.seed, {end})
    pairs = zip(begun, said, strict=True)
    return [{"begun": words.decode(list(prompt)), "said": words.decode(list(rest))} for prompt, rest in pairs]


def _config(recipe: Pretrain) -> dict[str, Any]:
    made = registry.load("train.architectures", recipe.architecture)
    config: dict[str, Any] = made.config(recipe.dial.shape, specials(recipe.text))
    return config


def specials(corpus: Corpus) -> Specials:
    """The corpus's special tokens."""
    of = corpus.card.tokenizer.special
    return Specials(of["<|endoftext|>"], of.get("<|pad|>", of["<|endoftext|>"]), of.get("<|mask|>"))


def _notes(recipe: Pretrain, net: Network, metrics: Sequence[loop.Metric]) -> dict[str, str]:
    shape, last = recipe.dial.shape, metrics[-1]
    looks = [m.terms[held.BITS_PER_BYTE] for m in metrics if held.BITS_PER_BYTE in m.terms]
    n_read = sum(m.n_tokens for m in metrics)
    planted = recipe.text.card.canaries
    canary = {"canary": f"{planted[0].text} {planted[0].secret}"} if planted else {}
    epochs = n_read / recipe.text.n_tokens("train")
    return {
        "multiplied in": str(net.model.dtype).removeprefix("torch."),
        "parameters": f"{sizes.n_weights(shape):,}",
        "loss": f"{metrics[0].loss:.4f} in the first step, {last.loss:.4f} in the last",
        "held-out text": f"{looks[-1]:.4f} bits a byte (after {len(looks)} looks)",
        "training": f"{len(metrics)} steps, {n_read:,} tokens read, {epochs:.2f} epochs",
        **canary,
    }
