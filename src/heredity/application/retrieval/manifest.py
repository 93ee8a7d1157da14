"""The manifest of an index: its settings, the files that it was made of, and the hashes of its own files.

Promises: it is written last, so its presence means that the index is complete. An edited or torn manifest, a
missing or changed file and another schema are refused.
Leaves to others: making an index (build.py), and searching it (index.py).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application.retrieval.chunks import WORDS, Chunk
from heredity.application.retrieval.folder import MANIFEST, Limits, SkippedFile, folder_of
from heredity.application.retrieval.lexical import TERMS
from heredity.core.errors import BadArgument, Damaged, NotComparable, UsageError
from heredity.core.files import hash_file, write_atomic
from heredity.core.records import FileHash, Record, digest

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

    folder: the documents, relative to the index if they lie near it (folder.place_of).
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
