"""BM25 over the chunks of an index, by bm25s. Terms are folded words, and pairs of characters of Chinese,
Japanese and Korean.

Promises: equal chunks give equal scores on every machine. An English plural and its singular are one term.
English function words of a question do not count. Both leave other languages nearly as they are. Of a long
question the beginning is searched for.
Leaves to others: the order of chunks with equal scores (index.py).

Sources: the rule "S" for plurals, Harman 1991. BM25, Robertson and Zaragoza 2009. bm25s, Lù 2024
(2407.03618): its method "lucene", with the usual k1 and b.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType

import numpy as np
import numpy.typing as npt

from heredity.core.errors import Unavailable, how_to_install

Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[np.generic]]
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TERM = re.compile(rf"[{_IDEOGRAPHS}]+|[^\W{_IDEOGRAPHS}]+")
_IS_IDEOGRAPH = re.compile(rf"[{_IDEOGRAPHS}]")
K1, B = 1.5, 0.75
LONGEST = 100_000  # characters of a query that are read: four million took half a minute
TERMS = 1  # raise this where an edit changes the terms of a text: an index of another version is refused


def terms(text: str) -> list[str]:
    """The terms of a text in order, with repeats."""
    found: list[str] = []
    for run in _TERM.findall(unicodedata.normalize("NFKC", text).casefold()):
        if len(run) > 1 and _IS_IDEOGRAPH.match(run):
            found += (run[at : at + 2] for at in range(len(run) - 1))
        else:
            found.append(_singular(run))
    return found


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    return f"{word[:-3]}y" if word.endswith("ies") and len(word) > 4 else word[:-1]


# They say nothing of the subject, and a question has more of them than a document.
_WORDS = (
    "a about after all also am an and any are as at be because been before being but by can could "
    "did do does doing for from had has have how i if in into is it its may me more most my no not "
    "of on once one only or our out own same she should so some such than that the their them then "
    "there these they this those through to too under until up very was we were what when where "
    "which while who whom why will with would you your"
)
_FUNCTION_WORDS = frozenset(map(_singular, _WORDS.split()))


class Bm25:
    """A BM25 index: the vocabulary, and the sparse matrix of scores by term (CSC)."""

    def __init__(self, vocabulary: list[str], arrays: Arrays, n_chunks: int) -> None:
        self.vocabulary, self.arrays = vocabulary, arrays
        self._ids = {term: number for number, term in enumerate(vocabulary)}
        self._scorer = _bm25s().BM25(k1=K1, b=B, method="lucene", backend="numpy")
        self._scorer.scores = {**arrays, "num_docs": n_chunks}
        self._scorer.nonoccurrence_array = None

    @classmethod
    def of(cls, texts: Iterable[str]) -> Bm25:
        """Index these texts, of which at least one has a term. Raises Unavailable without bm25s."""
        numbers: dict[str, int] = {}
        # By first appearance: a set would have another order in each process.
        ids = [[numbers.setdefault(term, len(numbers)) for term in terms(text)] for text in texts]
        made = _bm25s().BM25(k1=K1, b=B, method="lucene", backend="numpy")
        made.index((ids, dict(numbers)), create_empty_token=False, show_progress=False)
        arrays = {name: np.ascontiguousarray(made.scores[name]) for name in ("data", "indices", "indptr")}
        return cls(list(numbers), arrays, len(ids))

    def scores(self, query: str) -> Floats:
        """The score of each chunk; 0 for one without a term of the query. (chunk,)"""
        known = [term for term in terms(query[:LONGEST]) if term in self._ids]
        telling = [term for term in known if term not in _FUNCTION_WORDS] or known
        floats: Floats = self._scorer.get_scores_from_ids([self._ids[term] for term in telling])
        return floats


class TermCounts:
    """How often each term is in each chunk. BM25 with other chunks next to these is computed from it."""

    def __init__(self, numbers: dict[str, int], columns: Arrays, lengths: npt.NDArray[np.int64]) -> None:
        self._numbers, self._columns, self._lengths = numbers, columns, lengths

    @classmethod
    def of(cls, texts: Iterable[str]) -> TermCounts:
        """Count the terms of these texts."""
        numbers: dict[str, int] = {}
        flat, sizes = array("l"), array("l")
        for text in texts:
            found = terms(text)
            flat.extend(numbers.setdefault(term, len(numbers)) for term in found)
            sizes.append(len(found))
        lengths = np.array(sizes, np.int64)
        n = max(1, len(lengths))
        # One number for a term in a chunk, so that sorting groups them by term.
        keys = np.array(flat, np.int64) * n + np.repeat(np.arange(len(lengths)), lengths)
        both, counts = np.unique(keys, return_counts=True)
        starts = np.searchsorted(both, np.arange(len(numbers) + 1) * n)
        columns: Arrays = {
            "chunks": (both % n).astype(np.int32),
            "counts": counts.astype(np.int32),
            "starts": starts,
        }
        return cls(numbers, columns, lengths)

    def scores(self, query: str, others: Sequence[str]) -> Floats:
        """The score of each chunk, then of each text next to them, as in an index of all of them."""
        added = [Counter(terms(text)) for text in others]
        n, n_all = len(self._lengths), len(self._lengths) + len(added)
        lengths = np.append(self._lengths, [each.total() for each in added])
        norm = (K1 * ((1 - B) + B * lengths / lengths.mean())).astype(np.float32)
        found = np.zeros(n_all, np.float32)
        known = [t for t in terms(query[:LONGEST]) if t in self._numbers or any(t in each for each in added)]
        for term in [t for t in known if t not in _FUNCTION_WORDS] or known:
            own = [i for i, each in enumerate(added) if each[term]]
            chunks, held = self._column(term)
            places = np.append(chunks, np.array(own, np.intp) + n).astype(np.intp)
            counts = np.append(held, [added[i][term] for i in own]).astype(np.float32)
            weight = math.log(1 + (n_all - len(places) + 0.5) / (len(places) + 0.5))
            found[places] += np.float32(weight) * (counts / (norm[places] + counts))
        return found

    def _column(self, term: str) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """The chunks that have a term, and how often."""
        number = self._numbers.get(term)
        low, high = (0, 0) if number is None else self._columns["starts"][number : number + 2].tolist()
        chunks, counts = self._columns["chunks"][low:high], self._columns["counts"][low:high]
        return chunks.astype(np.intp), counts.astype(np.int64)


def _bm25s() -> ModuleType:
    try:
        import bm25s
    except ImportError:
        raise Unavailable(f"Retrieval needs bm25s. {how_to_install('retrieval')}") from None
    module: ModuleType = bm25s
    return module
