"""Everything around the model that a study holds constant: prompt, retrieval, tools, decoding.

`write_starter` writes the first files of one's own.
"""

from __future__ import annotations

from pathlib import Path

from heredity.core.errors import UsageError
from heredity.core.files import write_atomic

_SOURCE = Path(__file__).with_name("starter")
FILES = {
    "application.toml": "application.toml",
    "override_code.toml": "override_code.toml",
    "plan.toml": "plan.toml",
    ".github/workflows/heredity.yml": "github.yml",
    "heredity.gitlab-ci.yml": "gitlab.yml",
}


def write_starter(folder: Path) -> list[Path]:
    """Write the starter files into `folder`, which is created if it does not exist, and return their paths.

    Raises UsageError if one of the files exists already; then nothing is written.
    """
    targets = {folder / name: _SOURCE / source for name, source in FILES.items()}
    if existing := [str(path) for path in targets if path.exists()]:
        raise UsageError(
            f"Nothing was written, because files exist already: {', '.join(existing)}. Name another folder."
        )
    for path, source in targets.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, source.read_bytes())
    return list(targets)
