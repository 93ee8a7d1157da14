"""A study that is killed ten times with SIGKILL, compared with one that runs without a stop.

    python bench/grand.py                                      scripted models, all probes: some minutes
    python bench/grand.py --model smollm2-135m-instruct --probes core    real ones: hours on two cores

Prints the number of trials, the step of each kill, and whether the estimates of both are equal; exits 1 if
they are not. Rows and report stay in the folder that it names. Real models find the answers of the first
study in the response cache, so for them it shows the resume only.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from heredity.study.estimates import Circumstances, Estimates
from heredity.study.plan import read_plan
from heredity.study.storage import read_estimates

MODELS = ("scripted:mixed", "scripted:mixed/b", "scripted:careful")
ATTACKS = ("direct", "encoding:base64", "roleplay", "foot_in_door")
ROOT = Path(__file__).parents[1]


def main() -> int:
    args = _arguments()
    work = Path(tempfile.mkdtemp(prefix="heredity-grand-", dir=args.work))
    command = [sys.executable, "-m", "heredity", "study", "--application", str(args.application), "--yes"]
    for flag, values in (("--model", args.model), ("--attack", args.attack), ("--probes", args.probes)):
        command += [part for value in values for part in (flag, value)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {work}")
    start = time.monotonic()
    _run([*command, "--out", str(work / "whole")], work / "whole.log", None)
    seconds = time.monotonic() - start
    plan = read_plan(work / "whole")
    techniques = {probe.technique for probe in plan.probes}
    print(
        f"{len(plan.models)} models x {len(techniques)} techniques x {len(plan.attacks)} attacks: "
        f"{plan.n_trials:,} trials, {seconds:.0f} s uninterrupted, report included"
    )
    told = []
    while len(told) < args.kills:
        if not _run(
            [*command, "--out", str(work / "killed")], work / "killed.log", random.uniform(1, seconds)
        ):
            if not told:
                continue
            shutil.rmtree(work / "killed")  # it came to its end first: begin again, the kills count
        else:
            told.append(_last_step(work / "killed.log"))
    _run([*command, "--out", str(work / "killed")], work / "killed.log", None)
    print(f"killed {len(told)} times, in the steps: {', '.join(told)}")
    is_same = _numbers(work / "whole") == _numbers(work / "killed")
    print("the estimates are " + ("equal" if is_same else "DIFFERENT"))
    return 0 if is_same else 1


def _run(command: list[str], log: Path, until: float | None) -> bool:
    """Run it; kill it after `until` seconds. True if it was still running."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT) as process:
        try:
            process.wait(until)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return True
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return False


def _last_step(log: Path) -> str:
    lines = [line.split() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][0] if lines else "start"


def _numbers(folder: Path) -> Estimates:
    """The estimates without clock, host and cache."""
    return msgspec.structs.replace(read_estimates(folder), circumstances=Circumstances("", "", 0.0, 0, {}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append")
    parser.add_argument("--attack", action="append")
    parser.add_argument("--probes", action="append")
    parser.add_argument("--application", type=Path, default=ROOT / "examples" / "support-desk.toml")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--work", type=Path, help="where the two studies go")
    args = parser.parse_args()
    args.model, args.attack = args.model or list(MODELS), args.attack or list(ATTACKS)
    args.probes = args.probes or ["full"]
    return args


if __name__ == "__main__":
    sys.exit(main())
