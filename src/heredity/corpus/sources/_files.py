"""The files of a folder or a pattern, in an order independent of the file system; the text of a file.

Promises: names are relative to the folder, with /; hidden files and folders are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from heredity.core.errors import BadInput, UsageError
from heredity.corpus.sources import JOB_BYTES, CorpusSource, Job

Named = tuple[str, str]  # where a file lies, and its name in the corpus


def files_of(source: CorpusSource, root: Path) -> list[Named]:
    """The files that a source names: a file, a folder with all beneath it, or a pattern (** for any depth).

    Raises UsageError if it does not exist.
    """
    place, endings = root / Path(source.path).expanduser(), source.reads()
    if place.is_file():
        return [(str(place), place.name)]
    if place.is_dir():
        paths = [
            p
            for p in place.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(place).parts)
        ]
        paths = [p for p in paths if not endings or p.suffix.lower() in endings]
        base = place
    else:
        parts = []
        for part in place.parts[:-1]:
            if any(sign in part for sign in "*?["):
                break
            parts.append(part)
        base = Path(*parts)
        paths = [p for p in base.glob(str(place.relative_to(base))) if p.is_file()] if base != place else []
    if not paths:
        kinds = f" ({' '.join(endings)})" if endings and place.is_dir() else ""
        is_there = "holds no file" if place.is_dir() else "is not there"
        raise UsageError(
            f"source '{source.name}': {place} {is_there}{kinds}. Name a file, a folder, or a pattern like "
            "texts/*.txt",
            code="unreadable-file",
            table=source.name,
        )
    return sorted(((str(p), p.relative_to(base).as_posix()) for p in paths), key=lambda each: each[1])


def grouped(files: Iterable[Named], n_bytes: int = JOB_BYTES) -> list[Job]:
    """Jobs of whole files, of about equal size."""
    jobs: list[Job] = []
    held: list[Named] = []
    size = 0
    for path, name in files:
        held.append((path, name))
        size += Path(path).stat().st_size
        if size >= n_bytes:
            jobs.append(Job(tuple(held)))
            held, size = [], 0
    return [*jobs, Job(tuple(held))] if held else jobs


def text(path: str, encoding: str = "utf-8") -> bytes:
    """A file as UTF-8, without its byte order mark. Raises BadInput with the line of an invalid byte."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(path, f"cannot be read: {error.strerror}") from None
    if encoding == "utf-8":
        raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.isascii():
            return raw
    try:
        return raw.decode(encoding).encode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadInput(
            path,
            f'is not {encoding} (byte {error.start}). Say its encoding in the recipe: encoding = "latin-1"',
            line,
        ) from None


def cut(whole: bytes, separator: str) -> Iterator[bytes]:
    """The documents of a file: one, or those between separators; empty ones are skipped."""
    for part in whole.split(separator.encode()) if separator else [whole]:
        if part.strip():
            yield part
