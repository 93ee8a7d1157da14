"""An encoder in the making: its parts put together for the loop, and what is written of it.

Promises: the written tokenizer frames a text as the training did, so that AutoTokenizer and a fill-mask
pipeline reproduce its inputs.
Leaves to others: which settings (pretrain.py), the loop itself
(train/loop.py), and what a decoder's making has in common with it (causal.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from heredity.core import registry
from heredity.core.files import write_atomic
from heredity.recipes.pretrain import forecast
from heredity.recipes.pretrain.causal import Base, learn, n_parameters, processes_of, specials, speed_noted
from heredity.train import metrics as curve
from heredity.train.data.masking import END_TOKENS, MaskedDataset, TokenMasking, collate_masked, mask_chunk
from heredity.train.data.packed import PackedDataset
from heredity.train.models import encoder
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.lora import FullFinetune
from heredity.train.objectives.masked import Masked
from heredity.train.validation import perplexity
from heredity.train.validation.masked import BITS_PER_BYTE, MASKED_ACCURACY, MaskedCheck

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain

_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_SAMPLES, _LONGEST = 3, 48  # samples, and their tokens


def train(recipe: Pretrain, folder: Path) -> Base:
    """Weights drawn from the seed, and every step of the loop. Raises OutOfMemory before the first."""
    built, together = registry.load("train.models.architectures", recipe.architecture), processes_of(recipe)
    words = perplexity.token_bytes(recipe.text.folder / _TOKENIZER)
    check = MaskedCheck(_gaps(recipe, "validation"), words, recipe.validation_tokens, recipe.every, together)

    def born(dtype: str) -> CausalLM:
        config = built.config(recipe.dial.shape, specials(recipe.text))
        return encoder.from_config(config, recipe.seed, dtype)

    with forecast.in_memory(recipe, together) as foreseen:
        made = learn(recipe, born, Masked(recipe.z_loss), _gaps(recipe, "train"), check, folder)
        return Base(made, foreseen)


def _gaps(recipe: Pretrain, split: Any) -> MaskedDataset:
    corpus, together = recipe.text, processes_of(recipe)
    pieces = PackedDataset(
        corpus.split(split), specials(corpus).end, recipe.dial.batch, recipe.context - END_TOKENS,
        recipe.seed,
        rank=together.rank, world=together.world,
    )  # fmt: skip
    return MaskedDataset(pieces, hiding(recipe))


def hiding(recipe: Pretrain) -> TokenMasking:
    """How gaps are made in this corpus's tokens."""
    known, corpus = specials(recipe.text), recipe.text
    assert known.mask is not None  # the architecture has refused it
    special = frozenset(corpus.card.tokenizer.special.values())
    return TokenMasking(known.mask, known.end, corpus.n_vocabulary, special, recipe.mask_rate, recipe.noise)


def write(recipe: Pretrain, base: Base, out: Path) -> dict[str, str]:
    """Weights, configuration, tokenizer, curve and samples; what is to be noted of the run."""
    net, metrics, _ = base.made
    beside = base.foretold()  # before anything is written, which takes memory of its own
    FullFinetune().save(net, out)
    write_tokenizer(recipe.text.folder, out)
    curve.write_metrics(metrics, out)
    said = samples(recipe, net)
    (out / "samples.json").write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", "utf-8")
    last = metrics[-1]
    looks = [m.terms for m in metrics if BITS_PER_BYTE in m.terms]
    n_read, n_hidden = sum(m.n_tokens for m in metrics), sum(m.n_learned for m in metrics)
    notes = {
        "multiplied in": str(net.model.dtype).removeprefix("torch."),
        "parameters": n_parameters(net),
        "loss": f"{metrics[0].loss:.4f} in the first step, {last.loss:.4f} in the last",
        "held-out gaps": f"{looks[-1][BITS_PER_BYTE]:.4f} bits a hidden byte, "
        f"{looks[-1][MASKED_ACCURACY]:.1%} right"
        f" (after {len(looks)} looks)",
        "training": f"{len(metrics)} steps, {n_read:,} tokens read, {n_hidden:,.0f} hidden",
    }
    return notes | beside | speed_noted(recipe, base)


def write_tokenizer(folder: Path, out: Path) -> None:
    """The corpus's tokenizer; it puts an end token before and behind a text, as the training did."""
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
    """How held-out documents begin, with gaps, and with what the model holds likeliest in them."""
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(recipe.text.folder / _TOKENIZER))
    held_out, how = recipe.text.split("validation"), hiding(recipe)
    found = []
    for number in range(min(_SAMPLES, len(held_out.lengths))):
        piece = mask_chunk(held_out.tokens(number)[:_LONGEST].astype(np.int64), how, [0, 0, number])
        with torch.no_grad():
            likeliest = net.logits(net.hidden(collate_masked([piece]))).argmax(1).numpy()
        filled = piece.shown.copy()
        filled[piece.at] = likeliest
        shown = words.decode(piece.shown[1:-1].tolist(), skip_special_tokens=False)
        right = int((likeliest == piece.hidden).sum())
        said = words.decode(filled[1:-1].tolist(), skip_special_tokens=False)
        found.append({"shown": shown, "said": said, "right": f"{right} of {len(piece.hidden)}"})
    return found
