"""Damage to files, as a disk or a stranger does it."""

from __future__ import annotations

from pathlib import Path


def flip_bit(path: Path, at: int = -1) -> None:
    """Change one bit of a file, in the byte at a place. A file of the store is made writable for it."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
