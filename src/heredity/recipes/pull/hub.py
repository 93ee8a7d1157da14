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
from heredity.recipes.pull.download import UNREACHABLE, Address, check_room, fetch, fetch_start
from heredity.recipes.pull.folder import WANTED, refuse_name, refuse_outside

_SECONDS = 10.0
_MAX_CONFIG, _START = 4 << 20, 1 << 16  # bytes


class HubFile(NamedTuple):
    """A file of the repository. `sha256` is "" if the hub publishes none (small text files)."""

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
            repo, revision=revision, timeout=_SECONDS, files_metadata=True
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
    return Unavailable(
        f"the model hub: {repo} is gated. Accept its licence at {_page(repo)} with your account, and set"
        " HF_TOKEN to a token of it that may read gated repositories.",
        code="hub-gated",
    )


def _page(repo: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


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
    try:
        paths = {}
        for f in files:
            name = f"{repository.commit[:12]}-{f.path.replace('/', '--')}.part"
            paths[f.path] = fetch(_address(repository, f), downloads / name, progress)
        return paths
    except Unavailable as error:
        if _wants_consent(repository, error):
            raise ask_for_consent(repository.repo) from error
        raise


def _wants_consent(repository: Repository, error: Unavailable) -> bool:
    return repository.is_gated and error.code == Unavailable.code


def read_json(repository: Repository, file: HubFile, downloads: Path) -> Path:
    """Fetch one small JSON file to where `download` finds it again. Raises Refused if it is large."""
    if file.n_bytes > _MAX_CONFIG:
        raise Refused(f"{repository.repo}/{file.path}: {file.n_bytes:,} bytes are too many for a config.")
    return download(repository, [file], downloads, None)[file.path]


def read_start(repository: Repository, file: HubFile) -> bytes:
    """The first bytes of a file: enough for the settings in the header of a GGUF, without its vocabulary."""
    try:
        return fetch_start(_address(repository, file), _START)
    except Unavailable as error:
        if _wants_consent(repository, error):
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
