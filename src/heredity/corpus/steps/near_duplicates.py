"""Keep the first of nearly equal documents: MinHash over n-grams of words.

Two documents that share a part s of their n-grams meet in a bucket with probability `1 - (1 -
s^hashes_per_bucket)^num_buckets`. FineWeb's setting is `14 x 8` over 5-grams. It gives 0.92 at `s = 0.8`,
and 0.06 at `s = 0.5`. Documents that meet, directly or through others, are one cluster. A document of fewer
words than an n-gram is compared whole. Words are compared in lower case, without symbols, and all numbers are
equal.

Source: Broder 1997; defaults of Penedo et al. 2024 (2406.17557), settings as of datatrove's MinhashConfig.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from heredity.core.errors import BadArgument
from heredity.corpus import _tables as tables
from heredity.corpus.steps import Duplicates
from heredity.corpus.steps._words import simple_words
from heredity.corpus.text import Hashes, Ints, Mask, TextBatch

_PART = 1 << 15  # shingles hashed at a time: their products fit into a core's cache


class NearDuplicates(Duplicates, frozen=True, kw_only=True):
    """The probability is one half at a share of about (1 / num_buckets)^(1 / hashes_per_bucket)."""

    n_grams: int = 5
    num_buckets: int = 14
    hashes_per_bucket: int = 8
    seed: int = 1

    def check(self) -> None:
        if min(self.n_grams, self.num_buckets, self.hashes_per_bucket) < 1:
            raise BadArgument("n_grams, num_buckets and hashes_per_bucket must be at least 1", key="n_grams")
        if self.seed < 0:
            raise BadArgument(f"seed must be 0 or more, not {self.seed}", key="seed")

    def keys(self, batch: TextBatch) -> Hashes:
        words, sums = batch.words, tables.prefix(np.frombuffer(batch.lower, np.uint8))
        hashes = simple_words(batch, tables.span_hashes(sums, words.start, words.end))
        shingles = tables.n_grams(hashes, self.n_grams)
        n = np.minimum(words.n_each, self.n_grams)
        low = np.minimum(words.low, len(shingles))
        high = np.clip(words.high - self.n_grams + 1, low, len(shingles))
        keys = np.empty((len(batch), self.num_buckets), np.uint64)
        m = self.num_buckets * self.hashes_per_bucket
        drawn = tables.mix(np.arange(2 * m, dtype=np.uint64) + np.uint64(self.seed * 2 * m + 1))
        multipliers, additions = drawn[:m] | np.uint64(1), drawn[m:]
        for i in range(len(batch)):
            own = shingles[low[i] : high[i]]
            if not len(own):  # shorter than an n-gram: all its words are one
                own = tables.n_grams(hashes[words.low[i] : words.high[i]], max(1, int(n[i])))
            if not len(own):  # no word at all
                own = tables.span_hashes(
                    tables.prefix(batch.data), batch.start[i : i + 1], batch.end[i : i + 1]
                )
            least = np.full(len(multipliers), np.iinfo(np.uint64).max, np.uint64)
            width = max(1, _PART // len(multipliers))
            for at in range(0, len(own), width):
                product = multipliers[:, None] * own[None, at : at + width] + additions[:, None]
                np.minimum(least, product.min(axis=1), out=least)
            rows = least.reshape(self.num_buckets, self.hashes_per_bucket)
            keys[i] = np.concatenate([tables.n_grams(row, len(row)) for row in rows])
        return keys

    def kept(self, keys: Hashes) -> Mask:
        first: list[Ints] = [np.zeros(0, np.int64)]
        second = list(first)
        for bucket in keys.T:
            order = np.argsort(bucket, kind="stable")
            same = bucket[order][1:] == bucket[order][:-1]
            first.append(order[:-1][same])
            second.append(order[1:][same])
        edges = (np.concatenate(first), np.concatenate(second))
        graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(len(keys), len(keys)))
        cluster = connected_components(graph, directed=False)[1]
        mask = np.zeros(len(keys), np.bool_)
        mask[np.unique(cluster, return_index=True)[1]] = True
        return mask


STEP = NearDuplicates
