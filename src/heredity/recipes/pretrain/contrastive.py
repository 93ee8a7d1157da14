"""Pre-train a dual encoder of images and captions: its data, its loss, and the files and notes of the child.

Promises: the written tokenizer and image processor preprocess captions and images as the training did, so
that transformers reproduces its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from heredity.core.errors import UsageError
from heredity.core.files import write_atomic
from heredity.corpus.storage import ImageCorpus, ImageSplit
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
from heredity.train.distributed import all_gather, rank_span
from heredity.train.loop import SINGLE_PROCESS, DistContext, epoch_permutation
from heredity.train.models import dual
from heredity.train.models.causal_lm import CausalLM, PackedBatch
from heredity.train.models.dual import DualEncoder, PairEmbeddings
from heredity.train.objectives import Loss

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain

MEAN = STD = 0.5  # of pixels, which are from 0 to 1


@dataclass(frozen=True)
class CaptionLayout:
    """How captions become rows: cut at `longest` tokens, the last one the end token; padded with `pad`."""

    end: int
    pad: int
    longest: int

    def row(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of one caption, which ends with its end token: (longest,)."""
        row = np.full(self.longest, self.pad, dtype=np.int64)
        kept = ids[: self.longest]
        row[: len(kept)] = kept
        row[len(kept) - 1] = self.end
        return row


@dataclass(frozen=True)
class PairSampler:
    """`batch` pairs per step, their images shifted by up to `shift` pixels.

    rank, world_size: each process gets its share of a step.
    """

    pairs: ImageSplit
    captions: CaptionLayout
    batch: int
    seed: int
    shift: int = 0
    rank: int = 0
    world_size: int = 1
    same: NDArray[np.int64] = field(init=False)  # (pairs,) the first pair with the same caption

    def __post_init__(self) -> None:
        first: dict[bytes, int] = {}
        rows = [self.pairs.caption(i).tobytes() for i in range(len(self.pairs))]
        same = np.array([first.setdefault(row, i) for i, row in enumerate(rows)], np.int64)
        object.__setattr__(self, "same", same)

    def batches(self, step: int) -> list[PackedBatch]:
        """The batch of a step, counted from 0."""
        n, places = len(self.pairs), range(step * self.batch, (step + 1) * self.batch)
        numbers = [int(epoch_permutation(self.seed, place // n, n)[place % n]) for place in places]
        draws = np.random.default_rng([self.seed, step])
        moves = draws.integers(-self.shift, self.shift + 1, size=(len(numbers), 2))
        low, high = rank_span(self.batch, self.rank, self.world_size)
        mine = self.collate(numbers[low:high], moves[low:high])
        same = torch.from_numpy(self.same[numbers])
        return [mine._replace(targets=same, at=torch.arange(low, high))]

    def collate(self, numbers: Sequence[int], moves: NDArray[np.int64] | None = None) -> PackedBatch:
        """Pairs as one batch. targets: equal for equal captions. at: the places of these pairs."""
        moves = np.zeros((len(numbers), 2), np.int64) if moves is None else moves
        images = [shift_image(self.pairs.image(i), *m) for i, m in zip(numbers, moves.tolist(), strict=True)]
        rows = np.stack([self.captions.row(self.pairs.caption(i)) for i in numbers])
        n, longest = rows.shape
        return PackedBatch(
            torch.from_numpy(rows.reshape(-1)),
            torch.arange(longest).repeat(n),
            (longest,) * n,
            torch.arange(n),
            torch.from_numpy(self.same[list(numbers)]),
            torch.arange(n),
            images=to_pixels(np.stack(images)),
        )


def shift_image(image: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    """Shift an image (side, side, 3) and repeat its edge."""
    if not down and not right:
        return image
    side = np.arange(len(image))
    rows, columns = (np.clip(side - by, 0, len(image) - 1) for by in (down, right))
    return image[rows][:, columns]


def to_pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """Images as network input: uint8 (images, side, side, 3) -> float (images, 3, side, side)."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
    return (pixels / 255 - MEAN) / STD


CORRECT_PAIRS = "paired"


@dataclass(frozen=True)
class Contrastive:
    """The softmax loss of CLIP, or the sigmoid loss of SigLIP, depending on the network."""

    dist: DistContext = SINGLE_PROCESS

    def loss(self, network: CausalLM, batch: PackedBatch) -> Loss:
        """Summed over the batch's pairs. A metric counts images whose nearest caption is their own."""
        assert isinstance(network, DualEncoder)
        own, mine, n = batch.at, network.embed(batch), len(batch.targets)
        captions = all_gather(mine.captions, n, self.dist)
        scores = network.similarities(PairEmbeddings(mine.images, captions))
        is_own = torch.arange(n, device=own.device) == own[:, None]
        is_open = (batch.targets[own, None] == batch.targets) & ~is_own
        right = float((scores.detach().masked_fill(is_open, -torch.inf).argmax(1) == own).sum())
        if network.is_sigmoid:
            each = -functional.logsigmoid(torch.where(is_own, scores, -scores))
            return Loss(each.masked_fill(is_open, 0.0).sum(), {CORRECT_PAIRS: right})
        back = scores.T
        if not self.dist.is_single_process:
            images = all_gather(mine.images, n, self.dist)
            back = network.similarities(PairEmbeddings(images, mine.captions)).T
        over = [each.masked_fill(is_open, -torch.inf) for each in (scores, back)]
        total = sum(functional.cross_entropy(each, own, reduction="sum") for each in over)
        return Loss(torch.as_tensor(total) / 2, {CORRECT_PAIRS: right})

    def weight(self, batch: PackedBatch) -> float:
        """The number of pairs."""
        return float(batch.n_documents)


TO_CAPTION, TO_PICTURE, ZERO_SHOT = "picture to caption", "caption to picture", "zero-shot"
_ROWS = 256  # pairs at once


@dataclass(frozen=True)
class RetrievalCheck:
    """Evaluates the first `most` held-out pairs, every `every` steps.

    classes: class label -> the tokens of its name, as a caption.
    """

    steps: PairSampler
    classes: dict[int, NDArray[np.int64]]
    every: int
    most: int = 2000
    dist: DistContext = SINGLE_PROCESS

    def evaluate(self, network: CausalLM) -> dict[str, float]:
        """Recall at 1 and 5 in both directions, and zero-shot accuracy if the images have classes."""
        assert isinstance(network, DualEncoder)
        n = min(self.most, len(self.steps.pairs))
        with torch.no_grad():
            parts = [
                network.embed(self.dist.to_device(self.steps.collate(list(rows))))
                for rows in rank_rows(n, self.dist)
            ]
            mine = [torch.cat(each) for each in zip(*parts, strict=True)]
            whole = mine if n < self.dist.world_size else [all_gather(each, n, self.dist) for each in mine]
            embeddings = PairEmbeddings(*(each.cpu() for each in whole))
            near = embeddings.images @ embeddings.captions.T
            fits = torch.from_numpy(self.steps.same[:n, None] == self.steps.same[None, :n])
            return (
                _recall(near, fits, TO_CAPTION) | _recall(near.T, fits, TO_PICTURE)
                | self._zero_shot(network, embeddings.images)
            )  # fmt: skip

    def _zero_shot(self, network: DualEncoder, images: torch.Tensor) -> dict[str, float]:
        labels = torch.from_numpy(self.steps.pairs.labels[: len(images)])
        names = sorted(set(labels.tolist()) & set(self.classes))
        if len(names) < 2:
            return {}
        rows = torch.from_numpy(np.stack([self.steps.captions.row(self.classes[name]) for name in names]))
        has_class = torch.isin(labels, torch.tensor(names))
        nearest = (images[has_class] @ network.embed_captions(rows.to(self.dist.device)).cpu().T).argmax(1)
        return {ZERO_SHOT: float((torch.tensor(names)[nearest] == labels[has_class]).float().mean())}


def rank_rows(n: int, dist: DistContext) -> list[range]:
    """This process's batches of `n` rows; all rows if there are fewer than processes.

    Every process has the same number of batches: with sharded weights all compute, or none.
    """
    rank, world_size = (dist.rank, dist.world_size) if n >= dist.world_size else (0, 1)
    low, high = rank_span(n, rank, world_size)
    times = -(-n // (world_size * _ROWS))
    cuts = [rank_span(high - low, i, times) for i in range(times)]
    return [range(low + first, low + behind) for first, behind in cuts]


def _recall(near: torch.Tensor, fits: torch.Tensor, what: str) -> dict[str, float]:
    """Recall at 1 and 5, from similarities and matches (rows, columns)."""
    recalls = {}
    for k in (1, 5):
        best = near.topk(min(k, near.shape[1]), dim=1).indices
        recalls[f"{what} @{k}"] = float(fits.gather(1, best).any(1).float().mean())
    return recalls


_PREPROCESSOR = "preprocessor_config.json"
_SHIFT = 8  # an image is shifted by up to an eighth of its side


def train(recipe: Pretrain, folder: Path) -> PretrainRun:
    """Draw weights from the seed and run every step. Raises OutOfMemory before the first."""
    corpus, dial, dist = recipe.images, recipe.dial, dist_of(recipe)
    if dial.batch < dist.world_size:
        raise UsageError(
            f"batch_size ({dial.batch} pairs) must be at least the number of processes ({dist.world_size})."
        )
    config = config_of(recipe, corpus)
    end, pad, _ = specials(recipe.images)
    captions, shift = (
        CaptionLayout(end, pad, recipe.caption_tokens),
        corpus.card.side // _SHIFT if recipe.shift else 0,
    )
    training, validation = (corpus.split(name) for name in ("train", "validation"))
    source = PairSampler(training, captions, dial.batch, recipe.seed, shift, dist.rank, dist.world_size)
    held_out = PairSampler(validation, captions, dial.batch, 0)
    check = RetrievalCheck(held_out, _classes(corpus), recipe.every, dist=dist)

    def init_network(dtype: str) -> dual.DualEncoder:
        return dual.from_config(config, recipe.seed, dtype)

    return learn(recipe, init_network, Contrastive(dist), source, check, folder)


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
    if n_cut := int((np.diff(corpus.split("train").starts) > n_tokens).sum()):
        notes["cut"] = f"{n_cut:,} of the captions, at {n_tokens} tokens"
    if meter.last.n_total:
        notes["speed"] = f"{meter.last.per_second / recipe.dial.shape.context:,.0f} pairs/s"
    return notes | prediction_notes | process_notes(recipe)


def _commonest(corpus: ImageCorpus) -> str:
    """The accuracy of always answering the most common class."""
    labels = corpus.split("validation").labels
    counts = np.bincount(labels[labels > 0])
    return f"the commonest of {int((counts > 0).sum())} is {counts.max() / counts.sum():.1%}"


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
