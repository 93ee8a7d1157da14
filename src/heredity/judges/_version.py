"""Which judges these are: a digest over everything in this folder that can change a verdict.

Promises: the same files give the same version on every machine; a change of a rule, a sign or a weight gives
another, so that a study never mixes the verdicts of two judges.
Leaves to others: how good the judges are (_quality.py and quality.json change no verdict and do not count).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_NO_VERDICT = {  # they measure judges, or train one
    *("_labels.py", "_quality.py", "_version.py", "quality.json", "_measure.py", "_kept.py"),
    *("_learned_card.py", "_learned_data.py", "_learned_train.py", "learned.json"),
    *("_head_train.py", "_head_lines.py", "_trained.py", "_seen.py"),
}


@lru_cache(maxsize=1)
def version() -> str:
    """16 hex digits over the name and the bytes of every file here that can change a verdict."""
    return digest_files(_FOLDER)


def digest_files(folder: Path) -> str:
    """The same of any folder laid out as this one."""
    found = hashlib.blake2b(digest_size=8)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and _counts(p.relative_to(folder))):
        data = path.read_bytes()
        if path.suffix == ".py":
            data = data.replace(b"\r\n", b"\n")  # a checkout may have other line endings
        name = path.relative_to(folder).as_posix()
        found.update(b"%d %d\0" % (len(name.encode()), len(data)) + name.encode() + data)
    return found.hexdigest()


def _counts(path: Path) -> bool:
    return path.name not in _NO_VERDICT and "__pycache__" not in path.parts and path.name[0] != "."
