"""What commit 9797035 wrote (tests/fixtures/9797035), and how today's output is held against it.

When a rename makes a test fail, one of two things is missing. Either heredity needs an alias where it
reads the old name, or RENAMED below needs a line for a key of heredity's own output. Never edit fixtures
or expected values.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1] / "fixtures" / "9797035"
FILES = HERE / "files"

# A key of JSON or CSV that heredity prints or writes: as it was -> as it is. Never for a key that it reads.
RENAMED: dict[str, str] = {
    "reaches": "points",  # of a curve in estimates.json
    "n_looks": "n_interim",
    "n_looks_planned": "n_interim_planned",
    "look": "interim",
    # of heredity plan --json
    "hidden": "head_share",
    "looked_at": "n_evaluated",
    "runs_again": "recompute",
    "product": "microbatch",
    "n_products": "n_microbatches",
    "multiplied": "matmul_seconds",
    "talked": "communication_seconds",
    "sent": "communication_bytes",
}
# A value that is a name (of a method, a scope, an outcome): as it was -> as it is.
RENAMED_VALUES: dict[str, str] = {}
# Not compared: what differs with each run, and the version of a format.
PASSING = {"schema", "circumstances"}


def table(name: str) -> Any:
    """An expected table of the fixtures."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def unpack(name: str, into: Path) -> Path:
    """Extract the archives of this name; the folder that they are in."""
    found = [HERE / f"{name}.tar.xz", *sorted(HERE.glob(f"{name}-[0-9].tar.xz"))]
    for path in found:
        with tarfile.open(path) as archive:
            archive.extractall(into, filter="data")
    return into


def heredity(*args: object) -> tuple[int, str, str]:
    """Run one command in this process: exit code, stdout, stderr."""
    from heredity.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(map(str, args)))
    return code, out.getvalue(), err.getvalue()


def done(*args: object) -> str:
    """Run a command that must end well; its stdout."""
    code, out, err = heredity(*args)
    assert code == 0, f"as 9797035 took it: heredity {' '.join(map(str, args))}\nexit {code}: {err.strip()}"
    return out


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """A line for each value that is not what it was. New keys are allowed, and so are other sentences."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            today = key if key in new else RENAMED.get(key, key)  # other output may keep the name
            if key in PASSING:
                continue
            if today not in new:
                yield f"{path}.{key}: gone; there are {', '.join(list(new)[:12])}. Renamed? See RENAMED"
            else:
                yield from differences(value, new[today], f"{path}.{today}")
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{path}: {len(old)} entries were there, and {len(new)} are"
        for i, (one, two) in enumerate(zip(old, new, strict=False)):
            yield from differences(one, two, f"{path}[{i}]")
    elif not _is_equal(old, new):
        yield f"{path}: was {old!r}, is {new!r}"


def _is_equal(old: Any, new: Any) -> bool:
    if isinstance(old, str) and isinstance(new, str):
        return RENAMED_VALUES.get(old, old) == new or (
            " " in old and " " in new
        )  # a sentence may be reworded
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        return math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-12)
    return bool(old == new)


def assert_same(old: Any, new: Any, what: str) -> None:
    """Fail with the first differences, each on a line of its own."""
    found = list(differences(old, new))
    shown = "\n  ".join(found[:15])
    assert not found, f"{what}: {len(found)} values are not those of 9797035:\n  {shown}"


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(text)))
