"""Images in a task: `picture:FILE`, relative to the task's file, and the image's bytes once it is read.

Promises: a task's digest covers the bytes of its images, not their paths.
Leaves to others: the content of an image (engines/dual.py).
"""

from __future__ import annotations

import base64
from pathlib import Path

from heredity.core.errors import BadInput

_FILE, _READ = "picture:", "data:image;base64,"


def opened(text: str, task: Path, line: int) -> str:
    """Replace `picture:FILE` by the file's bytes; return any other text unchanged. Raises BadInput."""
    if not text.startswith(_FILE):
        return text
    try:
        raw = (task.parent / text.removeprefix(_FILE)).read_bytes()
    except OSError as error:
        raise BadInput(
            task, f"'{text}' cannot be read: {error.strerror}", line, code="picture-unreadable"
        ) from None
    return _READ + base64.b64encode(raw).decode()


def bytes_of(text: str) -> bytes | None:
    """The bytes of an image reference that was read; None for any other text."""
    return base64.b64decode(text.removeprefix(_READ)) if text.startswith(_READ) else None
