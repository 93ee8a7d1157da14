"""The files of a named model as they were when it was first pulled: they are held from then on.

A hub may serve other bytes under a name tomorrow, and the catalogue pins no hashes of the open families. The
first pull of such a model therefore records the commit and the list of files before it fetches any. Once all
are there, the hash of each is added. Later pulls of the name ask for that commit and refuse other bytes.

Promises: one JSON file per model, in the folder `held` of the store; a file that cannot be read is an error.
Leaves to others: the transfer, which checks the hub's own hashes (hub.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from heredity.core.errors import Damaged, Unavailable, WrongHash
from heredity.core.files import hash_file, write_atomic
from heredity.lineage.store import now
from heredity.recipes.pull.hub import HubFile, Repository

FOLDER = "held"


class Listed(msgspec.Struct, frozen=True):
    """A file as the hub listed it. `sha256`: "" for small files, of which it publishes none."""

    path: str
    bytes: int
    sha256: str


class Held(msgspec.Struct, frozen=True):
    """A model as it was first seen. `files`: path -> SHA-256 of the stored files; {} until all were there."""

    name: str
    repo: str
    revision: str
    listed: tuple[Listed, ...]
    at: str
    files: dict[str, str] = {}
    schema: int = 1


def read(folder: Path, name: str) -> Held | None:
    """The record of a model's first pull; None before it. Raises Damaged."""
    path = _path(folder, name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Held)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise Damaged(
            f"{path}: cannot be read ({error}). It holds the hashes of '{name}'. If you remove it, the next"
            " pull records them anew, from whatever the hub has then.",
            code="held-damaged",
        ) from error


def compare(name: str, repository: Repository, files: Sequence[HubFile], seen: Held | None) -> Held:
    """The record of a model as the hub lists it, which must be the one that is held. Raises WrongHash."""
    listed = tuple(sorted((Listed(f.path, f.n_bytes, f.sha256) for f in files), key=lambda f: f.path))
    if seen is None:
        return Held(name, repository.repo, repository.commit, listed, now())
    if repository.commit != seen.revision:
        raise _other(seen, f"the hub answers with commit {repository.commit[:12]}")
    known = {f.path: f for f in seen.listed}
    for path in sorted(known.keys() ^ {f.path for f in listed}):
        raise _other(seen, f"'{path}' is {'missing' if path in known else 'new'}")
    for file in listed:
        if file != known[file.path]:
            raise _other(seen, f"'{file.path}' has other bytes")
    return seen


def hold_listing(folder: Path, seen: Held) -> None:
    """Record the listing of a first pull, before any file is fetched."""
    if read(folder, seen.name) is None:
        _write(folder, seen)


def hold_files(folder: Path, seen: Held, out: Path) -> None:
    """Record the hash of every fetched file, or compare them with what is held. Raises WrongHash."""
    listed = {f.path: f for f in seen.listed}
    paths = (path for path in sorted(out.rglob("*")) if path.is_file())
    files = {(name := path.relative_to(out).as_posix()): _hash(path, listed.get(name)) for path in paths}
    if not seen.files:
        _write(folder, msgspec.structs.replace(seen, files=files))
    elif changed := sorted(path for path, _ in files.items() ^ seen.files.items()):
        raise _other(seen, f"'{changed[0]}' has other bytes")


def _hash(path: Path, listed: Listed | None) -> str:
    """The SHA-256 of a file. The transfer has checked the hub's own, if there is one."""
    if listed is not None and listed.sha256 and path.stat().st_size == listed.bytes:
        return listed.sha256
    return hash_file(path)


def gone(seen: Held) -> Unavailable:
    """The error for a commit that the hub no longer has."""
    return Unavailable(
        f"'{seen.name}' was recorded on {seen.at[:10]} at commit {seen.revision[:12]} of {seen.repo}, which"
        f" the hub no longer has. {_instead(seen)}",
        code="held-revision-missing",
    )


def _other(seen: Held, what: str) -> WrongHash:
    return WrongHash(
        f"'{seen.name}': {what}; on {seen.at[:10]} {seen.repo} was recorded at commit {seen.revision[:12]}."
        f" Nothing is stored. {_instead(seen)}",
        code="held-other-bytes",
    )


def _instead(seen: Held) -> str:
    return f"To take what is there now, name the revision: heredity pull {seen.name}@main"


def _write(folder: Path, held: Held) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(_path(folder, held.name), msgspec.json.format(msgspec.json.encode(held), indent=2) + b"\n")


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
