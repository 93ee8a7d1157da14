"""A corpus of pictures from its recipe: read, caption words, shards; corpus.json last.

Promises: the same recipe over the same files gives the same bytes, whatever the number of threads, and
however often it was killed on its way; a folder is there whole or not at all; every picture that is left out
is counted, with its reason; the same picture with the same caption comes once; equal captions are in one
split.
Leaves to others: where pictures are (corpus/sources/images.py), reading them (_parts.py), and what is kept
of a build that was killed (corpus/making.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from heredity.errors import UsageError
from heredity.records import digest, encode
from heredity.store import hash_file, sync_folder, write_atomic
from heredity.tables import naming
from heredity.train.corpus import checked, making, tokenizer
from heredity.train.corpus.card import Cut, TokenizerFacts
from heredity.train.corpus.checked import NAME
from heredity.train.corpus.making import Nobody, Watch
from heredity.train.corpus.recipe import Recipe
from heredity.train.corpus.shards import ShardWriter
from heredity.train.corpus.sources import Input, Skipped
from heredity.train.pictures import pixels
from heredity.train.pictures._parts import Parts, Read
from heredity.train.pictures.card import SCHEMA, PairRow, PictureCard, PictureRow, PictureShard, fingerprint

_BYTES = 1 << 28  # of a shard of pictures
_CUTS: tuple[Cut, ...] = ("train", "validation")


def build(recipe: Recipe, out: Path, workers: int = 1, watch: Watch | None = None) -> PictureCard:
    """Build the corpus into the folder `out`, which must not be there.

    One that was stopped or killed goes on, in a hidden folder beside `out`. Raises BadInput and UsageError,
    with file and line where there is one; nothing is left behind then. Raises Busy.
    """
    work = making.place_of(out)
    making.refuse_other(out, work.exists())
    pixels.library()
    assert recipe.picture is not None
    with making.held(work), naming(recipe.path):
        parts = Parts(recipe, recipe.picture, workers, watch or Nobody())
        files = [[found, inputs] for found, inputs in zip(parts.found, parts.inputs, strict=True)]
        plan = making.plan(recipe, files)
        if out.exists():
            making.refuse_other(out, making.planned(work) == plan)
            return checked.decoded(out / NAME, PictureCard)
        between = making.go_on(work, plan, parts.watch)
        parts.read(between)
        made = making.emptied(work / "corpus")
        card = _Build(recipe, parts, between, made).run()
        made.rename(out)
        sync_folder(out.parent)
        return card


@dataclass
class _Build:
    recipe: Recipe
    parts: Parts
    between: Path
    made: Path
    captions: dict[Cut, list[str]] = field(default_factory=lambda: {cut: [] for cut in _CUTS})
    sources: list[PictureRow] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=lambda: {"": 0})
    seen: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.how = self.parts.how
        self.writers = {cut: _Pictures(self.made, cut, self.how.side) for cut in _CUTS}

    def run(self) -> PictureCard:
        for number in range(len(self.recipe.sources)):
            self._source(number)
        for writer in self.writers.values():
            writer.close()
        self._refuse_empty()
        facts = self._tokenizer()
        return self._write(facts)

    def _source(self, number: int) -> None:
        source, inputs, n_pairs = self.recipe.sources[number], list[Input](), 0
        skipped = source.left_out(self.recipe.root)
        for read in self.parts.of(number, self.between):
            if not isinstance(read, Skipped) and not self._is_new(read):
                read = Skipped("duplicate")
            if isinstance(read, Skipped):
                skipped[read.reason] += 1
                continue
            inputs += read.inputs
            n_pairs += 1
            self._add(read)
        self.inputs += [encode({"source": source.name, **each._asdict()}) + b"\n" for each in inputs]
        size, hashed = sum(each.bytes for each in inputs), digest([tuple(each) for each in inputs])
        out = dict(sorted(skipped.items()))
        self.sources.append(PictureRow(source.name, "images", len(inputs), size, hashed, n_pairs, out))

    def _is_new(self, read: Read) -> bool:
        key = hashlib.sha256(read.pair.caption.encode() + b"\0" + read.picture.tobytes()).digest()
        is_new = key not in self.seen
        self.seen.add(key)
        return is_new

    def _add(self, read: Read) -> None:
        label = self.classes.setdefault(read.pair.label, len(self.classes))
        if label >= 1 << 16:
            raise UsageError(f"{self.recipe.path}: more than 65,535 classes. Leave the column of them out.")
        cut: Cut = "validation" if _draw(read.pair.caption) < self.recipe.shards.validation else "train"
        self.writers[cut].add(read.picture, label)
        self.captions[cut].append(read.pair.caption)

    def _refuse_empty(self) -> None:
        why = Counter[str]()
        for row in self.sources:
            why.update(row.skipped)
        said = ", ".join(f"{name} {n:,}" for name, n in why.most_common()) or "there was none"
        if not any(self.captions.values()):
            raise UsageError(f"{self.recipe.path}: no picture has a caption and can be read ({said}).")
        for cut in _CUTS:
            if not self.captions[cut] and (cut == "train" or self.recipe.shards.validation):
                raise UsageError(f"{self.recipe.path}: no pair is in the {cut} split. Change validation.")

    # --- captions -------------------------------------------------------------------------------

    def _tokenizer(self) -> TokenizerFacts:
        settings, made = self.recipe.tokenizer, self.made
        if settings.folder:
            tokenizer.copy(self.recipe.root / settings.folder, made)
        else:
            trained = tokenizer.train(self.captions["train"], settings, self.recipe.path)
            tokenizer.write(trained, settings, made)
        words = tokenizer.load(made)
        self.end, self.n_vocabulary = tokenizer.end_of(made), words.get_vocab_size()
        self.tokens = {
            cut: [each.ids for each in words.encode_batch(self.captions[cut], add_special_tokens=False)]
            for cut in _CUTS
        }
        return TokenizerFacts(
            sha256=hash_file(made / "tokenizer.json"),
            config_sha256=hash_file(made / "tokenizer_config.json"),
            vocabulary=self.n_vocabulary,
            split=tokenizer.split_of(made),
            special=tokenizer.special_of(made),
            end=self.end,
            sample_bytes=0 if settings.folder else sum(len(c.encode()) for c in self.captions["train"]),
            bytes_per_token=self._bytes_per_token("validation"),
            train_bytes_per_token=self._bytes_per_token("train") or 0.0,
            unused=self.n_vocabulary - len({t for cut in _CUTS for row in self.tokens[cut] for t in row}) - 1,
        )

    def _bytes_per_token(self, cut: Cut) -> float | None:
        n = sum(map(len, self.tokens[cut]))
        return round(sum(len(c.encode()) for c in self.captions[cut]) / n, 4) if n else None

    # --- what is written down -------------------------------------------------------------------

    def _write(self, facts: TokenizerFacts) -> PictureCard:
        dtype: Any = "uint16" if facts.vocabulary <= 1 << 16 else "uint32"
        card = PictureCard(
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
        card = checked.sealed(msgspec.structs.replace(card, fingerprint=fingerprint(card)))
        write_atomic(self.made / "inputs.jsonl", b"".join(self.inputs))
        write_atomic(self.made / NAME, msgspec.json.format(encode(card), indent=2) + b"\n")
        return card

    def _captions(self, cut: Cut, dtype: str) -> list[Any]:
        """All in one shard: a caption is short."""
        writer = ShardWriter(self.made, cut, dtype, 1 << 40)
        for row in self.tokens[cut]:
            writer.add(np.array([*row, self.end]), np.array([len(row) + 1]))
        writer.close()
        return writer.shards

    def _split(self, cut: Cut) -> PairRow:
        said, n_tokens = self.captions[cut], sum(len(row) + 1 for row in self.tokens[cut])
        return PairRow(cut, len(said), len(set(said)), n_tokens)


def _draw(caption: str) -> float:
    """From 0 to 1, by a hash of the caption."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "big") / 2.0**64


class _Pictures:
    """Writes one split's pictures and classes in the order in which they come."""

    def __init__(self, folder: Path, split: Cut, side: int) -> None:
        self._folder, self._split = folder, split
        self._room = max(1, _BYTES // (3 * side * side))
        self._raw: list[bytes] = []
        self._labels: list[int] = []
        self.shards: list[PictureShard] = []

    def add(self, picture: pixels.Picture, label: int) -> None:
        self._raw.append(picture.tobytes())
        self._labels.append(label)
        if len(self._raw) >= self._room:
            self.close()

    def close(self) -> None:
        """End the open shard, if there is one."""
        if not self._raw:
            return
        name = f"{self._split}-{len(self.shards):05}"
        raw, labels = b"".join(self._raw), np.array(self._labels, "<u2").tobytes()
        write_atomic(self._folder / f"{name}.rgb", raw)
        write_atomic(self._folder / f"{name}.cls", labels)
        hashes = (hashlib.sha256(raw).hexdigest(), hashlib.sha256(labels).hexdigest())
        self.shards.append(PictureShard(f"{name}.rgb", self._split, len(self._raw), *hashes))
        self._raw, self._labels = [], []
