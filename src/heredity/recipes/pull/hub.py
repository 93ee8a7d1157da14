"""Fetch files of a model hub's repository: only safetensors, GGUF and the text that describes them.

Promises: a hub that cannot be reached fails at once. The revision is resolved to a commit first. Weights
are checked against the hash of the hub, and against the catalogue's if it pins one.
Leaves to others: the transfer (download.py), and the contents of the files (folder.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from heredity.core.errors import Refused, Unavailable, UsageError, first_line
from heredity.core.progress import Watch
from heredity.recipes.pull.download import Address, check_room, fetch
from heredity.recipes.pull.folder import WANTED, refuse_name, refuse_outside

_SECONDS = 10.0


class HubFile(NamedTuple):
    """A file of the repository. `sha256` is "" if the hub publishes none (small text files)."""

    path: str
    n_bytes: int
    sha256: str


class Repository(NamedTuple):
    """A repository at one commit."""

    repo: str
    commit: str
    licence: str
    files: tuple[HubFile, ...]


def look_up(repo: str, revision: str | None) -> Repository:
    """Ask the hub for the files of a repository. Raises Unavailable, with the reason."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(library_name="heredity").model_info(
            repo, revision=revision, timeout=_SECONDS, files_metadata=True
        )
    except Exception as error:  # its errors share no base: network, gated, missing, offline mode, bad name
        raise Unavailable(f"the model hub: {first_line(error)}") from error
    card = info.card_data
    licence = str((card.get("license") if card else None) or "").strip() or "not stated"
    files = tuple(
        HubFile(f.rfilename, f.size or 0, f.lfs.sha256 if f.lfs else "") for f in info.siblings or ()
    )
    return Repository(repo, info.sha or revision or "main", licence, files)


def choose(repository: Repository, file: str | None) -> list[HubFile]:
    """The files that make up the model. Raises Refused, and UsageError if a GGUF must be named."""
    by_path = {f.path: f for f in repository.files}
    if file:
        if file not in by_path:
            raise UsageError(f"{repository.repo} has no file '{file}'. It has: {_some(by_path)}")
        return [by_path[file]]
    wanted = [f for f in repository.files if any(PurePosixPath(f.path).match(p) for p in WANTED)]
    if any(f.path.endswith(".safetensors") for f in wanted):
        if code := [f.path for f in repository.files if f.path.endswith(".py")]:
            raise Refused(
                f"{repository.repo} brings its own code ({code[0]}); heredity never runs it.", code="own-code"
            )
        return [f for f in wanted if not f.path.endswith(".gguf")]
    ggufs = [f for f in wanted if f.path.endswith(".gguf")]
    if len(ggufs) > 1:
        raise UsageError(
            f"{repository.repo} holds {len(ggufs)} GGUF files. Name one: hf:{repository.repo}/{ggufs[0].path}"
            f" (also {_some([f.path for f in ggufs[1:]])})",
            code="file-ambiguous",
        )
    if not ggufs:
        for f in repository.files:
            refuse_name(f"{repository.repo}/{f.path}", f.path)
        raise Refused(
            f"{repository.repo} holds neither safetensors nor GGUF; nothing else is opened.",
            code="no-weight-format",
        )
    return ggufs


def download(
    repository: Repository, files: list[HubFile], downloads: Path, progress: Watch | None
) -> dict[str, Path]:
    """Fetch the files. Returns the local path of each, by its path in the repository."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    check_room(downloads, 2 * sum(f.n_bytes for f in files))
    # Only the token is sent, and only to the hub: its own user agent would list the installed packages.
    headers = {k: v for k, v in build_hf_headers().items() if k.lower() == "authorization"}
    found = {}
    for f in files:
        refuse_outside(repository.repo, f.path)
        url = hf_hub_url(repository.repo, f.path, revision=repository.commit)
        address = Address(url, f.sha256, f"{repository.repo}/{f.path}", f.n_bytes, headers=headers)
        name = f"{repository.commit[:12]}-{f.path.replace('/', '--')}.part"
        found[f.path] = fetch(address, downloads / name, progress)
    return found


def _some(paths: Iterable[str]) -> str:
    shown = sorted(paths)
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
