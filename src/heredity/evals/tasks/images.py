"""Pictures in a task: `picture:FILE` in its file, beside that file, and the picture itself once it is read.

Promises: a task's digest is over the bytes of its pictures, not over where they lie.
Leaves to others: what is in a picture (engines/dual.py).
"""

from __future__ import annotations

import base64
from pathlib import Path

from heredity.core.errors import BadInput

_FILE, _READ = "picture:", "data:image;base64,"


def opened(text: str, task: Path, line: int) -> str:
    """A text as it is; of `picture:FILE` the file's bytes. Raises BadInput."""
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
    """The picture that a text is; None where it is a text."""
    return base64.b64decode(text.removeprefix(_READ)) if text.startswith(_READ) else None
