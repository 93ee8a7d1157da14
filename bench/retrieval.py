"""Retrieval: seconds to index and to query, and recall@k and nDCG@10 of each method on questions over docs/.

    python bench/retrieval.py [--megabytes 2] [--queries 50] [--embed MODEL] [--embed-megabytes 0.2]
                              [--rerank MODEL] [--candidates 50]
    python bench/retrieval.py --megabytes 100 --embed-megabytes 100 --embed all-minilm-l6-v2

The second line is of the size of the aims: about 100,000 passages are indexed in seconds by BM25, and in ten
minutes with embeddings. A query takes 50 ms. The output begins with the machine and the commit.

speed    a corpus of random words by Zipf's law is generated, indexed and searched. Embeddings are made of a
         smaller one, because a text takes about as long as its tokens.
quality  retrieval.jsonl has questions about docs/, each with the file and the heading of the section that
         answers it. A passage is relevant if it lies in that section. recall@k: the share of questions with
         a relevant passage among the first k. nDCG@10: `1 / log2(1 + rank)` of the first one.
         The difference from BM25 has a percentile bootstrap over the questions, paired. With --rerank each
         method is measured again, with its best candidates ordered by that cross-encoder; ms is the median
         of a query then.

Without --embed only BM25 is measured.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from _commit import commit
from heredity.application.retrieval.build import build
from heredity.application.retrieval.documents import Chunk
from heredity.application.retrieval.index import IndexOverlay, PassageIndex
from heredity.application.retrieval.models import Reranker, Reranking, find_reranker
from heredity.core.readers import json_lines
from heredity.core.records import Retrieved

ROOT = Path(__file__).parents[1]
QUESTIONS = Path(__file__).with_name("retrieval.jsonl")
T = TypeVar("T")
DEPTH, CUTS, N_DRAWS = 10, (1, 4, 10), 10_000


class Question(NamedTuple):
    """A question about docs/, and the section that answers it."""

    question: str
    path: str
    heading: str


def questions() -> list[Question]:
    """The questions of the project."""
    return [Question(**row) for _, row in json_lines(QUESTIONS)]


def is_relevant(chunk: Chunk, asked: Question) -> bool:
    """Whether a passage lies in the section that answers the question."""
    inside = [*chunk.heading.split(" > "), *(line.lstrip("# ").strip() for line in _headings(chunk))]
    return chunk.path == asked.path and asked.heading in inside


def _headings(chunk: Chunk) -> list[str]:
    return [line for line in chunk.text.split("\n") if line.startswith("#")]


class Ranks(NamedTuple):
    """For each question the rank of the first relevant passage, from 1, or 0 beyond DEPTH; and seconds."""

    places: list[int]
    seconds: list[float]


def ranks_of(
    index: PassageIndex, asked: list[Question], method: str, reranking: Reranking | None = None
) -> Ranks:
    """The ranks of a method, after a search that loads its models."""
    index.search("load", 1, method, reranking)
    places, times = [], []
    for each in asked:
        seconds, found = timed(lambda each=each: index.search(each.question, DEPTH, method, reranking))
        times.append(seconds)
        places.append(next((n for n, one in enumerate(found, 1) if is_relevant(one.chunk, each)), 0))
    return Ranks(places, times)


def gain(place: int) -> float:
    """nDCG@10 with one relevant section."""
    return 1 / math.log2(1 + place) if place else 0.0


def quality(embed: str | None, rerank: str | None, candidates: int) -> None:
    """Print recall@k, nDCG@10 and milliseconds of each method, without and with the reranker."""
    asked = questions()
    with tempfile.TemporaryDirectory() as folder:
        build(ROOT / "docs", Path(folder) / "index", embed=embed)
        index = PassageIndex.open(Path(folder) / "index")
        methods = ("bm25", "dense", "hybrid") if embed else ("bm25",)
        found = {method: ranks_of(index, asked, method) for method in methods}
        if rerank:
            reranker = Reranker(find_reranker(rerank))
            for method in methods:
                reranker.score.cache_clear()
                reranking = Reranking(reranker, candidates)
                found[f"{method}+rerank"] = ranks_of(index, asked, method, reranking)
            print(f"rerank: {rerank} {reranker.model.id[:12]}, {candidates} candidates")
    print(f"quality: {len(asked)} questions, {index.manifest.n_chunks:,} passages of docs/")
    head = "".join(f"recall@{k:<5}" for k in CUTS)
    print(f"{'method':16}{head}nDCG@10  ms       difference from bm25 [95 %]")
    plain = np.array([gain(each) for each in found["bm25"].places])
    for method, (places, seconds) in found.items():
        shares = "".join(f"{sum(0 < each <= k for each in places) / len(asked):<12.2f}" for k in CUTS)
        gains = np.array([gain(each) for each in places])
        median = 1000 * float(np.median(seconds))
        print(f"{method:16}{shares}{gains.mean():<9.3f}{median:<9.1f}{_difference(gains - plain)}")


def _difference(values: np.ndarray) -> str:
    drawn = np.random.default_rng(0).choice(values, (N_DRAWS, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}], n {len(values)}"


def write_corpus(folder: Path, n_bytes: int) -> list[str]:
    """Files of 100 kB of random words, some under headings; returns the words by rank."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghijklmnopqrst"), draw.integers(2, 10))) for _ in range(50_000)]
    folder.mkdir()
    for number in range(max(1, n_bytes // 100_000)):
        numbers = np.minimum(draw.zipf(1.2, 15_000) - 1, len(words) - 1)
        text = ""
        for at in range(0, len(numbers), 80):
            text += f"## {words[numbers[at]]} {at}\n\n" if at % 400 == 0 else ""
            text += " ".join(words[each] for each in numbers[at : at + 80]) + ".\n\n"
        (folder / f"{number:06}.md").write_text(text)
    return words


def speed(n_bytes: int, n_queries: int, embed: str | None) -> None:
    """Print seconds to index, to update without a change, and to query."""
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "docs", Path(place) / "index"
        words = write_corpus(folder, n_bytes)
        first, built = timed(lambda: build(folder, out, embed=embed))
        again, _ = timed(lambda: build(folder, out))
        opening, index = timed(lambda: PassageIndex.open(out))
        size = sum(each.bytes for each in built.manifest.sources)
        own = sum(each.bytes for each in built.manifest.files)
        asked = [" ".join(words[20 + n : 2000 : 397]) for n in range(n_queries)]
        print(f"speed: {size / 1e6:.1f} MB, {built.manifest.n_chunks:,} passages, {embed or 'no embeddings'}")
        print(f"  index {first:.1f} s, {size / 1e6 / first:.2f} MB/s; update without a change {again:.1f} s")
        print(f"  open {opening:.2f} s, {own / 1e6:.1f} MB on disk")
        for method in ("bm25", "dense", "hybrid") if embed else ("bm25",):
            index.search(asked[0], 4, method)  # loads the model
            times = [timed(lambda q=each, m=method: index.search(q, 4, m))[0] for each in asked]
            median, most = 1000 * float(np.median(times)), 1000 * max(times)
            print(f"  query by {method}: median {median:.1f} ms, at most {most:.1f} ms, n {n_queries}")
        show_planted(index, asked, built.manifest.n_chunks)


def show_planted(index: PassageIndex, asked: list[str], n_chunks: int) -> None:
    """Print milliseconds of a query with passages next to the index, as an attack plants them."""
    planted = tuple(Retrieved(f"p{n}", f"note-{n}.md:1", f"{asked[0]} note {n}") for n in range(10))
    beside = IndexOverlay(index, planted)
    first, _ = timed(lambda: beside.search(asked[0], 4, "bm25"))
    times = [timed(lambda q=each: beside.search(q, 4, "bm25"))[0] for each in asked]
    median = 1000 * float(np.median(times))
    print(f"  with 10 planted passages of {n_chunks:,}: first {first:.1f} s, then median {median:.1f} ms")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--embed-megabytes", type=float, default=0.2)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--embed", default=None, help="an embedding model of the store")
    parser.add_argument("--rerank", default=None, help="a cross-encoder of the store")
    parser.add_argument("--candidates", type=int, default=50, help="passages that it reads")
    parser.add_argument("--no-quality", action="store_true", help="measure the speed only")
    given = parser.parse_args()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {load}"
    )
    print(f"commit: {commit()}")
    speed(int(given.megabytes * 1e6), given.queries, None)
    if given.embed:
        speed(int(given.embed_megabytes * 1e6), given.queries, given.embed)
    if not given.no_quality:
        quality(given.embed, given.rerank, given.candidates)


if __name__ == "__main__":
    main()
