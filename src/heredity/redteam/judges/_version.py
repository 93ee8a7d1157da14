"""Which verdicts a judge gives, as a number: `VERSION` in the judge's file, raised when a verdict changes.

Promises: a reworded docstring or a moved file changes no stamp. A raised number changes the stamp of its
judge; that of `rules` changes every stamp, since every judge reads an answer's manner by the rules.
Leaves to others: noticing that a verdict changed (tests/redteam/judges/golden.py holds many), and how good a
judge is (calibration/quality.py).
"""

from __future__ import annotations

import hashlib

# Before there were numbers, a study carried a hash of the judges' source files. The files of this hash gave
# the verdicts of this version, so its stamp stays that hash: nothing that they judged is judged again.
SOURCE_HASHES = {"6b37e6872beffa6a": 1}


def stamp(name: str, version: int, rules: int) -> str:
    """16 hex digits for the judge `name` at a version of its own and one of `rules`."""
    for source_hash, number in SOURCE_HASHES.items():
        if version == rules == number:
            return source_hash
    return hashlib.blake2b(f"{name} {version}, rules {rules}".encode(), digest_size=8).hexdigest()
