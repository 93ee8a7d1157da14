"""Search an index: BM25, embeddings, or both by reciprocal rank fusion.

Promises: equal text gives equal chunks in equal order; equal scores are ordered by the chunk's id. An index
that is damaged, or older than its documents, is refused. Search is exact, but for the embeddings of an index
with a graph. No pickle is loaded.
The manifest is written last, so its presence means that the index is complete. An edited or torn manifest, a
missing or changed file and another schema are refused.

BM25 is over folded words, and pairs of characters of Chinese, Japanese and Korean: equal chunks give equal
scores on every machine. An English plural and its singular are one term. English function words of a question
do not count. Both leave other languages nearly as they are. Of a long question the beginning is
searched for.

An overlay searches passages next to an index as if they were in it; the index on disk stays as it is. On
one kind of processor the same embeddings give the same graph, since one thread makes it.

Sources: HNSW, Malkov and Yashunin 2018 (1603.09320). Reciprocal rank fusion, Cormack et al. 2009, with its
constant 60. The rule "S" for plurals, Harman 1991. BM25, Robertson and Zaragoza 2009. bm25s, Lù 2024
(2407.03618): its method "lucene", with the usual k1 and b.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import NamedTuple, get_args

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, UnsetType

from heredity.application.retrieval.documents import (
    MANIFEST,
    WORDS,
    Chunk,
    Limits,
    Match,
    SkippedFile,
    folder_of,
    read_bytes,
    walk,
)
from heredity.application.retrieval.models import Embedder, Floats, Reranking, open_embedder
from heredity.application.retrieval.readers import Unreadable
from heredity.core.errors import (
    BadArgument,
    Damaged,
    NotComparable,
    Refused,
    Unavailable,
    UnknownName,
    UsageError,
    how_to_install,
)
from heredity.core.files import default_root, hash_file, write_atomic
from heredity.core.records import FileHash, Record, RetrievalMethod, Retrieved, digest
from heredity.lineage.store import Store

# --- terms ---

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TERM = re.compile(rf"[{_IDEOGRAPHS}]+|[^\W{_IDEOGRAPHS}]+")
_IS_IDEOGRAPH = re.compile(rf"[{_IDEOGRAPHS}]")
K1, B = 1.5, 0.75
LONGEST = 100_000  # characters of a query that are read: four million took half a minute
TERMS = 1  # raise this where an edit changes the terms of a text: an index of another version is refused


def terms(text: str) -> list[str]:
    """The terms of a text in order, with repeats."""
    words: list[str] = []
    for run in _TERM.findall(unicodedata.normalize("NFKC", text).casefold()):
        if len(run) > 1 and _IS_IDEOGRAPH.match(run):
            words += (run[at : at + 2] for at in range(len(run) - 1))
        else:
            words.append(_singular(run))
    return words


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
    def from_texts(cls, texts: Iterable[str]) -> Bm25:
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
    def from_texts(cls, texts: Iterable[str]) -> TermCounts:
        """Count the terms of these texts."""
        numbers: dict[str, int] = {}
        flat, sizes = array("l"), array("l")
        for text in texts:
            words = terms(text)
            flat.extend(numbers.setdefault(term, len(numbers)) for term in words)
            sizes.append(len(words))
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
        scores = np.zeros(n_all, np.float32)
        known = [t for t in terms(query[:LONGEST]) if t in self._numbers or any(t in each for each in added)]
        for term in [t for t in known if t not in _FUNCTION_WORDS] or known:
            own = [i for i, each in enumerate(added) if each[term]]
            chunks, held = self._column(term)
            places = np.append(chunks, np.array(own, np.intp) + n).astype(np.intp)
            counts = np.append(held, [added[i][term] for i in own]).astype(np.float32)
            weight = math.log(1 + (n_all - len(places) + 0.5) / (len(places) + 0.5))
            scores[places] += np.float32(weight) * (counts / (norm[places] + counts))
        return scores

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


# --- the manifest ---

INDEX_SCHEMA = 1
# Raise this where an edit changes the chunks of a file: an index of another version is built from the start.
CHUNKING = 1
LEAST_WORDS, MAX_WORDS = 20, 2000


class EmbeddingModel(Record, frozen=True):
    """The model that made the embeddings. A search embeds the question with the same."""

    id: str
    name: str


class IndexSettings(Record, frozen=True):
    """The settings that determine the content of an index, in addition to the documents."""

    words: int = WORDS  # of a chunk, at most
    embedding: EmbeddingModel | UnsetType = UNSET
    chunking: int = CHUNKING
    terms: int = TERMS

    def __post_init__(self) -> None:
        if not LEAST_WORDS <= self.words <= MAX_WORDS:
            raise BadArgument(
                f"the words of a chunk must be from {LEAST_WORDS} to {MAX_WORDS}, not {self.words}",
                key="words",
            )


class IndexedFile(Record, frozen=True):
    """A document of an index."""

    path: str
    bytes: int
    sha256: str
    n_chunks: int


class IndexManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """index.json. `check` is a digest over everything else in it.

    folder: the documents, relative to the index if they lie near it (documents.place_of).
    """

    settings: IndexSettings
    files: tuple[FileHash, ...]
    sources: tuple[IndexedFile, ...]
    left_out: tuple[SkippedFile, ...]
    folder: str
    max_bytes: int  # of a document: larger ones are left out
    check: str = ""
    schema: int = INDEX_SCHEMA

    @cached_property
    def hash(self) -> str:
        """Names what a search can find: a digest over the settings and the index's own files.

        The place of the documents and the files left out do not change it.
        """
        return digest([self.schema, self.settings, [[each.path, each.sha256] for each in self.files]])

    @property
    def n_chunks(self) -> int:
        """The number of chunks."""
        return sum(each.n_chunks for each in self.sources)

    def file(self, out: Path, kind: str) -> Path | None:
        """The index's own file of a kind: "chunks", "terms", "bm25", "embeddings" or "graph"."""
        return next((out / each.path for each in self.files if each.path.startswith(f"{kind}-")), None)


def write_manifest(out: Path, manifest: IndexManifest) -> IndexManifest:
    """Write index.json, and return it with its check."""
    whole = msgspec.structs.replace(manifest, check=_check(manifest))
    write_atomic(out / MANIFEST, msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n")
    return whole


def read_manifest(out: Path) -> IndexManifest:
    """Read index.json. Raises UsageError if it does not exist, Damaged, or NotComparable (another schema)."""
    path = out / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{out} is no index. Make one: heredity index FOLDER --out {out}", key="index"
        ) from None
    except OSError as error:
        raise Damaged(f"{path}: {error.strerror}.") from None
    try:
        schema = msgspec.json.decode(data, type=_ManifestSchema).schema
        if schema != INDEX_SCHEMA:
            raise NotComparable(
                f"{path}: an index of schema {schema}; this heredity reads schema {INDEX_SCHEMA}. "
                "Build it again into another folder: heredity index FOLDER --out DIR",
                code="schema-mismatch",
            )
        manifest = msgspec.json.decode(data, type=IndexManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise damaged(out, f"{MANIFEST}: {error}") from None
    if manifest.check != _check(manifest):
        raise damaged(out, f"{MANIFEST} was changed")
    return manifest


def check_files(out: Path, manifest: IndexManifest) -> None:
    """Raise Damaged unless every file of the index has the recorded hash."""
    for each in manifest.files:
        path = out / each.path
        if Path(each.path).name != each.path or path.is_symlink() or not path.is_file():
            raise damaged(out, f"{each.path} is missing")
        if path.stat().st_size != each.bytes or hash_file(path) != each.sha256:
            raise damaged(out, f"{each.path} was changed")


def damaged(out: Path, what: str) -> Damaged:
    """The error for an index that cannot be used."""
    return Damaged(
        f"The index {out} is damaged: {what}. Remove it and build it again: heredity index FOLDER --out {out}"
    )


def read_chunks(out: Path, manifest: IndexManifest) -> list[Chunk]:
    """The chunks in the order of the index. Raises Damaged."""
    path = manifest.file(out, "chunks")
    decoder = msgspec.json.Decoder(Chunk)
    try:
        lines = [] if path is None else path.read_bytes().splitlines()
        chunks = [decoder.decode(line) for line in lines]
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise damaged(out, f"the chunks cannot be read: {error}") from None
    if len(chunks) != manifest.n_chunks:
        raise damaged(out, f"{len(chunks)} chunks, {manifest.n_chunks} recorded")
    return chunks


def documents_of(out: Path, manifest: IndexManifest, root: Path) -> tuple[Path, Limits] | None:
    """The folder of an index's documents, and the limits of its files; None if it is not there.

    A stranger may have written the manifest, and must not choose what is read here. So the store at `root`
    has to know this manifest, or the folder has to lie next to the index, within the usual limits.
    """
    folder = folder_of(manifest.folder, out)
    if not folder.is_dir():
        return None
    if is_noted(manifest.check, root):
        return folder, Limits(manifest.max_bytes)
    if not _is_near(folder, out):
        return None
    return folder, Limits(max(1, min(manifest.max_bytes, Limits().max_bytes)))


def note_documents(out: Path, manifest: IndexManifest, root: Path) -> None:
    """Note a manifest of this store if `documents_of` would not read its documents without the note."""
    if manifest.max_bytes > Limits().max_bytes or not _is_near(folder_of(manifest.folder, out), out):
        note(manifest.check, root)


def note(sha256: str, root: Path) -> None:
    """Note that the store at `root` wrote something of an index, by its digest."""
    path = _note_of(sha256, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def is_noted(sha256: str, root: Path) -> bool:
    """Whether the store has noted this."""
    return sha256.isalnum() and _note_of(sha256, root).is_file()


def _note_of(sha256: str, root: Path) -> Path:
    return root / "indexes" / sha256


def _is_near(folder: Path, out: Path) -> bool:
    return folder.resolve().is_relative_to(out.resolve().parent)


class _ManifestSchema(msgspec.Struct):
    schema: int = 0


def _check(manifest: IndexManifest) -> str:
    return digest(msgspec.structs.replace(manifest, check=""))


Arrays = Mapping[str, npt.NDArray[np.generic]]


# --- the graph of many embeddings ---

EXACT = 100_000  # passages that are compared one by one; an index of more has a graph of usearch
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 512


def has_usearch() -> bool:
    """Whether graphs can be made and read."""
    try:
        _usearch()
    except Unavailable:
        return False
    return True


def write_graph(vectors: Floats, path: Path) -> None:
    """Write the graph of these embeddings (passage, hidden), of length 1 each. Raises Unavailable."""
    made = _usearch().Index(
        ndim=vectors.shape[1],
        metric="ip",
        dtype="f32",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
    )
    made.add(np.arange(len(vectors)), vectors, threads=1)
    made.save(str(path))


class NearGraph:
    """A graph on disk. Raises Unavailable without usearch, ValueError for a file of another size."""

    def __init__(self, path: Path, n: int) -> None:
        graph = _usearch().Index.restore(str(path))
        if graph is None or len(graph) != n:
            raise ValueError(f"it has {0 if graph is None else len(graph)} passages, not {n}")
        graph.expansion_search = EXPANSION_SEARCH
        self._graph = graph

    def nearest(self, asked: Floats, n: int) -> npt.NDArray[np.intp]:
        """About the `n` passages that are nearest to an embedding, in no order."""
        return np.asarray(self._graph.search(asked, n, threads=1).keys, np.intp)


def _usearch() -> ModuleType:
    try:
        import usearch.index
    except ImportError:
        raise Unavailable(
            "The embeddings of this index are searched by usearch, which is not installed. "
            f"{how_to_install('usearch')}, or search by bm25."
        ) from None
    module: ModuleType = usearch.index
    return module


# --- the search ---

METHODS: tuple[RetrievalMethod, ...] = get_args(RetrievalMethod)
FUSED = 60  # the constant of reciprocal rank fusion
DEPTH = 100  # chunks of each ranking that are fused
_SPARE = 64  # chunks beyond those wanted whose similarity is computed again, in a fixed order


class _Ranked(NamedTuple):
    at: int  # in the order of the index
    score: float


class PassageIndex:
    """An index on disk, opened for searching."""

    def __init__(self, out: Path, manifest: IndexManifest, store: Store | None = None) -> None:
        self.out, self.manifest, self._store = out, manifest, store
        documents = documents_of(out, manifest, _root(store))
        self._update = f"heredity index {'FOLDER' if documents is None else documents[0]} --out {out}"
        if manifest.settings.terms != TERMS:
            raise NotComparable(
                f"The index {out} has terms of version {manifest.settings.terms}, and this heredity searches "
                f"version {TERMS}. Update it: {self._update}"
            )
        self.chunks = read_chunks(out, manifest)
        arrays = {name: _array(out, manifest, f"bm25-{name}") for name in ("data", "indices", "indptr")}
        path = manifest.file(out, "terms")
        try:
            words = [] if path is None else msgspec.json.decode(path.read_bytes(), type=list[str])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise damaged(out, f"the terms cannot be read: {error}") from None
        if len(arrays["indptr"]) != len(words) + 1:
            raise damaged(out, "the terms and their scores differ in number")
        self._lexical = Bm25(words, arrays, manifest.n_chunks)
        self._vectors = _read_vectors(out, manifest)

    @classmethod
    def open(cls, out: Path | str, store: Store | None = None, may_be_stale: bool = False) -> PassageIndex:
        """Open an index. Raises UsageError if it does not exist, Damaged, or Refused for a stale one.

        may_be_stale: open it also if its documents changed.
        """
        out = Path(out).resolve()
        manifest = read_manifest(out)
        check_files(out, manifest)
        if not may_be_stale:
            refuse_stale(out, manifest, _root(store))
        return cls(out, manifest, store)

    @property
    def hash(self) -> str:
        """Names what a search can find (IndexManifest.hash)."""
        return self.manifest.hash

    @property
    def has_embeddings(self) -> bool:
        """Whether it was made with an embedding model."""
        return self._vectors is not None

    @property
    def usual_method(self) -> RetrievalMethod:
        """The method of a search that names no other: hybrid if there are embeddings, and else bm25."""
        return "hybrid" if self.has_embeddings else "bm25"

    def check_method(self, method: str) -> RetrievalMethod:
        """The method, if this index can search by it. Raises UnknownName or UsageError."""
        if method not in METHODS:
            raise UnknownName("retrieval method", method, METHODS, ", ".join(METHODS))
        if method != "bm25" and not self.has_embeddings:
            raise UsageError(
                f"The index {self.out} has no embeddings, which {method} needs. Add them: "
                f"{self._update} --embed MODEL",
                key="method",
            )
        return method

    def search(
        self, query: str, n: int = 4, method: str | None = None, reranking: Reranking | None = None
    ) -> list[Match]:
        """The best `n` chunks, best first; fewer if no more match.

        method: None for `usual_method`. reranking: a cross-encoder orders the best candidates again.
        """
        if reranking is not None:
            matches = self.search(query, max(n, reranking.candidates), method)
            return reranking.reranker.ordered(query, matches)[:n]
        method = self.check_method(method or self.usual_method)
        if method == "bm25":
            ranked = self._by_terms(query, n)
        elif method == "dense":
            ranked = self._by_meaning(query, n)
        else:
            depth = max(n, DEPTH)
            ranked = self._fused(self._by_terms(query, depth), self._by_meaning(query, depth))[:n]
        return [Match(self._chunk(each.at), each.score) for each in ranked]

    def retrieved(
        self, query: str, n: int, method: str, reranking: Reranking | None = None
    ) -> tuple[Retrieved, ...]:
        """The same as records, which a request and its row hold."""
        matches = self.search(query, n, method, reranking)
        return tuple(Retrieved(chunk.id, chunk.citation, chunk.text) for chunk, _ in matches)

    @cached_property
    def term_counts(self) -> TermCounts:
        """The number of times that each term is in each chunk; counted from the texts on first use."""
        return TermCounts.from_texts(chunk.searched for chunk in self.chunks)

    def embed(self, text: str) -> Floats:
        """The embedding of a text by the model of the index. (hidden,)"""
        return self.embedder.embed(text)

    def _chunk(self, at: int) -> Chunk:
        return self.chunks[at]

    def _term_scores(self, query: str) -> Floats:
        """The BM25 score of each chunk. (chunk,)"""
        return self._lexical.scores(query)

    def _by_terms(self, query: str, n: int) -> list[_Ranked]:
        scores = self._term_scores(query)
        return self._best(np.flatnonzero(scores > 0), scores, n)

    def _by_meaning(self, query: str, n: int) -> list[_Ranked]:
        asked = self.embed(query)
        if not asked.any():  # a static model knows no token of it
            return []
        near, similarity = self._similarities(asked, n)
        return self._best(near, similarity, n)

    def _similarities(self, asked: Floats, n: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """The nearest chunks, more than `n` of them, and by chunk the similarity of these."""
        assert self._vectors is not None
        n_near = min(len(self._vectors), n + _SPARE)
        if self._graph is not None:
            near = self._graph.nearest(asked, n_near)
        else:
            near = np.argpartition(-(self._vectors @ asked), n_near - 1)[:n_near]
        # A BLAS product may round the same row differently at another place: sum these in a fixed order.
        exact = np.zeros(len(self._vectors))
        exact[near] = (self._vectors[near].astype(np.float64) * asked.astype(np.float64)).sum(axis=1)
        return near, exact.round(6)

    def _fused(self, *rankings: list[_Ranked]) -> list[_Ranked]:
        total: dict[int, float] = {}
        for ranking in rankings:
            for rank, each in enumerate(ranking, 1):
                total[each.at] = total.get(each.at, 0.0) + 1 / (FUSED + rank)
        return sorted((_Ranked(*each) for each in total.items()), key=self._order)

    def _best(self, among: npt.NDArray[np.intp], scores: npt.NDArray[np.floating], n: int) -> list[_Ranked]:
        """The best `n` of the chunks `among`, equal scores by id."""
        if len(among) > n:
            least = np.partition(scores[among], len(among) - n)[len(among) - n]
            among = among[scores[among] >= least]  # with all that are equal to the last one
        ranked = [_Ranked(int(at), float(scores[at])) for at in among]
        return sorted(ranked, key=self._order)[:n]

    def _order(self, ranked: _Ranked) -> tuple[float, str]:
        return -ranked.score, self._chunk(ranked.at).id

    @cached_property
    def _graph(self) -> NearGraph | None:
        """The graph of an index of many passages; None if all embeddings are compared.

        usearch trusts the numbers in a file. So one that this store did not write is never read: its graph is
        made again.
        """
        path = self.manifest.file(self.out, "graph")
        if path is None or self._vectors is None:
            return None
        sha256 = next(each.sha256 for each in self.manifest.files if each.path == path.name)
        root = _root(self._store)
        try:
            if is_noted(sha256, root):
                return NearGraph(path, len(self.chunks))
            with TemporaryDirectory() as folder:
                made = Path(folder) / "graph"
                write_graph(self._vectors, made)
                if hash_file(made) == sha256:  # it may be read from now on
                    note(sha256, root)
                return NearGraph(made, len(self.chunks))
        except (OSError, RuntimeError, ValueError) as error:
            raise damaged(self.out, f"the graph cannot be read: {error}") from None

    @cached_property
    def embedder(self) -> Embedder:
        """The embedding model of the index. Raises NotComparable if the store has another one by its name."""
        model = self.manifest.settings.embedding
        assert not isinstance(model, UnsetType)
        embedder = open_embedder(model.name, self._store)
        if embedder.model.id != model.id:
            raise NotComparable(
                f"The index {self.out} was made with {model.name} {model.id[:12]}, and the store has "
                f"{embedder.model.id[:12]} under this name. Build the index again."
            )
        return embedder


class IndexOverlay(PassageIndex):
    """An index with passages next to it, which come after its own chunks."""

    def __init__(self, base: PassageIndex, planted: Sequence[Retrieved]) -> None:
        # The parts of the base are shared, not read again.
        self.out, self.manifest, self.chunks, self._vectors = (
            base.out,
            base.manifest,
            base.chunks,
            base._vectors,
        )
        self._base, self._planted, self._update = base, planted, base._update

    @property
    def hash(self) -> str:
        """Names what a search can find: the index and the passages next to it."""
        return digest([self._base.hash, self._planted])

    def embed(self, text: str) -> Floats:
        """The embedding of a text by the model of the index. (hidden,)"""
        return self._base.embed(text)

    def _chunk(self, at: int) -> Chunk:
        if at < len(self.chunks):
            return self.chunks[at]
        passage = self._planted[at - len(self.chunks)]
        return _PlantedChunk(passage.chunk, passage.citation, "", 1, 1, "line", passage.text)

    def _term_scores(self, query: str) -> Floats:
        return self._base.term_counts.scores(query, [each.text for each in self._planted])

    def _similarities(self, asked: Floats, n: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        near, similarity = self._base._similarities(asked, n)
        own = (self._own_vectors.astype(np.float64) * asked.astype(np.float64)).sum(axis=1).round(6)
        return np.append(near, np.arange(len(own)) + len(similarity)), np.append(similarity, own)

    @cached_property
    def _own_vectors(self) -> Floats:
        """(passage, hidden)"""
        return np.stack([self.embed(each.text) for each in self._planted])


class _PlantedChunk(Chunk, frozen=True):
    """A passage next to the index: `path` is its citation."""

    @property
    def citation(self) -> str:
        return self.path


@lru_cache(maxsize=4)
def opened(out: Path, wanted: str) -> PassageIndex:
    """The index at `out`, opened once per process. Raises NotComparable unless its hash is `wanted`."""
    index = PassageIndex.open(out, may_be_stale=True)  # staleness was refused when the application was read
    refuse_other_hash(index, wanted)
    return index


@lru_cache(maxsize=1024)
def overlay(out: Path, wanted: str, planted: tuple[Retrieved, ...]) -> IndexOverlay:
    """The overlay over the index at `out`, made once per process. Raises as `opened` does."""
    return IndexOverlay(opened(out, wanted), planted)


def index_with(out: Path, wanted: str, planted: tuple[Retrieved, ...]) -> PassageIndex:
    """The index at `out`, with these passages next to it if there are any. Raises as `opened` does."""
    return overlay(out, wanted, planted) if planted else opened(out, wanted)


@lru_cache(maxsize=4)
def shown_texts(out: Path, wanted: str) -> frozenset[str]:
    """All passages of an index as a model sees them. Raises as `opened` does."""
    chunks = opened(out, wanted).chunks
    return frozenset(Retrieved(each.id, each.citation, each.text).shown for each in chunks)


def refuse_other_hash(index: PassageIndex, wanted: str) -> None:
    """Raise NotComparable unless the index has this hash."""
    if index.hash != wanted:
        raise NotComparable(
            f"The index {index.out} has hash {index.hash[:12]}, and the application needs {wanted[:12]}. "
            "Restore that index, or start a new study."
        )


def refuse_stale(out: Path, manifest: IndexManifest, root: Path) -> None:
    """Raise Refused if the documents are still there and are no longer those of the index.

    root: of the store that decides which folders are read (documents_of).
    """
    if (documents := documents_of(out, manifest, root)) is None:
        return
    folder, limits = documents
    if change := change_in(folder, out, manifest, limits):
        raise Refused(f"The index {out} is stale: {change}. Update it: heredity index {folder} --out {out}")


def change_in(folder: Path, out: Path, manifest: IndexManifest, limits: Limits) -> str:
    """The first difference between the documents and those of the index, in words; "" for none."""
    candidates, _ = walk(folder, out, limits)
    known = {each.path: each.sha256 for each in manifest.sources}
    known_left = {each.path: each.sha256 for each in manifest.left_out}
    for candidate in candidates:
        recorded = known.pop(candidate.path, None)
        if recorded is None and candidate.path not in known_left:
            return f"{candidate.path} is new"
        recorded = recorded or known_left[candidate.path]
        try:
            sha256 = hashlib.sha256(read_bytes(candidate.file, limits)).hexdigest()
        except Unreadable:
            sha256 = ""
        if recorded != sha256:
            return f"{candidate.path} has changed"
    return next((f"{path} is gone" for path in known), "")


def _root(store: Store | None) -> Path:
    return default_root() if store is None else store.root


def _read_vectors(out: Path, manifest: IndexManifest) -> Floats | None:
    if isinstance(manifest.settings.embedding, UnsetType):
        return None
    vectors: Floats = _array(out, manifest, "embeddings")
    if vectors.ndim != 2 or len(vectors) != manifest.n_chunks:
        raise damaged(out, "the embeddings and the chunks differ in number")
    if vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        raise damaged(out, "the embeddings are not finite numbers")
    return vectors


def _array(out: Path, manifest: IndexManifest, kind: str) -> npt.NDArray[np.float32]:
    path = manifest.file(out, kind)
    try:
        if path is None:
            raise ValueError("it is not recorded")
        array_of_kind: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
        return array_of_kind
    except (OSError, ValueError, EOFError) as error:
        raise damaged(out, f"{kind} cannot be read: {error}") from None
