"""The fixtures themselves: what a sweeping rename must not reach."""

from __future__ import annotations

import hashlib

from tests.support import old_version as old


def test_no_fixture_was_edited() -> None:
    sums = dict(
        reversed(line.split("  ", 1)) for line in (old.HERE / "SHA256SUMS").read_text("utf-8").splitlines()
    )
    edited = [
        name for name, sha256 in sums.items()
        if not (old.HERE / name).is_file()
        or hashlib.sha256((old.HERE / name).read_bytes()).hexdigest() != sha256
    ]  # fmt: skip
    assert not edited, f"written by 9797035, and changed since: {edited}. Restore them: git checkout"
    there = {p.relative_to(old.HERE).as_posix() for p in old.HERE.rglob("*") if p.suffix in (".json", ".xz")}
    assert there <= set(sums)
