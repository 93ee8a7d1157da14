"""Train a dual encoder of images and captions: its parts for the loop, and its files.

Promises: the written tokenizer and image processor preprocess captions and images as the training did, so
that transformers reproduces its inputs.
Leaves to others: the settings (recipe.py), and the loop (train/loop.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heredity.core import registry
from heredity.core.errors import UsageError
from heredity.core.files import write_atomic
from heredity.corpus.images.reader import Pictures
from heredity.recipes._training_run import write_metrics
from heredity.recipes.pretrain import forecast
from heredity.recipes.pretrain.causal import PretrainRun, dist_of, learn, process_notes
from heredity.train.data.pairs import MEAN, STD, CaptionLayout, PairSampler
from heredity.train.models import dual
from heredity.train.models.architectures import Specials
from heredity.train.models.lora import FullFinetune
from heredity.train.objectives.contrastive import Contrastive
from heredity.train.validation.retrieval import TO_CAPTION, TO_PICTURE, ZERO_SHOT, RetrievalCheck

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain

_TOKENIZER, _CONFIG, _PICTURES = "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"
_SHIFT = 8  # an image is shifted by up to an eighth of its side


def train(recipe: Pretrain, folder: Path) -> PretrainRun:
    """Draw weights from the seed and run every step. Raises OutOfMemory before the first."""
    with forecast.checked_memory(recipe, dist_of(recipe)) as prediction:
        return _learn(recipe, folder)._replace(prediction=prediction)


def _learn(recipe: Pretrain, folder: Path) -> PretrainRun:
    corpus, dial, dist = recipe.pictures, recipe.dial, dist_of(recipe)
    if dial.batch < dist.world_size:
        raise UsageError(
            f"batch_size ({dial.batch} pairs) must be at least the number of processes ({dist.world_size}).",
            code="step-too-small",
        )
    built = registry.load("train.models.architectures", recipe.architecture)
    config = built.config(dial.shape, _specials(corpus))
    captions, shift = _captions(recipe), corpus.card.side // _SHIFT if recipe.shift else 0
    train, held_out = (corpus.split(name) for name in ("train", "validation"))
    source = PairSampler(train, captions, dial.batch, recipe.seed, shift, dist.rank, dist.world_size)
    validation = PairSampler(held_out, captions, dial.batch, 0)
    check = RetrievalCheck(validation, _classes(corpus), recipe.every, dist=dist)

    def init_network(dtype: str) -> dual.DualEncoder:
        return dual.from_config(config, recipe.seed, dtype)

    return learn(recipe, init_network, Contrastive(dist), source, check, folder)


def _specials(corpus: Pictures) -> Specials:
    facts = corpus.card.tokenizer
    return Specials(facts.end, facts.special.get("<|pad|>", facts.end))


def _captions(recipe: Pretrain) -> CaptionLayout:
    end, pad, _ = _specials(recipe.pictures)
    return CaptionLayout(end, pad, recipe.caption_tokens)


def _classes(corpus: Pictures) -> dict[int, NDArray[np.int64]]:
    """The names of classes as captions, without the name for no class."""
    from heredity.corpus import tokenizer

    words, end = tokenizer.load(corpus.folder), corpus.card.tokenizer.end
    named = {
        i: name.replace("_", " ").replace("-", " ") for i, name in enumerate(corpus.card.classes) if name
    }
    return {
        i: np.array([*words.encode(name, add_special_tokens=False).ids, end]) for i, name in named.items()
    }


def write(recipe: Pretrain, run: PretrainRun, out: Path) -> dict[str, str]:
    """Write weights, configuration, preprocessors and loss curve; return the notes of the run."""
    net, metrics, meter = run.network, run.metrics, run.meter
    predicted = run.prediction_notes()  # before anything is written, which takes memory of its own
    corpus = recipe.pictures
    FullFinetune().save(net, out)
    _write_tokenizer(recipe, out)
    write_atomic(out / _PICTURES, json.dumps(processor(recipe), indent=2).encode() + b"\n")
    write_metrics(metrics, out)
    shape, last = recipe.dial.shape, metrics[-1]
    n_pairs, terms = sum(m.n_learned for m in metrics), last.terms
    n_held = len(corpus.split("validation"))
    ways = "; ".join(
        f"{way} {terms[f'{way} @1']:.1%}, {terms[f'{way} @5']:.1%}" for way in (TO_CAPTION, TO_PICTURE)
    )
    notes = {
        "dtype": str(net.model.dtype).removeprefix("torch."),
        "parameters": f"{sum(p.numel() for p in net.model.parameters()):,}",
        "loss": f"{metrics[0].loss:.4f} in the first step, {last.loss:.4f} in the last",
        "held-out recall": f"@1 and @5 of {n_held:,} pairs: {ways}",
        "training": f"{len(metrics)} steps, {n_pairs:,.0f} pairs read, "
        f"{n_pairs / len(corpus.split('train')):.2f} epochs",
    }
    if ZERO_SHOT in terms:
        notes["zero-shot"] = f"{terms[ZERO_SHOT]:.1%} of held-out classes by name; {_commonest(corpus)}"
    if n_cut := _n_cut(corpus, recipe.caption_tokens):
        notes["cut"] = f"{n_cut:,} captions at {recipe.caption_tokens} tokens"
    if meter.last.n_total:
        notes["speed"] = f"{meter.last.per_second / shape.context:,.0f} pairs/s"
    return notes | predicted | process_notes(recipe)


def _commonest(corpus: Pictures) -> str:
    """The accuracy of always answering the most common class."""
    labels = corpus.split("validation").labels
    counts = np.bincount(labels[labels > 0])
    return f"the commonest of {int((counts > 0).sum())} is {counts.max() / counts.sum():.1%}"


def _n_cut(corpus: Pictures, longest: int) -> int:
    return int((np.diff(corpus.split("train").starts) > longest).sum())


def _write_tokenizer(recipe: Pretrain, out: Path) -> None:
    """The corpus's tokenizer; it ends a caption and, asked to truncate, cuts it as the training did."""
    from tokenizers import Tokenizer, processors

    folder = recipe.pictures.folder
    config: dict[str, Any] = json.loads((folder / _CONFIG).read_text("utf-8"))
    made, end = Tokenizer.from_file(str(folder / _TOKENIZER)), config["eos_token"]
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, made.token_to_id(end))]
    )
    made.enable_truncation(recipe.caption_tokens)
    config |= {"model_max_length": recipe.caption_tokens, "model_input_names": ["input_ids"]}
    config.pop("chat_template", None)
    write_atomic(out / _TOKENIZER, made.to_str(pretty=False).encode())
    write_atomic(out / _CONFIG, json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")


def processor(recipe: Pretrain) -> dict[str, Any]:
    """preprocessor_config.json, as transformers' image processors read it."""
    card = recipe.pictures.card
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
        "background": card.background,  # which transformers' own leave black
    }
