"""Pre-train an encoder on masked text: set up the loop, and write the files of the model.

Promises: the written tokenizer frames a text as the training did, so that AutoTokenizer and a fill-mask
pipeline reproduce its inputs.
Leaves to others: the settings (recipe.py), the loop (train/loop.py), and what it shares with a decoder
(causal.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from heredity.core import registry
from heredity.core.files import write_atomic
from heredity.recipes._training_run import write_metrics
from heredity.recipes.pretrain import forecast
from heredity.recipes.pretrain.causal import (
    PretrainRun,
    dist_of,
    learn,
    n_parameters,
    specials,
    throughput_notes,
)
from heredity.train.data.masking import END_TOKENS, MaskedDataset, TokenMasking, collate_masked, mask_chunk
from heredity.train.data.packed import PackedDataset
from heredity.train.models import encoder
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.lora import FullFinetune
from heredity.train.objectives.masked import Masked
from heredity.train.validation import perplexity
from heredity.train.validation.masked import BITS_PER_BYTE, MASKED_ACCURACY, MaskedCheck

if TYPE_CHECKING:
    from heredity.corpus.card import Cut
    from heredity.recipes.pretrain.recipe import Pretrain

_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_SAMPLES, _LONGEST = 3, 48  # samples, and their tokens


def train(recipe: Pretrain, folder: Path) -> PretrainRun:
    """Draw weights from the seed and run every step. Raises OutOfMemory before the first."""
    built, dist = registry.load("train.models.architectures", recipe.architecture), dist_of(recipe)
    words = perplexity.token_bytes(recipe.text.folder / _TOKENIZER)
    check = MaskedCheck(_dataset(recipe, "validation"), words, recipe.validation_tokens, recipe.every, dist)

    def init_network(dtype: str) -> CausalLM:
        config = built.config(recipe.dial.shape, specials(recipe.text))
        return encoder.from_config(config, recipe.seed, dtype)

    with forecast.checked_memory(recipe, dist) as prediction:
        run = learn(recipe, init_network, Masked(recipe.z_loss), _dataset(recipe, "train"), check, folder)
        return run._replace(prediction=prediction)


def _dataset(recipe: Pretrain, split: Cut) -> MaskedDataset:
    corpus, dist = recipe.text, dist_of(recipe)
    chunks = PackedDataset(
        corpus.split(split), specials(corpus).end, recipe.dial.batch, recipe.context - END_TOKENS,
        recipe.seed,
        rank=dist.rank, world_size=dist.world_size,
    )  # fmt: skip
    return MaskedDataset(chunks, masking_of(recipe))


def masking_of(recipe: Pretrain) -> TokenMasking:
    """How this corpus's tokens are masked."""
    known, corpus = specials(recipe.text), recipe.text
    assert known.mask is not None  # the architecture has refused it
    special = frozenset(corpus.card.tokenizer.special.values())
    return TokenMasking(known.mask, known.end, corpus.n_vocabulary, special, recipe.mask_rate, recipe.noise)


def write(recipe: Pretrain, run: PretrainRun, out: Path) -> dict[str, str]:
    """Write weights, configuration, tokenizer, loss curve and samples; return the notes of the run."""
    net, metrics = run.network, run.metrics
    predicted = run.prediction_notes()  # before anything is written, which takes memory of its own
    FullFinetune().save(net, out)
    write_tokenizer(recipe.text.folder, out)
    write_metrics(metrics, out)
    written = samples(recipe, net)
    (out / "samples.json").write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", "utf-8")
    last = metrics[-1]
    evaluations = [m.terms for m in metrics if BITS_PER_BYTE in m.terms]
    n_read, n_hidden = sum(m.n_tokens for m in metrics), sum(m.n_learned for m in metrics)
    notes = {
        "dtype": str(net.model.dtype).removeprefix("torch."),
        "parameters": n_parameters(net),
        "loss": f"{metrics[0].loss:.4f} in the first step, {last.loss:.4f} in the last",
        "held-out gaps": f"{evaluations[-1][BITS_PER_BYTE]:.4f} bits a hidden byte, "
        f"{evaluations[-1][MASKED_ACCURACY]:.1%} right"
        f" (after {len(evaluations)} evaluations)",
        "training": f"{len(metrics)} steps, {n_read:,} tokens read, {n_hidden:,.0f} hidden",
    }
    return notes | predicted | throughput_notes(recipe, run)


def write_tokenizer(folder: Path, out: Path) -> None:
    """Write the corpus's tokenizer; it puts an end token on both sides of a text, as the training did."""
    from tokenizers import Tokenizer, processors

    config = json.loads((folder / _CONFIG).read_text("utf-8"))
    end = config["eos_token"]
    made = Tokenizer.from_file(str(folder / _TOKENIZER))
    made.post_processor = processors.TemplateProcessing(
        single=f"{end} $A {end}",
        pair=f"{end} $A {end} $B:1 {end}:1",
        special_tokens=[(end, made.token_to_id(end))],
    )
    config |= {"cls_token": end, "sep_token": end, "model_input_names": ["input_ids", "attention_mask"]}
    config.pop("chat_template", None)
    write_atomic(out / _TOKENIZER, made.to_str(pretty=False).encode())
    write_atomic(out / _CONFIG, json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")


def samples(recipe: Pretrain, net: CausalLM) -> list[dict[str, str]]:
    """Beginnings of held-out documents with masked tokens, and the model's most likely tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(recipe.text.folder / _TOKENIZER))
    held_out, how = recipe.text.split("validation"), masking_of(recipe)
    found = []
    for number in range(min(_SAMPLES, len(held_out.lengths))):
        chunk = mask_chunk(held_out.tokens(number)[:_LONGEST].astype(np.int64), how, [0, 0, number])
        with torch.no_grad():
            likeliest = net.logits(net.hidden(collate_masked([chunk]))).argmax(1).numpy()
        filled = chunk.shown.copy()
        filled[chunk.at] = likeliest
        shown = tokenizer.decode(chunk.shown[1:-1].tolist(), skip_special_tokens=False)
        right = int((likeliest == chunk.hidden).sum())
        predicted = tokenizer.decode(filled[1:-1].tolist(), skip_special_tokens=False)
        found.append({"shown": shown, "said": predicted, "right": f"{right} of {len(chunk.hidden)}"})
    return found
