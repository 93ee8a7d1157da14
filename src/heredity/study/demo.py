"""A finished study that ships with the package: real answers of small models, recorded once.

Promises: no model, no download and no store are needed; the estimates are computed here, from the recorded
answers and verdicts. `tools/record_demo.py` records them again.
Leaves to others: the numbers (aggregate.py) and the pages (report/).
"""

from __future__ import annotations

import lzma
from pathlib import Path

from heredity.core.errors import UsageError
from heredity.core.files import read_file, write_atomic
from heredity.study.aggregate import estimate
from heredity.study.estimates import Estimates
from heredity.study.plan import PLAN, read_plan
from heredity.study.storage import write_estimates

RECORDED = Path(__file__).with_name("recorded")


def write_demo(folder: Path) -> Estimates:
    """Unpack the recorded study into `folder`, compute its estimates, and return them.

    Raises UsageError if the folder exists and holds anything else than an earlier demo.
    """
    rows = {path.stem: lzma.decompress(path.read_bytes()) for path in sorted(RECORDED.glob("*.xz"))}
    if _holds_other_files(folder, rows[PLAN]):
        raise UsageError(f"{folder} holds other files. Name another: --out.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in rows.items():
        write_atomic(folder / name, data)
    estimates = estimate(read_plan(folder), folder)
    write_estimates(folder, estimates)
    return estimates


def _holds_other_files(folder: Path, plan: bytes) -> bool:
    if not folder.exists() or not any(folder.iterdir()):
        return False
    held = folder / PLAN
    return not held.exists() or read_file(held) != plan
