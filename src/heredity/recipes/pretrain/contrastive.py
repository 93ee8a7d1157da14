"""Pre-train a dual encoder of images and captions: its data, its loss, and the files and notes of the child.

Promises: the written tokenizer and image processor preprocess captions and images as the training did, so
that transformers reproduces its inputs.
Leaves to others: the settings (recipe.py), and what all objectives share (training.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import UsageError
from heredity.core.files import write_atomic
from heredity.corpus.images.reader import ImageCorpus
from heredity.recipes.pretrain.training import (
    PretrainRun,
    config_of,
    dist_of,
    learn,
    process_notes,
    specials,
    weight_notes,
    write_tokenizer,
    write_weights,
)
from heredity.train.data.pairs import MEAN, STD, CaptionLayout, PairSampler
from heredity.train.models import dual
from heredity.train.objectives.contrastive import Contrastive
from heredity.train.validation.retrieval import TO_CAPTION, TO_PICTURE, ZERO_SHOT, RetrievalCheck

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain

_PREPROCESSOR = "preprocessor_config.json"
_SHIFT = 8  # an image is shifted by up to an eighth of its side


def train(recipe: Pretrain, folder: Path) -> PretrainRun:
    """Draw weights from the seed and run every step. Raises OutOfMemory before the first."""
    corpus, dial, dist = recipe.images, recipe.dial, dist_of(recipe)
    if dial.batch < dist.world_size:
        raise UsageError(
            f"batch_size ({dial.batch} pairs) must be at least the number of processes ({dist.world_size}).",
            code="step-too-small",
        )
    config = config_of(recipe, corpus)
    captions, shift = _captions(recipe), corpus.card.side // _SHIFT if recipe.shift else 0
    training, validation = (corpus.split(name) for name in ("train", "validation"))
    source = PairSampler(training, captions, dial.batch, recipe.seed, shift, dist.rank, dist.world_size)
    held_out = PairSampler(validation, captions, dial.batch, 0)
    check = RetrievalCheck(held_out, _classes(corpus), recipe.every, dist=dist)

    def init_network(dtype: str) -> dual.DualEncoder:
        return dual.from_config(config, recipe.seed, dtype)

    return learn(recipe, init_network, Contrastive(dist), source, check, folder)


def _captions(recipe: Pretrain) -> CaptionLayout:
    end, pad, _ = specials(recipe.images)
    return CaptionLayout(end, pad, recipe.caption_tokens)


def _classes(corpus: ImageCorpus) -> dict[int, NDArray[np.int64]]:
    """(class -> tokens) The names of classes as captions, without that of "no class"."""
    from heredity.corpus import tokenizer

    words, end = tokenizer.load(corpus.folder), corpus.card.tokenizer.end
    named = {
        i: name.replace("_", " ").replace("-", " ") for i, name in enumerate(corpus.card.classes) if name
    }
    return {
        i: np.array([*words.encode(name, add_special_tokens=False).ids, end]) for i, name in named.items()
    }


def write(recipe: Pretrain, run: PretrainRun, out: Path) -> dict[str, str]:
    """Write weights, configuration, tokenizer, image processor and curve. Returns the notes of the child's
    record."""
    prediction_notes = run.prediction_notes()
    corpus, n_tokens = recipe.images, recipe.caption_tokens
    write_weights(run, out)
    write_tokenizer(
        corpus.folder,
        out,
        single="$A {end}",
        truncate=n_tokens,
        model_max_length=n_tokens,
        model_input_names=["input_ids"],
    )
    write_atomic(out / _PREPROCESSOR, json.dumps(processor(recipe), indent=2).encode() + b"\n")
    metrics, meter, terms = run.metrics, run.meter, run.metrics[-1].terms
    n_pairs, n_held_out = sum(m.n_learned for m in metrics), len(corpus.split("validation"))
    ways = "; ".join(
        f"{way} {terms[f'{way} @1']:.1%}, {terms[f'{way} @5']:.1%}" for way in (TO_CAPTION, TO_PICTURE)
    )
    notes = {
        **weight_notes(run, f"{n_pairs:,.0f} pairs read, {n_pairs / len(corpus.split('train')):.2f} epochs"),
        "held-out recall": f"@1 and @5 of {n_held_out:,} pairs: {ways}",
    }
    if ZERO_SHOT in terms:
        notes["zero-shot"] = f"{terms[ZERO_SHOT]:.1%} of held-out classes by name; {_commonest(corpus)}"
    if n_cut := _n_cut(corpus, n_tokens):
        notes["cut"] = f"{n_cut:,} of the captions, at {n_tokens} tokens"
    if meter.last.n_total:
        notes["speed"] = f"{meter.last.per_second / recipe.dial.shape.context:,.0f} pairs/s"
    return notes | prediction_notes | process_notes(recipe)


def _commonest(corpus: ImageCorpus) -> str:
    """The accuracy of always answering the most common class."""
    labels = corpus.split("validation").labels
    counts = np.bincount(labels[labels > 0])
    return f"the commonest of {int((counts > 0).sum())} is {counts.max() / counts.sum():.1%}"


def _n_cut(corpus: ImageCorpus, n_tokens: int) -> int:
    return int((np.diff(corpus.split("train").starts) > n_tokens).sum())


def processor(recipe: Pretrain) -> dict[str, object]:
    """preprocessor_config.json, as transformers' image processors read it."""
    card = recipe.images.card
    square = {"height": card.side, "width": card.side}
    is_cropped = card.fit == "crop"
    kind = {"clip": "CLIP", "siglip": "Siglip"}[recipe.architecture]
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": card.side} if is_cropped else square,
        "resample": 3,  # bicubic
        "do_center_crop": is_cropped,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
        "background": card.background,  # transparent pixels; transformers makes them black
    }
