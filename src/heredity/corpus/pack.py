"""Decide which documents go into which split, how often and in which order, and write the shards.

Promises: documents keep the order of the recipe's sources and of their files. A repeated document comes
again in a second round; canaries are at the end of the training split.
Leaves to others: how often each document comes (mixture.py), and the files (shards.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import BadInput
from heredity.corpus import _tables as tables
from heredity.corpus import mixture
from heredity.corpus.canaries import Planted
from heredity.corpus.card import CanaryRow, Cut, Dtype, MixtureRow, Shard, SplitRow
from heredity.corpus.jobs import JobFolder
from heredity.corpus.recipe import CorpusRecipe
from heredity.corpus.shards import ShardWriter

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Packed:
    """The contents of the shards. seen: (token,) how often each occurs."""

    shards: tuple[Shard, ...]
    splits: tuple[SplitRow, ...]
    mixture: tuple[MixtureRow, ...]
    canaries: tuple[CanaryRow, ...]
    seen: Ints
    dtype: Dtype

    def bytes_per_token(self, split: Cut) -> float | None:
        """Bytes per token of a split's text. End tokens have no bytes and are not counted."""
        row = next(row for row in self.splits if row.split == split)
        n = row.tokens - row.documents
        return round(row.bytes / n, 4) if n else None


class TokenizedJob(NamedTuple):
    """The documents of one job, cut into tokens."""

    source: int
    place: JobFolder


def pack(
    recipe: CorpusRecipe, jobs: Sequence[TokenizedJob], planted: Sequence[Planted], dtype: Dtype, out: Path
) -> Packed:
    """Write both splits' shards into `out`. Raises UsageError if a split is empty or a source too small."""
    return _Packing(recipe, jobs, planted, dtype, out).packed()


@dataclass
class _Packing:
    recipe: CorpusRecipe
    jobs: Sequence[TokenizedJob]
    planted: Sequence[Planted]
    dtype: Dtype
    out: Path
    seen: Ints = field(default_factory=lambda: np.zeros(1, np.int64))

    def packed(self) -> Packed:
        self._refuse_empty()
        stocks = [self._stock(number) for number in range(len(self.recipe.sources))]
        counts = mixture.taken(stocks, self.recipe.mixture.tokens)
        train, validation = self._writer("train"), self._writer("validation")
        n_bytes = sum(self._write(train, chosen) for chosen in self._rounds(counts))
        canaries = self._plant(train)
        n_bytes += sum(each.n_bytes * each.repeats for each in self.planted)
        n_held_out = self._write(validation, [job.place.get("is_held_out") for job in self.jobs])
        for writer in (train, validation):
            writer.close()
        splits = (_row("train", train, n_bytes), _row("validation", validation, n_held_out))
        mixed = tuple(_mixed(stock, taken) for stock, taken in zip(stocks, counts, strict=True))
        return Packed(
            (*train.shards, *validation.shards), splits, mixed, tuple(canaries), self.seen, self.dtype
        )

    def _writer(self, split: Cut) -> ShardWriter:
        return ShardWriter(self.out, split, self.dtype, self.recipe.shards.tokens)

    def _refuse_empty(self) -> None:
        held = np.concatenate([job.place.get("is_held_out") for job in self.jobs])
        share, where = self.recipe.shards.validation, self.recipe.path
        if share and not held.any():
            raise BadInput(
                where,
                f"none of {len(held):,} documents falls into the validation split at a share of"
                f" {share:g}. Raise validation in [shards], or give more documents.",
            )
        if held.all():
            raise BadInput(
                where,
                f"all {len(held):,} documents fall into the validation split at a share of"
                f" {share:g}, none is left to learn. Lower validation in [shards], or give more documents.",
            )

    def _stock(self, number: int) -> mixture.Stock:
        source = self.recipe.sources[number]
        lengths, order = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        for owner, place in self.jobs:
            if owner == number:
                learned = ~place.get("is_held_out")
                lengths.append(place.get("token_lengths")[learned])
                order.append(place.get("draws")[learned])
        salt = tables.mix(np.array([self.recipe.seed], np.uint64))
        drawn = tables.mix(np.concatenate(order) ^ salt)
        return mixture.Stock(source.name, source.weight, source.repeat, np.concatenate(lengths), drawn)

    def _rounds(self, counts: list[Ints]) -> list[list[Mask]]:
        """The documents of each round, for each job, as masks."""
        per_job = []
        at = [0] * len(counts)
        for owner, place in self.jobs:
            learned = ~place.get("is_held_out")
            n = int(learned.sum())
            often = np.zeros(len(learned), np.int64)
            often[learned] = counts[owner][at[owner] : at[owner] + n]
            at[owner] += n
            per_job.append(often)
        rounds = max((int(often.max()) for often in per_job if len(often)), default=0)
        return [[often > number for often in per_job] for number in range(rounds)]

    def _write(self, writer: ShardWriter, chosen: list[Mask]) -> int:
        """Write the chosen documents of every job. Returns the bytes of their text."""
        n_bytes = 0
        for (_, place), mask in zip(self.jobs, chosen, strict=True):
            if mask.any():
                lengths = place.get("token_lengths")
                tokens = place.get("tokens")[np.repeat(mask, lengths)]
                writer.add(tokens, lengths[mask])
                self._see(tokens)
                n_bytes += int(place.get("sizes")[mask].sum())
        return n_bytes

    def _plant(self, writer: ShardWriter) -> list[CanaryRow]:
        rows = []
        for each in self.planted:
            first = writer.documents
            tokens = np.array(each.tokens * each.repeats, self.dtype)
            writer.add(tokens, np.full(each.repeats, len(each.tokens), np.int64))
            self._see(tokens)
            rows.append(CanaryRow(each.text, each.secret, each.repeats, len(each.tokens), first))
        return rows

    def _see(self, tokens: NDArray[Any]) -> None:
        found = np.bincount(tokens, minlength=len(self.seen))
        found[: len(self.seen)] += self.seen
        self.seen = found


def _row(split: Cut, writer: ShardWriter, n_bytes: int) -> SplitRow:
    return SplitRow(split, writer.documents, writer.tokens, n_bytes)


def _mixed(stock: mixture.Stock, taken: Ints) -> MixtureRow:
    n = int((taken * stock.lengths).sum())
    there = stock.tokens
    weight = stock.weight if stock.weight is not None else float(there)
    return MixtureRow(stock.name, weight, there, n, int(taken.sum()), round(n / there, 4) if there else 0.0)
