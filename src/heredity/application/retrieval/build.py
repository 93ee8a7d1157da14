"""Build or update the index of a folder.

Promises: an unchanged file, by its hash, is neither parsed nor embedded again. The result is the one of a
build from the start. A crash leaves the old index or the new one, whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import IO, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from heredity.application.retrieval import index
from heredity.application.retrieval.documents import (
    MANIFEST,
    Candidate,
    Chunk,
    Limits,
    SkippedFile,
    cut,
    is_index,
    place_of,
    read_bytes,
    walk,
)
from heredity.application.retrieval.index import (
    Bm25,
    EmbeddingModel,
    IndexedFile,
    IndexManifest,
    IndexSettings,
    check_files,
    note,
    note_documents,
    read_chunks,
    read_manifest,
    write_manifest,
)
from heredity.application.retrieval.models import Embedder, Floats, open_embedder
from heredity.application.retrieval.readers import Reason, TextBlock, Unreadable, load
from heredity.core.errors import BadInput, Damaged, NotComparable, UsageError, first_line, how_to_install
from heredity.core.files import Closable, Lock, default_root, hash_file, replacing, sync_folder
from heredity.core.progress import Meter, Progress, Watch, phase
from heredity.core.records import FileHash, Record, encode
from heredity.core.sanitize import clean_text
from heredity.lineage.store import Store

_LENGTH = struct.Struct(">Q")
# After these the process may hold what a failed parser left in memory: the next file gets a new one.
_SPOILING = ("too-much-memory", "damaged")
_PACKAGE_ROOT = Path(__file__).parents[3]


class Parsed(Record, frozen=True):
    """The answer of the process: blocks, or the reason for their absence."""

    blocks: tuple[TextBlock, ...] = ()
    reason: str = ""
    detail: str = ""


class _Job(Record, frozen=True):
    reader: str
    max_unpacked: int


class Converter(Closable):
    """Parses files by the readers. The process starts with the first file that needs it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._is_late = False

    def read(self, reader: str, data: bytes) -> list[TextBlock]:
        """The blocks of a file that have text. Raises Unreadable."""
        if load(reader).IS_ISOLATED:
            parsed = self._ask(reader, data)
            if parsed.reason in _SPOILING:
                self.close()
        else:
            parsed = parse(reader, data, self._limits.max_unpacked)
        if parsed.reason:
            raise Unreadable(parsed.reason, parsed.detail)  # type: ignore[arg-type]
        blocks = [block for block in parsed.blocks if block.text.strip()]
        if not blocks:
            raise Unreadable("no-text")
        return blocks

    def close(self) -> None:
        """Stop the process."""
        if self._process is None:
            return
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._process.wait()
        self._process = None

    def _ask(self, reader: str, data: bytes) -> Parsed:
        if self._process is None:
            paths = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self._limits.max_memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        process = self._process
        timer = Timer(self._limits.max_seconds, self._stop, [process])
        self._is_late = False
        timer.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            _send(process.stdin, encode(_Job(reader, self._limits.max_unpacked)))
            _send(process.stdin, data)
            return msgspec.json.decode(_receive(process.stdout), type=Parsed)
        except (OSError, EOFError):
            self.close()
            if self._is_late:
                return Parsed((), "too-slow", f"over {self._limits.max_seconds:g} s")
            return Parsed((), "crashed")
        finally:
            timer.cancel()
            timer.join()

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        self._is_late = True
        process.kill()


def parse(reader: str, data: bytes, max_unpacked: int) -> Parsed:
    """Parse in this process. Every error of a reader is a reason."""
    try:
        blocks = load(reader).read(data, max_unpacked)
        return Parsed(tuple(msgspec.structs.replace(each, text=clean_text(each.text)) for each in blocks))
    except Unreadable as error:
        return Parsed((), error.reason, error.detail)
    except ImportError as error:
        return Parsed((), "needs-package", f"{error.name} is missing. {how_to_install('retrieval')}")
    except (MemoryError, RecursionError) as error:
        return Parsed((), "too-much-memory", type(error).__name__)
    except OSError as error:
        is_memory = error.errno == errno.ENOMEM
        return Parsed((), "too-much-memory" if is_memory else "damaged", clean_text(first_line(error)))
    except Exception as error:  # a parser of a hostile format may raise anything
        return Parsed((), "damaged", clean_text(first_line(error)))


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """Raises EOFError if the other side is gone."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (n_bytes,) = _LENGTH.unpack(head)
    data = pipe.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError
    return data


def _serve(max_memory: int) -> None:
    """Parse what comes in until the pipe closes."""
    with suppress(ImportError, OSError, ValueError):  # a system without such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
    sys.setrecursionlimit(2000)
    source, target = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(2, sys.stdout.fileno())  # a library that prints must not write into the answer
    while True:
        try:
            job = msgspec.json.decode(_receive(source), type=_Job)
            data = _receive(source)
        except EOFError:
            return
        _send(target, encode(parse(job.reader, data, job.max_unpacked)))


if __name__ == "__main__":
    _serve(int(sys.argv[1]))


_TRY_AGAIN: tuple[Reason, ...] = ("needs-package", "unreadable", "too-slow", "too-much-memory", "crashed")


class Built(NamedTuple):
    """An index that was written. `n_kept`: documents that were taken from the index before it."""

    manifest: IndexManifest
    n_read: int
    n_kept: int
    n_embedded: int  # chunks


class _Before(NamedTuple):
    """The content of the index before: of each file, and the embedding of each text."""

    chunks: dict[tuple[str, str], list[Chunk]]  # by path and SHA-256
    left_out: dict[tuple[str, str], SkippedFile]
    embeddings: dict[str, Floats]
    manifest: IndexManifest | None = None


def build(
    folder: Path,
    out: Path,
    *,
    embed: str | None = None,
    words: int | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    store: Store | None = None,
    watch: Watch | None = None,
) -> Built:
    """Index the documents in `folder` into the folder `out`, or update the index that is there.

    embed: the name of an embedding model of the store; "" for BM25 only. words: of a chunk, at most. None
    for either: as in the index that is there, or else BM25 only and 160 words.

    Raises UsageError for a folder that does not exist, or an `out` that holds something else. Raises BadInput
    if there is nothing to index, and Unavailable without a package.
    """
    folder, out = folder.resolve(), out.resolve()
    if is_index(folder):
        raise UsageError(f'{folder} is an index. Search it: heredity index {folder} --ask "..."')
    there = _settings_before(out)
    embedder = _embedder(there, embed, store, watch)
    model = UNSET if embedder is None else EmbeddingModel(embedder.model.id, embedder.model.name)
    settings = IndexSettings(there.words if words is None else words, model)
    _refuse_other_folder(out)
    candidates, left_out = walk(folder, out, limits)
    with Lock(out):
        read = _Reading(_read_before(out, settings), settings, limits, watch)
        read.left_out += left_out
        with Converter(limits) as converter:
            read.all(candidates, converter)
        return _write(folder, out, read, embedder, default_root() if store is None else store.root)


def open_index(folder: Path, out: Path, *, is_kept: bool = False) -> index.PassageIndex:
    """The index `folder`, or that of its documents, which is built in `out`.

    is_kept: raise NotComparable if `out` is the index of other documents.
    """
    if is_index(folder):
        return index.PassageIndex.open(folder)
    changed = ""
    if is_kept:
        with suppress(UsageError, Damaged, NotComparable):  # an index that does not read is built again
            changed = index.change_in(folder, out, read_manifest(out), Limits())
    if changed:
        raise NotComparable(
            f"{out} is the index of other documents: {changed} in {folder}. Name another folder.",
            code="another-study",
        )
    build(folder, out)
    return index.PassageIndex.open(out)


def _write(folder: Path, out: Path, read: _Reading, embedder: Embedder | None, root: Path) -> Built:
    """Write the index of what was read, manifest last, and remove the files of the index before."""
    if not read.chunks:
        n_left = len(read.left_out)
        raise BadInput(folder, f"no document in it can be read ({n_left} files left out)")
    if (held := read.unchanged()) is not None:
        manifest = write_manifest(out, read.manifest(held.files, place_of(folder, out)))
        note_documents(out, manifest, root)
        _remove_others(out, manifest)
        return Built(manifest, 0, len(read.sources), 0)
    vectors, n_embedded = _embeddings(read.chunks, read.before, embedder, read.watch)
    with phase(read.watch, "writing"):
        files = _write_files(out, read.chunks, vectors)
        manifest = write_manifest(out, read.manifest(files, place_of(folder, out)))
        note_documents(out, manifest, root)
        for each in files:
            if each.path.startswith("graph-"):
                note(each.sha256, root)
        _remove_others(out, manifest)
    return Built(manifest, read.n_read, len(read.sources) - read.n_read, n_embedded)


def _settings_before(out: Path) -> IndexSettings:
    """The settings of the index at `out`, or the usual ones if there is no such index."""
    try:
        return read_manifest(out).settings
    except (UsageError, Damaged, NotComparable):
        return IndexSettings()


def _embedder(
    there: IndexSettings, embed: str | None, store: Store | None, watch: Watch | None
) -> Embedder | None:
    if embed is None and not isinstance(there.embedding, UnsetType):
        embed = there.embedding.name
    if not embed:
        return None
    with phase(watch, "loading", embed):
        return open_embedder(embed, store)


def _refuse_other_folder(out: Path) -> None:
    """Raise UsageError rather than write among files of something else."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out names {out}, which is a file. Name a folder.")
    if (out / MANIFEST).exists() or not out.exists():
        return
    if other := next((each.name for each in sorted(out.iterdir()) if not _is_own(each.name)), None):
        raise UsageError(f"{out} is no index and is not empty ({other} is in it). Name another folder.")


def _is_own(name: str) -> bool:
    kind, dash, _ = name.partition("-")
    return name.startswith(".") or (bool(dash) and kind in ("chunks", "terms", "bm25", "embeddings", "graph"))


def _read_before(out: Path, settings: IndexSettings) -> _Before:
    """The parts of the index at `out` that can be used again: none if it is damaged or of other settings."""
    nothing = _Before({}, {}, {})
    if not (out / MANIFEST).exists():
        return nothing
    try:
        manifest = read_manifest(out)
        check_files(out, manifest)
        chunks = read_chunks(out, manifest)
    except (Damaged, NotComparable):  # it is built from the start, and its files are replaced
        return nothing
    if msgspec.structs.replace(manifest.settings, embedding=UNSET) != msgspec.structs.replace(
        settings, embedding=UNSET
    ):
        return nothing
    by_file: dict[tuple[str, str], list[Chunk]] = {}
    at = 0
    for source in manifest.sources:
        by_file[source.path, source.sha256] = chunks[at : at + source.n_chunks]
        at += source.n_chunks
    left = {
        (each.path, each.sha256): each
        for each in manifest.left_out
        if each.sha256 and each.reason not in _TRY_AGAIN
    }
    vectors: dict[str, Floats] = {}
    path = manifest.file(out, "embeddings")
    if path is not None and manifest.settings.embedding == settings.embedding:
        rows = np.load(path, allow_pickle=False)
        vectors = {chunk.searched: row for chunk, row in zip(chunks, rows, strict=True)}
    return _Before(by_file, left, vectors, manifest)


class _Reading:
    """Reads the candidates, or takes them from the index before."""

    def __init__(self, before: _Before, settings: IndexSettings, limits: Limits, watch: Watch | None):
        self.before, self._settings, self._limits, self.watch = before, settings, limits, watch
        self.chunks: list[Chunk] = []
        self.sources: list[IndexedFile] = []
        self.left_out: list[SkippedFile] = []
        self.n_read = 0

    def all(self, candidates: Sequence[Candidate], converter: Converter) -> None:
        """Read every candidate, in order."""
        n_done, n_total = 0, sum(each.bytes for each in candidates)
        for candidate in candidates:
            self._show(n_done, n_total)
            self._one(candidate, converter)
            n_done += candidate.bytes
        self._show(n_total, n_total)

    def unchanged(self) -> IndexManifest | None:
        """The manifest of the index before, if its own files would be written again as they are."""
        held = self.before.manifest
        if held is None or self.n_read or held.settings != self._settings:
            return None
        has_graph = any(each.path.startswith("graph-") for each in held.files)
        wants_graph = (
            held.settings.embedding is not UNSET and held.n_chunks > index.EXACT and index.has_usearch()
        )
        return held if tuple(self.sources) == held.sources and has_graph == wants_graph else None

    def manifest(self, files: tuple[FileHash, ...], place: str) -> IndexManifest:
        """The manifest of an index of what was read, with these files of its own."""
        left = tuple(sorted(self.left_out, key=lambda each: each.path))
        return IndexManifest(self._settings, files, tuple(self.sources), left, place, self._limits.max_bytes)

    def _show(self, n_done: int, n_total: int) -> None:
        if self.watch is not None:
            self.watch(Progress("read", "reading", n_done, n_total, unit="bytes"))

    def _one(self, candidate: Candidate, converter: Converter) -> None:
        sha256 = ""
        try:
            data = read_bytes(candidate.file, self._limits)
            sha256 = hashlib.sha256(data).hexdigest()
            key = (candidate.path, sha256)
            if known := self.before.left_out.get(key):
                self.left_out.append(known)
                return
            chunks = self.before.chunks.get(key)
            if chunks is None:
                blocks = converter.read(candidate.reader, data)
                unit = load(candidate.reader).UNIT
                chunks = cut(candidate.path, unit, blocks, self._settings.words)
                self.n_read += 1
        except Unreadable as error:
            self.left_out.append(
                SkippedFile(candidate.path, error.reason, error.detail, candidate.bytes, sha256)
            )
            return
        self.chunks += chunks
        self.sources.append(IndexedFile(candidate.path, len(data), sha256, len(chunks)))


def _embeddings(
    chunks: Sequence[Chunk], before: _Before, embedder: Embedder | None, watch: Watch | None
) -> tuple[Floats | None, int]:
    """The embedding of each chunk (chunk, hidden), and how many were computed now; None without a model."""
    if embedder is None:
        return None, 0
    known = before.embeddings
    texts = [chunk.searched for chunk in chunks]
    new = [text for text in dict.fromkeys(texts) if text not in known]
    meter = Meter(watch, "embed", len(new))
    made: dict[str, Floats] = {}
    for start in range(0, len(new), embedder.n_at_once):
        batch = new[start : start + embedder.n_at_once]
        made.update(zip(batch, embedder.embed_all(batch), strict=True))
        meter.reached(len(made))
    meter.close()
    rows = [made[text] if text in made else known[text] for text in texts]
    return np.stack(rows).astype(np.float32), len(new)


def _write_files(out: Path, chunks: Sequence[Chunk], vectors: Floats | None) -> tuple[FileHash, ...]:
    """Write the index's own files. Their names hold their hash, so that none replaces one in use."""
    lexical = Bm25.from_texts(chunk.searched for chunk in chunks)
    files = [_NewFile(out, "chunks", ".jsonl")]
    files[-1].bytes(b"".join(encode(chunk) + b"\n" for chunk in chunks))
    files.append(_NewFile(out, "terms", ".json"))
    files[-1].bytes(msgspec.json.encode(lexical.vocabulary))
    for name in ("data", "indices", "indptr"):
        files.append(_NewFile(out, f"bm25-{name}", ".npy"))
        files[-1].array(lexical.arrays[name])
    if vectors is not None:
        files.append(_NewFile(out, "embeddings", ".npy"))
        files[-1].array(vectors)
        if len(vectors) > index.EXACT and index.has_usearch():
            files.append(_NewFile(out, "graph", ".usearch"))
            files[-1].graph(vectors)
    sync_folder(out)
    return tuple(file.hash for file in files)


class _NewFile:
    """A file of the index, written under a passing name and then named by its hash."""

    def __init__(self, out: Path, kind: str, suffix: str) -> None:
        self._out, self._kind, self._suffix = out, kind, suffix
        self.hash = FileHash("", 0, "")

    def bytes(self, data: bytes) -> None:
        """Write bytes."""
        with replacing(self._new) as temporary:
            temporary.write_bytes(data)
        self._name()

    def array(self, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
        """Write an array, without pickle."""
        with replacing(self._new) as temporary, temporary.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        self._name()

    def graph(self, vectors: Floats) -> None:
        """Write the graph of embeddings."""
        with replacing(self._new) as temporary:
            index.write_graph(vectors, temporary)
        self._name()

    @property
    def _new(self) -> Path:
        return self._out / f"{self._kind}-new{self._suffix}"

    def _name(self) -> None:
        sha256 = hash_file(self._new)
        named = f"{self._kind}-{sha256[:12]}{self._suffix}"
        self.hash = FileHash(named, self._new.stat().st_size, sha256)
        self._new.replace(self._out / named)


def _remove_others(out: Path, manifest: IndexManifest) -> None:
    """Remove the files of the index before, and those of an update that was killed."""
    own = {each.path for each in manifest.files}
    for path in out.iterdir():
        if path.name not in own and not path.name.startswith(".") and _is_own(path.name):
            with suppress(OSError):
                path.unlink()
