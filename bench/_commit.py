"""The commit that a benchmark measures. A figure without it cannot be made again."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """Its short hash, with a + if files have changed since; "unknown" outside of a repository."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + "+" * bool(git("status", "--porcelain"))
