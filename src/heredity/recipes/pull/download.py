"""Fetch one file over HTTPS; an interrupted download resumes.

Promises: a finished file has the expected size and SHA-256; a file with another hash is deleted. A lost
connection or a kill leaves the part, and the next call requests only the rest.
Leaves to others: the address and the hash (hub.py, recipe.py).
"""

from __future__ import annotations

import os
import shutil
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core.errors import Damaged, HeredityError, Unavailable, WrongHash
from heredity.core.files import explain_full_disk, hash_file
from heredity.core.progress import Progress, Watch

if TYPE_CHECKING:
    import httpx

UNREACHABLE = "hub-unreachable"  # the code for a host that does not answer
_BLOCK = 1 << 20  # bytes per read
_SECONDS = 30.0  # without a byte until a connection counts as lost
_TRIES = 4
_SPARE = 64 << 20  # bytes to leave free on the disk


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


def fetch_start(address: Address, n_bytes: int) -> bytes:
    """The first bytes of a file, without keeping them. Raises Unavailable."""
    import httpx

    headers = {**address.headers, "Accept-Encoding": "identity", "Range": f"bytes=0-{n_bytes - 1}"}
    start = b""
    try:
        with _client() as client, client.stream("GET", address.url, headers=headers) as response:
            if response.status_code not in (200, 206):
                raise _refused(address, response.status_code)
            for block in response.iter_bytes(n_bytes):
                start += block
                if len(start) >= n_bytes:
                    break
    except httpx.TransportError as error:
        raise _unreachable(address, error) from error
    return start[:n_bytes]


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
                return _stream(client, address, part, progress)
        except httpx.TransportError as error:
            if attempt == _TRIES or isinstance(error, httpx.ConnectError):
                raise _unreachable(address, error) from error
            time.sleep(attempt)
    return None


def _client() -> httpx.Client:
    import httpx
    import truststore

    context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if (file := os.environ.get("SSL_CERT_FILE")) and Path(file).is_file():
        context.load_verify_locations(cafile=file)
    return httpx.Client(verify=context, follow_redirects=True, timeout=_SECONDS, trust_env=True)


def _stream(client: httpx.Client, address: Address, part: Path, progress: Watch | None) -> None:
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
        _write(response, address, part, have, progress)


def _write(response: httpx.Response, address: Address, part: Path, have: int, progress: Watch | None) -> None:
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
