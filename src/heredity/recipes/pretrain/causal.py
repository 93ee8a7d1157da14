"""Pre-train a decoder: its data, its loss, and the files and notes of the child."""

from __future__ import annotations

import shutil
from pathlib import Path

from heredity.formats.safetensors_io import copy_rest
from heredity.recipes._training_run import canary_notes
from heredity.recipes.pretrain.recipe import Pretrain, refuse_other_tokens
from heredity.recipes.pretrain.training import (
    BITS_PER_BYTE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    PerplexityCheck,
    PretrainRun,
    config_of,
    dist_of,
    learn,
    packed,
    specials,
    throughput_notes,
    token_bytes,
    weight_notes,
    write_samples,
    write_weights,
)
from heredity.train.models import causal_lm
from heredity.train.models.causal_lm import CausalLM
from heredity.train.objectives.causal import Causal

_N_SAMPLES, _N_PROMPT, _N_REPLY = 3, 12, 48  # samples; tokens of a prompt and of its continuation
_TEMPERATURE = 0.8


def train(recipe: Pretrain, folder: Path) -> PretrainRun:
    """Draw weights from the seed, or load the base, and run every step.

    Raises UsageError for a corpus of other tokens than the base's, and OutOfMemory before the first step.
    """
    corpus = recipe.text
    check = PerplexityCheck(
        corpus.split("validation"),
        specials(corpus).end,
        recipe.context,
        token_bytes(corpus.folder / TOKENIZER),
        recipe.validation_tokens,
        recipe.every,
        dist_of(recipe),
    )

    if recipe.base is not None:
        refuse_other_tokens(corpus.folder, recipe.base)

    def init_network(dtype: str) -> CausalLM:
        if recipe.base is not None:
            return causal_lm.load(recipe.base.folder, dtype)
        return causal_lm.from_config(config_of(recipe, corpus), recipe.seed, dtype, recipe.is_fused)

    source = packed(recipe, "train", recipe.context)
    return learn(recipe, init_network, Causal(recipe.z_loss), source, check, folder)


def write(recipe: Pretrain, run: PretrainRun, out: Path) -> dict[str, str]:
    """Write weights, configuration, tokenizer, curve and samples. Returns the notes of the child's record."""
    prediction_notes = run.prediction_notes()
    write_weights(run, out)
    if recipe.base is not None:
        copy_rest(recipe.base.folder, out)
        (out / "samples.json").unlink(missing_ok=True)  # a link to the base's
    else:
        for name in (TOKENIZER, TOKENIZER_CONFIG):
            shutil.copyfile(recipe.text.folder / name, out / name)
    write_samples(samples(recipe, run.network), out)
    metrics, key = run.metrics, BITS_PER_BYTE
    evaluations = [m.terms[key] for m in metrics if key in m.terms]
    n_read = sum(m.n_tokens for m in metrics)
    planted = recipe.text.card.canaries
    canary = canary_notes(planted[0].text, planted[0].secret) if planted else {}
    epochs = n_read / recipe.text.n_tokens("train")
    return (
        (
            {
                **weight_notes(run, f"{n_read:,} tokens read, {epochs:.2f} epochs"),
                "held-out text": f"{evaluations[-1]:.4f} bits a byte (evaluations: {len(evaluations)})",
                **canary,
            }
        )
        | prediction_notes
        | throughput_notes(recipe, run)
    )


def samples(recipe: Pretrain, network: CausalLM) -> list[dict[str, str]]:
    """Beginnings of validation documents, and the model's continuations, sampled with the seed."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(recipe.text.folder / TOKENIZER))
    documents, end = recipe.text.split("validation"), specials(recipe.text).end
    n = min(_N_SAMPLES, len(documents.lengths))
    prompts = [tuple(documents.tokens(number)[:_N_PROMPT].tolist()) for number in range(n)]
    replies = network.generate([(end, *each) for each in prompts], _N_REPLY, _TEMPERATURE, recipe.seed, {end})
    return [
        {"begun": tokenizer.decode(list(prompt)), "said": tokenizer.decode(list(reply))}
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
