"""Entries of a folder that no source reads: links, pipes, folders without permission.

Promises: everything with the ending of a file that would be read is either read or counted here.
Leaves to others: the files (_files.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def left_out(folder: Path, endings: Sequence[str]) -> Counter[str]:
    """Count the omitted entries by reason; empty if it is not a folder. Hidden entries are not counted."""
    found: Counter[str] = Counter()
    if not folder.is_dir():
        return found
    for here, folders, files in os.walk(folder, onerror=lambda _: found.update(["unreadable_folder"])):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.update("linked_folder" for name in folders if Path(here, name).is_symlink())
        named = [Path(here, name) for name in files if not name.startswith(".")]
        found.update(
            "no_file" if path.exists() else "broken_link"
            for path in named
            if not path.is_file() and (not endings or path.suffix.lower() in endings)
        )
    return found
