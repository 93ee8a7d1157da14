"""Fetch files over HTTPS, and those of a model hub's repository that make up a model.

Promises: a lost connection or a kill leaves the part of a file, and the next call requests only the rest. A
finished file has the expected size and SHA-256; a file with another hash is deleted. A hub that cannot be
reached fails at once. The revision is resolved to a commit first. Weights are checked against the hash of the
hub, and against the catalogue's if it pins one.

huggingface_hub looks a repository up. It does not fetch the files: 2.4 deletes what an interrupted one left.
"""

from __future__ import annotations

import os
import shutil
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from heredity.core.errors import (
    Damaged,
    HeredityError,
    Refused,
    Unavailable,
    UsageError,
    WrongHash,
    first_line,
)
from heredity.core.files import explain_full_disk, hash_file
from heredity.core.progress import Progress, Watch
from heredity.recipes.pull import WANTED, refuse_name, refuse_outside

if TYPE_CHECKING:
    import httpx

UNREACHABLE = "hub-unreachable"  # the code for a host that does not answer
_BLOCK = 1 << 20  # bytes per read
_SECONDS_STALLED = 30.0  # without a byte until a connection counts as lost
_TRIES = 4
_SPARE = 64 << 20  # bytes to leave free on the disk
_SECONDS_ASKED = 10.0  # for an answer of the hub
_START = 1 << 16  # bytes of a GGUF that a preview reads


@dataclass(frozen=True)
class Address:
    """A file's address, size and hash. `n_bytes` is 0 if unknown; `limit` is the most bytes accepted."""

    url: str
    sha256: str
    label: str
    n_bytes: int = 0
    limit: int = 1 << 40
    headers: Mapping[str, str] = field(default_factory=dict)


def fetch(address: Address, part: Path, progress: Watch | None = None) -> Path:
    """Download into `part`, resume from an earlier part, and check the hash; "" skips that check.

    Raises WrongHash (the part is removed), Unavailable if the server cannot be reached or refuses, and
    HeredityError if the disk is full.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    was_resumed = part.exists() and part.stat().st_size > 0
    _download(address, part, progress)
    if _is_right(address, part):
        return part
    part.unlink()
    if was_resumed:  # the old bytes may have been of another file: try once more, from the start
        return fetch(address, part, progress)
    raise WrongHash(
        f"{address.label}: what {_host(address)} sent is not the file whose hash is pinned; it was deleted."
        " Try again later or from another network; if it stays so, do not trust the source."
    )


def _refused(address: Address, status: int) -> Unavailable:
    return Unavailable(f"{address.label}: {_host(address)} answered {status}.")


def _unreachable(address: Address, error: Exception) -> Unavailable:
    return Unavailable(
        f"{address.label}: {_host(address)} cannot be reached ({error}).", code="hub-unreachable"
    )


def check_room(folder: Path, n_bytes: int) -> None:
    """Raise HeredityError if the disk has no room for `n_bytes`; called before the download."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < n_bytes + _SPARE:
        raise HeredityError(
            f"Not enough room in {folder}: {n_bytes + _SPARE:,} bytes are needed, {free:,} are free."
            " Free some space, or set HEREDITY_STORE to a larger disk.",
            code="disk-full",
        )


def _download(address: Address, part: Path, progress: Watch | None) -> None:
    import httpx

    for attempt in range(1, _TRIES + 1):
        try:
            with _client() as client:
                _stream(client, address, part, progress)
            return
        except httpx.TransportError as error:
            if attempt == _TRIES or isinstance(error, httpx.ConnectError):
                raise _unreachable(address, error) from error
            time.sleep(attempt)


def _client() -> httpx.Client:
    import httpx
    import truststore

    context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if (file := os.environ.get("SSL_CERT_FILE")) and Path(file).is_file():
        context.load_verify_locations(cafile=file)
    return httpx.Client(verify=context, follow_redirects=True, timeout=_SECONDS_STALLED, trust_env=True)


def _stream(client: httpx.Client, address: Address, part: Path, progress: Watch | None) -> None:
    """Request the bytes that `part` lacks, and append them."""
    have = part.stat().st_size if part.exists() else 0
    headers = {**address.headers, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with client.stream("GET", address.url, headers=headers) as response:
        if response.status_code == 416:  # the part is complete already, and the hash decides
            return
        if response.status_code not in (200, 206):
            raise _refused(address, response.status_code)
        if response.status_code == 200:
            have = 0  # the server does not resume
        rest = response.headers.get("Content-Length", "")
        total = have + int(rest) if rest.isdigit() else address.n_bytes
        with part.open("ab" if have else "wb") as file, explain_full_disk(part.parent, max(0, total - have)):
            for block in response.iter_bytes(_BLOCK):
                have += len(block)
                if have > address.limit:
                    file.truncate(0)
                    raise Damaged(
                        f"{address.label}: more than {address.limit:,} bytes came; this is another file."
                    )
                file.write(block)
                if progress:
                    progress(Progress("download", address.label, have, total, unit="bytes"))
            file.flush()
            os.fsync(file.fileno())


def _is_right(address: Address, part: Path) -> bool:
    if not part.exists() or (address.n_bytes and part.stat().st_size != address.n_bytes):
        return False
    return not address.sha256 or hash_file(part) == address.sha256


def _host(address: Address) -> str:
    import httpx

    return httpx.URL(address.url).host


# --- the hub ---


class HubFile(msgspec.Struct, frozen=True, rename={"n_bytes": "bytes"}):
    """A file as the hub lists it. `sha256` is "" if it publishes none (small text files)."""

    path: str
    n_bytes: int
    sha256: str


class Repository(NamedTuple):
    """A repository at one commit. `is_gated`: its files need consent to its licence."""

    repo: str
    commit: str
    licence: str
    files: tuple[HubFile, ...]
    is_gated: bool = False


def look_up(repo: str, revision: str | None) -> Repository:
    """Ask the hub for the files of a repository. Raises Unavailable, with the reason and what would help."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi(library_name="heredity").model_info(
            repo, revision=revision, timeout=_SECONDS_ASKED, files_metadata=True
        )
    except errors.GatedRepoError as error:
        raise ask_for_consent(repo) from error
    except errors.RevisionNotFoundError as error:
        raise Unavailable(
            f"the model hub: {repo} has no revision '{revision}'. Its newest is hf:{repo}@main.",
            code="hub-revision-missing",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise Unavailable(
            f"the model hub: it has no '{repo}', or shows it to other accounts only"
            f" ({error.response.status_code}). Look its name up there; for a private one set HF_TOKEN."
        ) from error
    except Exception as error:  # its other errors share no base: network, offline mode, bad name
        raise Unavailable(f"the model hub: {first_line(error)}", code=UNREACHABLE) from error
    card = info.card_data
    licence = str((card.get("license") if card else None) or "").strip() or "not stated"
    files = tuple(
        HubFile(f.rfilename, f.size or 0, f.lfs.sha256 if f.lfs else "") for f in info.siblings or ()
    )
    return Repository(repo, info.sha or revision or "main", licence, files, bool(info.gated))


def ask_for_consent(repo: str) -> Unavailable:
    """The error for a gated repository whose files this account may not read yet."""
    from huggingface_hub import constants

    return Unavailable(
        f"the model hub: {repo} is gated. Accept its licence at {constants.ENDPOINT}/{repo} with your"
        " account, and set HF_TOKEN to a token of it that may read gated repositories.",
        code="hub-gated",
    )


def choose(repository: Repository, file: str | None, leave_code: bool = False) -> list[HubFile]:
    """The files that make up the model. Raises Refused, and UsageError if a GGUF must be named.

    leave_code: leave out code that the repository brings, rather than refuse the repository.
    """
    by_path = {f.path: f for f in repository.files}
    if file:
        if file not in by_path:
            raise UsageError(f"{repository.repo} has no file '{file}'. It has: {_some(by_path)}")
        return [by_path[file]]
    wanted = [f for f in repository.files if any(PurePosixPath(f.path).match(p) for p in WANTED)]
    if any(f.path.endswith(".safetensors") for f in wanted):
        code = [f.path for f in repository.files if f.path.endswith(".py")]
        if code and not leave_code:
            raise Refused(
                f"{repository.repo} brings its own code ({code[0]}); heredity never runs it.",
                code="runs-code",
            )
        return [f for f in _without_copies(wanted) if not f.path.endswith(".gguf")]
    ggufs = [f for f in wanted if f.path.endswith(".gguf")]
    if len(ggufs) > 1:
        raise UsageError(
            f"{repository.repo} holds {len(ggufs)} GGUF files. Name one: hf:{repository.repo}/{ggufs[0].path}"
            f" (also {_some([f.path for f in ggufs[1:]])})"
        )
    if not ggufs:
        for f in repository.files:
            refuse_name(f"{repository.repo}/{f.path}", f.path)
        raise Refused(f"{repository.repo} holds neither safetensors nor GGUF; nothing else is opened.")
    return ggufs


def download(
    repository: Repository, files: list[HubFile], downloads: Path, progress: Watch | None
) -> dict[str, Path]:
    """Fetch the files. Returns the local path of each, by its path in the repository."""
    check_room(downloads, 2 * sum(f.n_bytes for f in files))
    paths = {}
    with _naming_consent(repository):
        for f in files:
            name = f"{repository.commit[:12]}-{f.path.replace('/', '--')}.part"
            paths[f.path] = fetch(_address(repository, f), downloads / name, progress)
    return paths


def read_start(repository: Repository, file: HubFile) -> bytes:
    """The first bytes of a file: enough for the settings in the header of a GGUF, without its vocabulary."""
    import httpx

    address, start = _address(repository, file), b""
    headers = {**address.headers, "Accept-Encoding": "identity", "Range": f"bytes=0-{_START - 1}"}
    try:
        with _client() as client, client.stream("GET", address.url, headers=headers) as response:
            if response.status_code not in (200, 206):
                with _naming_consent(repository):
                    raise _refused(address, response.status_code)
            for block in response.iter_bytes(_START):
                start += block
                if len(start) >= _START:
                    break
    except httpx.TransportError as error:
        raise _unreachable(address, error) from error
    return start[:_START]


@contextmanager
def _naming_consent(repository: Repository) -> Iterator[None]:
    """Raise the error that names the licence where a file of a gated repository is refused."""
    try:
        yield
    except Unavailable as error:
        if repository.is_gated and error.code == Unavailable.code:
            raise ask_for_consent(repository.repo) from error
        raise


def _address(repository: Repository, file: HubFile) -> Address:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    refuse_outside(repository.repo, file.path)
    # Only the token is sent, and only to the hub: its own user agent would list the installed packages.
    headers = {k: v for k, v in build_hf_headers().items() if k.lower() == "authorization"}
    url = hf_hub_url(repository.repo, file.path, revision=repository.commit)
    return Address(url, file.sha256, f"{repository.repo}/{file.path}", file.n_bytes, headers=headers)


def _without_copies(files: list[HubFile]) -> list[HubFile]:
    """Leave out weights that are there twice: Mistral's "consolidated" file, OpenAI's and Meta's folders."""
    has_model = any(PurePosixPath(f.path).match("model*.safetensors") for f in files)

    def is_copy(path: PurePosixPath) -> bool:
        if path.suffix != ".safetensors":
            return path.parts[0] in ("original", "metal") and len(path.parts) > 1
        return path.parts[0] in ("original", "metal") or path.name.startswith("consolidated")

    return [f for f in files if not (has_model and is_copy(PurePosixPath(f.path)))]


def _some(paths: Iterable[str]) -> str:
    shown = sorted(paths)
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
