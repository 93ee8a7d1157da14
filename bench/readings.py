"""Measure the checks on answers that people read, and rewrite the shipped readings.

python bench/readings.py READINGS.jsonl...         two readers' kappa, and the checks' errors by technique
python bench/readings.py READINGS.jsonl... --write also writes readings.jsonl (judges/calibration)
python bench/readings.py                           the same figures of the shipped readings

READINGS.jsonl  rows of study, index, trial, reader and label (study/readings.py)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from heredity.core.records import Estimate
from heredity.redteam.judges import check_quality
from heredity.redteam.judges.calibration import readings
from heredity.study.readings import read_forms, read_readings


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--root", type=Path, help="Relative paths of studies start here.")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = read_readings(arguments.files, arguments.root) if arguments.files else readings.shipped_readings()
    print_agreement(rows)
    print_errors(rows)
    if arguments.write and arguments.files:
        print(f"wrote {readings.write_readings(rows)}")
        print(f"wrote {readings.write_forms(read_forms(arguments.files, arguments.root))}")
    return 0


def print_agreement(rows) -> None:
    print(f"{len(rows)} answers, {sum(row.truth is None for row in rows)} without one label")
    for found in readings.agreement(rows):
        print(
            f"{found.a} and {found.b}, {found.kind}: kappa {show(found.kappa)}, agreed {show(found.agreed)}, "
            f"{found.n_unclear} unclear to one of them"
        )


def print_errors(rows) -> None:
    for endpoint in ("all_trials", "decided_trials"):
        print(endpoint)
        for row in check_quality(endpoint, rows):
            print(f"  {row.judge}, {row.labels}: sensitivity {show(row.sensitivity)}, "
                  f"specificity {show(row.specificity)}, agreement {show(row.accuracy)}")  # fmt: skip


def show(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"none (n={estimate.n})"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] n={estimate.n}"


if __name__ == "__main__":
    raise SystemExit(main())
