"""Build a corpus of captioned images from its recipe: images, captions, shards; corpus.json last.

Promises: the same recipe over the same files gives the same bytes, for any number of threads and after any
number of kills. A folder is complete or does not exist. Every omitted image is counted, with its reason. A
repeated image with the same caption is taken once; equal captions are in one split.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import BadInput
from heredity.core.files import sync_folder, write_atomic
from heredity.core.readers import naming
from heredity.core.records import digest
from heredity.corpus import storage, tokenizer, workspace
from heredity.corpus.jobs import JobResult, finish, is_whole
from heredity.corpus.recipe import CorpusRecipe, ImageSettings
from heredity.corpus.sources import Input, SkippedDocument
from heredity.corpus.sources.images import CaptionedImage, ImagesSource
from heredity.corpus.storage import (
    SCHEMA,
    Cut,
    ImageCard,
    ImageShard,
    ImageSourceRow,
    PairRow,
    Shard,
    ShardWriter,
    TokenizerFacts,
    dtype_of,
)
from heredity.corpus.workspace import Nobody, Watch
from heredity.formats import images

_PART_BYTES = 16 << 20  # of the images of a part
_MAX_BUFFERED_PAIRS = 2048  # pairs of a part: as many are read again after a kill
T = TypeVar("T")
R = TypeVar("R")


class ReadPair(NamedTuple):
    """A pair as it was read, with its files."""

    pair: CaptionedImage
    image: images.ImageArray
    inputs: list[Input]


class _PairRange(NamedTuple):
    """Pairs of a source, from `low` to before `high`."""

    number: int
    source: int
    low: int
    high: int


@dataclass
class ImageJobs:
    """The images of a build, read in parts.

    pairs: per source, every image or the reason for its omission. inputs: the files of each, in that order.
    """

    recipe: CorpusRecipe
    how: ImageSettings
    workers: int
    watch: Watch
    pairs: list[list[CaptionedImage | SkippedDocument]] = field(default_factory=list)
    inputs: list[list[list[Input]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Find the images, and hash each file. Raises BadInput, UsageError."""
        for source in self.recipe.sources:
            assert isinstance(source, ImagesSource)
            self.pairs.append(list(source.pairs(self.recipe.root)))
        self._seen, self._all = 0, sum(map(len, self.pairs))
        for source, pairs in zip(self.recipe.sources, self.pairs, strict=True):
            assert isinstance(source, ImagesSource)
            self.inputs.append(list(self._each("hashing", _hashing(source), pairs)))

    def read(self, between: Path) -> None:
        """Read every part that no earlier build has read."""
        parts = self._parts()
        new = [part for part in parts if not is_whole(_record(between, part))]
        if n_old := len(parts) - len(new):
            self.watch.say(f"reading: {n_old:,} of {len(parts):,} parts are done already")
        self._seen, self._all = 0, sum(part.high - part.low for part in new)
        for part in new:
            pairs = self.pairs[part.source][part.low : part.high]
            arrays = list(self._each("reading", self._read_image, pairs))
            record = _record(between, part)
            files = record.with_suffix(".rgb"), record.with_suffix(".read")
            write_atomic(files[0], b"".join(each.tobytes() for each in arrays if each is not None))
            write_atomic(files[1], np.array([each is not None for each in arrays]).tobytes())
            finish(record, files, JobResult())

    def read_pairs(self, source: int, between: Path) -> Iterator[ReadPair | SkippedDocument]:
        """The pairs of a source as they were read, in order."""
        side = self.how.side
        for part in self._parts():
            if part.source != source:
                continue
            record = _record(between, part)
            raw: NDArray[np.uint8] = np.fromfile(record.with_suffix(".rgb"), np.uint8)
            arrays = iter(raw.reshape(-1, side, side, 3))
            is_read = np.fromfile(record.with_suffix(".read"), np.bool_)
            for i, could in zip(range(part.low, part.high), is_read, strict=True):
                pair = self.pairs[source][i]
                if isinstance(pair, SkippedDocument):
                    yield pair
                elif could:
                    yield ReadPair(pair, next(arrays), self.inputs[source][i])
                else:
                    yield SkippedDocument("unreadable")

    def _parts(self) -> list[_PairRange]:
        most = max(1, min(_MAX_BUFFERED_PAIRS, _PART_BYTES // (3 * self.how.side**2)))
        places = [
            (source, low, min(low + most, len(pairs)))
            for source, pairs in enumerate(self.pairs)
            for low in range(0, len(pairs), most)
        ]
        return [_PairRange(number, *place) for number, place in enumerate(places)]

    def _read_image(self, pair: CaptionedImage | SkippedDocument) -> images.ImageArray | None:
        if isinstance(pair, SkippedDocument):
            return None
        try:
            return images.read_image(Path(pair.path), self.how.side, self.how.fit, self.how.background)
        except images.UnreadableImage:
            return None

    def _each(self, doing: str, does: Callable[[T], R], rows: Iterable[T]) -> Iterator[R]:
        """Decode with several threads, in order, and report progress."""
        left = iter(rows)
        with ThreadPoolExecutor(self.workers) as pool:
            while some := list(islice(left, _MAX_BUFFERED_PAIRS)):
                for done in pool.map(does, some):
                    self._seen += 1
                    self.watch.at(doing, self._seen, self._all)
                    yield done


def _hashing(source: ImagesSource) -> Callable[[CaptionedImage | SkippedDocument], list[Input]]:
    return lambda pair: [] if isinstance(pair, SkippedDocument) else source.inputs_of(pair)


def _record(between: Path, part: _PairRange) -> Path:
    return between / f"{part.number:06}.done"


_BYTES = 1 << 28  # of a shard of images
_CUTS: tuple[Cut, ...] = ("train", "validation")


def build(recipe: CorpusRecipe, out: Path, workers: int = 1, watch: Watch | None = None) -> ImageCard:
    """Build the corpus into the new folder `out`.

    A build that was stopped or killed resumes from a hidden folder next to `out`. Raises BadInput and
    UsageError with file and line, and then leaves nothing behind. Raises Busy.
    """
    work = workspace.place_of(out)
    workspace.refuse_other(out, work.exists())
    images.library()
    tokenizer.library()
    assert recipe.images is not None
    with workspace.held(work), naming(recipe.path):
        parts = ImageJobs(recipe, recipe.images, workers, watch or Nobody())
        files = [[pairs, inputs] for pairs, inputs in zip(parts.pairs, parts.inputs, strict=True)]
        plan = workspace.plan(recipe, files)
        if out.exists():
            workspace.refuse_other(out, workspace.planned(work) == plan)
            return storage.decoded(out / storage.NAME, ImageCard)
        between = workspace.go_on(work, plan, parts.watch)
        parts.read(between)
        made = workspace.emptied(work / "corpus")
        card = _ImageBuild(recipe, parts, between, made).run()
        made.rename(out)
        sync_folder(out.parent)
        return card


@dataclass
class _ImageBuild:
    recipe: CorpusRecipe
    parts: ImageJobs
    between: Path
    made: Path
    captions: dict[Cut, list[str]] = field(default_factory=lambda: {cut: [] for cut in _CUTS})
    sources: list[ImageSourceRow] = field(default_factory=list)
    inputs: list[tuple[str, Input]] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=lambda: {"": 0})
    seen: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.how = self.parts.how
        self.writers = {cut: _ImageShardWriter(self.made, cut, self.how.side) for cut in _CUTS}

    def run(self) -> ImageCard:
        for number in range(len(self.recipe.sources)):
            self._source(number)
        for writer in self.writers.values():
            writer.close()
        why = Counter[str]()
        for row in self.sources:
            why.update(row.skipped)
        reasons = ", ".join(f"{name} {n:,}" for name, n in why.most_common()) or "there was none"
        if not any(self.captions.values()):
            raise BadInput(self.recipe.path, f"no image has a caption and can be read ({reasons}).")
        for cut in _CUTS:
            if not self.captions[cut] and (cut == "train" or self.recipe.shards.validation):
                raise BadInput(self.recipe.path, f"no pair is in the {cut} split. Change validation.")
        facts = self._tokenizer()
        return self._write(facts)

    def _source(self, number: int) -> None:
        source, inputs, n_pairs = self.recipe.sources[number], list[Input](), 0
        skipped = source.left_out(self.recipe.root)
        for read in self.parts.read_pairs(number, self.between):
            if not isinstance(read, SkippedDocument) and not self._is_new(read):
                read = SkippedDocument("duplicate")
            if isinstance(read, SkippedDocument):
                skipped[read.reason] += 1
                continue
            inputs += read.inputs
            n_pairs += 1
            label = self.classes.setdefault(read.pair.label, len(self.classes))
            if label >= 1 << 16:
                raise BadInput(self.recipe.path, "more than 65,535 classes. Leave out their column.")
            cut: Cut = (
                "validation"
                if (
                    int.from_bytes(hashlib.blake2b(read.pair.caption.encode(), digest_size=8).digest(), "big")
                    / 2.0**64
                )
                < self.recipe.shards.validation
                else "train"
            )
            self.writers[cut].add(read.image, label)
            self.captions[cut].append(read.pair.caption)
        self.inputs += [(source.name, each) for each in inputs]
        size, hashed = sum(each.bytes for each in inputs), digest([tuple(each) for each in inputs])
        out = dict(sorted(skipped.items()))
        self.sources.append(ImageSourceRow(source.name, "images", len(inputs), size, hashed, n_pairs, out))

    def _is_new(self, read: ReadPair) -> bool:
        key = hashlib.sha256(read.pair.caption.encode() + b"\0" + read.image.tobytes()).digest()
        is_new = key not in self.seen
        self.seen.add(key)
        return is_new

    # --- captions -------------------------------------------------------------------------------

    def _tokenizer(self) -> TokenizerFacts:
        settings, made = self.recipe.tokenizer, self.made
        if settings.folder:
            tokenizer.copy(self.recipe.root / settings.folder, made)
        else:
            trained = tokenizer.train(self.captions["train"], settings, self.recipe.path)
            tokenizer.write(trained, settings, made)
        words = tokenizer.load(made)
        self.end = tokenizer.end_of(made)
        self.tokens = {
            cut: [each.ids for each in words.encode_batch(self.captions[cut], add_special_tokens=False)]
            for cut in _CUTS
        }
        used = {token for cut in _CUTS for row in self.tokens[cut] for token in row}
        return tokenizer.facts(
            made,
            0 if settings.folder else sum(len(c.encode()) for c in self.captions["train"]),
            self._bytes_per_token("validation"),
            self._bytes_per_token("train") or 0.0,
            len(used) + 1,  # and the end token
        )

    def _bytes_per_token(self, cut: Cut) -> float | None:
        n = sum(map(len, self.tokens[cut]))
        return round(sum(len(c.encode()) for c in self.captions[cut]) / n, 4) if n else None

    # --- the card -------------------------------------------------------------------------------

    def _write(self, facts: TokenizerFacts) -> ImageCard:
        dtype = dtype_of(facts.vocabulary)
        card = ImageCard(
            schema=SCHEMA,
            name=self.recipe.name,
            kind="images",
            fingerprint="",
            recipe=self.recipe.settings(),
            side=self.how.side,
            fit=self.how.fit,
            background=self.how.background,
            sources=tuple(self.sources),
            classes=tuple(self.classes),
            tokenizer=facts,
            dtype=dtype,
            splits=tuple(self._split(cut) for cut in _CUTS),
            shards=tuple(shard for cut in _CUTS for shard in self.writers[cut].shards),
            captions=tuple(shard for cut in _CUTS for shard in self._captions(cut, dtype)),
            versions={name: version(name) for name in ("tokenizers", "pillow")},
        )
        return storage.write(self.made, card, self.inputs)

    def _captions(self, cut: Cut, dtype: str) -> list[Shard]:
        """Write all captions of a split into one shard, because they are short."""
        writer = ShardWriter(self.made, cut, dtype, 1 << 40)
        for row in self.tokens[cut]:
            writer.add(np.array([*row, self.end]), np.array([len(row) + 1]))
        writer.close()
        return writer.shards

    def _split(self, cut: Cut) -> PairRow:
        captions, n_tokens = self.captions[cut], sum(len(row) + 1 for row in self.tokens[cut])
        return PairRow(cut, len(captions), len(set(captions)), n_tokens)


class _ImageShardWriter:
    """Write one split's images and classes in the given order."""

    def __init__(self, folder: Path, split: Cut, side: int) -> None:
        self._folder, self._split = folder, split
        self._most = max(1, _BYTES // (3 * side * side))
        self._raw: list[bytes] = []
        self._labels: list[int] = []
        self.shards: list[ImageShard] = []

    def add(self, image: images.ImageArray, label: int) -> None:
        self._raw.append(image.tobytes())
        self._labels.append(label)
        if len(self._raw) >= self._most:
            self.close()

    def close(self) -> None:
        """Finish the open shard, if there is one."""
        if not self._raw:
            return
        name = f"{self._split}-{len(self.shards):05}"
        raw, labels = b"".join(self._raw), np.array(self._labels, "<u2").tobytes()
        write_atomic(self._folder / f"{name}.rgb", raw)
        write_atomic(self._folder / f"{name}.cls", labels)
        hashes = (hashlib.sha256(raw).hexdigest(), hashlib.sha256(labels).hexdigest())
        self.shards.append(ImageShard(f"{name}.rgb", self._split, len(self._raw), *hashes))
        self._raw, self._labels = [], []
