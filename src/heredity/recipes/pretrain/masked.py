"""Pre-train an encoder on masked tokens: its data, its loss, and the files and notes of the child.

Promises: the written tokenizer frames a text as the training did, so that AutoTokenizer and a fill-mask
pipeline reproduce its inputs.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from heredity.recipes.pretrain.training import (
    TOKENIZER,
    PretrainRun,
    config_of,
    dist_of,
    first_chunks,
    learn,
    packed,
    rank_microbatches,
    specials,
    throughput_notes,
    token_bytes,
    weight_notes,
    write_samples,
    write_tokenizer,
    write_weights,
)
from heredity.train.data.packed import (
    END_TOKENS,
    IntArray,
    MaskedDataset,
    PackedDataset,
    TokenMasking,
    collate_masked,
    mask_chunk,
)
from heredity.train.loop import SINGLE_PROCESS, DistContext
from heredity.train.models import encoder
from heredity.train.models.causal_lm import CausalLM, PackedBatch
from heredity.train.objectives import Loss
from heredity.train.objectives.causal import summed_cross_entropy

if TYPE_CHECKING:
    from heredity.corpus.storage import Cut
    from heredity.recipes.pretrain.recipe import Pretrain

ACCURACY = "accuracy"


@dataclass(frozen=True)
class Masked:
    """The negative log-likelihood of masked tokens. A metric counts correct predictions."""

    z_loss: float = 0.0

    def loss(self, network: CausalLM, batch: PackedBatch) -> Loss:
        """Summed over the batch's masked positions."""

        def of_rows(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            targets = batch.targets[rows]
            sums[ACCURACY] += float((logits.detach().argmax(1) == targets).sum())
            return summed_cross_entropy(logits, targets, self.z_loss, sums)

        sums = {ACCURACY: 0.0}
        return Loss(network.loss(network.hidden(batch), of_rows), sums)

    def weight(self, batch: PackedBatch) -> float:
        """The number of masked positions."""
        return float(len(batch.targets))


BITS_PER_BYTE, MASKED_ACCURACY = "bits per masked byte", "right in held-out gaps"


@dataclass(frozen=True)
class MaskedCheck:
    """Evaluates the first `n_tokens` of held-out documents (the last one whole), every `every` steps."""

    masked: MaskedDataset  # of held-out documents; its seed is ignored
    token_bytes: IntArray  # bytes of each token
    n_tokens: int
    every: int
    dist: DistContext = SINGLE_PROCESS

    def evaluate(self, network: CausalLM) -> dict[str, float]:
        """Bits per masked byte, and the share of masked positions whose most likely token is correct."""
        nats = right = n_bytes = n_masked = 0.0
        with torch.no_grad():
            for batch in self._batches:
                loss = Masked().loss(network, self.dist.to_device(batch))
                nats += float(loss.total)
                right += loss.terms[ACCURACY]
                n_masked += len(batch.targets)
                n_bytes += float(self.token_bytes[batch.targets.numpy()].sum())
        nats, right, n_masked, n_bytes = self.dist.sum([nats, right, n_masked, n_bytes])
        return {BITS_PER_BYTE: nats / math.log(2) / n_bytes, MASKED_ACCURACY: right / n_masked}

    @cached_property
    def _batches(self) -> list[PackedBatch]:
        of: PackedDataset = dataclasses.replace(self.masked.dataset, seed=0, rank=0, world_size=1)
        masked = MaskedDataset(of, dataclasses.replace(self.masked.masking, noise="mask"))
        chunks = first_chunks(of.documents, of.context, self.n_tokens)
        mine = rank_microbatches(chunks, max(of.microbatch_tokens, of.context), self.dist)
        return [masked.collate(each, 0) for each in mine]


_N_SAMPLES, _N_TOKENS = 3, 48  # samples, and tokens of each


def train(recipe: Pretrain, folder: Path) -> PretrainRun:
    """Draw weights from the seed and run every step. Raises OutOfMemory before the first."""
    sizes = token_bytes(recipe.text.folder / TOKENIZER)
    check = MaskedCheck(
        _dataset(recipe, "validation"), sizes, recipe.validation_tokens, recipe.every, dist_of(recipe)
    )

    def init_network(dtype: str) -> CausalLM:
        return encoder.from_config(config_of(recipe, recipe.text), recipe.seed, dtype)

    return learn(recipe, init_network, Masked(recipe.z_loss), _dataset(recipe, "train"), check, folder)


def _dataset(recipe: Pretrain, split: Cut) -> MaskedDataset:
    return MaskedDataset(packed(recipe, split, recipe.context - END_TOKENS), masking_of(recipe))


def masking_of(recipe: Pretrain) -> TokenMasking:
    """How the tokens of this corpus are masked."""
    known, corpus = specials(recipe.text), recipe.text
    assert known.mask is not None  # the architecture has refused it
    special = frozenset(corpus.card.tokenizer.special.values())
    return TokenMasking(known.mask, known.end, corpus.n_vocabulary, special, recipe.mask_rate, recipe.noise)


def write(recipe: Pretrain, run: PretrainRun, out: Path) -> dict[str, str]:
    """Write weights, configuration, tokenizer, curve and samples. Returns the notes of the child's record."""
    prediction_notes = run.prediction_notes()
    write_weights(run, out)
    write_tokenizer(
        recipe.text.folder,
        out,
        single="{end} $A {end}",
        pair="{end} $A {end} $B:1 {end}:1",
        cls_token="{end}",
        sep_token="{end}",
        model_input_names=["input_ids", "attention_mask"],
    )
    write_samples(samples(recipe, run.network), out)
    metrics = run.metrics
    evaluations = [m.terms for m in metrics if BITS_PER_BYTE in m.terms]
    n_read, n_masked = sum(m.n_tokens for m in metrics), sum(m.n_learned for m in metrics)
    notes = {
        **weight_notes(run, f"{n_read:,} tokens read, {n_masked:,.0f} hidden"),
        "held-out gaps": f"{evaluations[-1][BITS_PER_BYTE]:.4f} bits a hidden byte, "
        f"{evaluations[-1][MASKED_ACCURACY]:.1%} right (evaluations: {len(evaluations)})",
    }
    return notes | prediction_notes | throughput_notes(recipe, run)


def samples(recipe: Pretrain, network: CausalLM) -> list[dict[str, str]]:
    """Beginnings of validation documents, masked, and filled with the likeliest tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(recipe.text.folder / TOKENIZER))
    documents, how = recipe.text.split("validation"), masking_of(recipe)
    rows = []
    for number in range(min(_N_SAMPLES, len(documents.lengths))):
        chunk = mask_chunk(documents.tokens(number)[:_N_TOKENS].astype(np.int64), how, [0, 0, number])
        with torch.no_grad():
            batch = collate_masked([chunk]).to(network.head.device)
            likeliest = network.logits(network.hidden(batch)).argmax(1).cpu().numpy()
        filled = chunk.shown.copy()
        filled[chunk.at] = likeliest
        n_right = int((likeliest == chunk.hidden).sum())
        rows.append(
            {
                "shown": tokenizer.decode(chunk.shown[1:-1].tolist(), skip_special_tokens=False),
                "said": tokenizer.decode(filled[1:-1].tolist(), skip_special_tokens=False),
                "right": f"{n_right} of {len(chunk.hidden)}",
            }
        )
    return rows
