"""The cost of the runner without a model: trials per second, memory, and estimates and report over many rows.

    python bench/runner.py                 everything; about two minutes
    python bench/runner.py --trials 20000 --rows 100000    fewer trials, and a smaller folder for the report

Each figure comes from its own process, so peak memory is that of one step. Trials go through the scripted
engine (the example application, the core probes) and onto the disk, with fsync.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
APPLICATION = ROOT / "examples" / "support-desk.toml"
MODELS = ("scripted:mixed/a", "scripted:mixed/b")
TARGET_TRIALS, TARGET_SECONDS = 5_000, 60.0


def main() -> None:
    """Run every measurement and print it with its target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the folder that is reported")
    parser.add_argument("--trials", type=int, default=200_000, help="trials that are asked and judged")
    parser.add_argument("--keep", type=Path, help="build that folder here, and keep it")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](options.folder, options.rows)))
        return
    where = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{where}, {platform.system()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        measure(Path(temporary), options.trials, options.rows, options.keep)


def measure(temporary: Path, n_trials: int, n_rows: int, keep: Path | None) -> None:
    """The whole table."""
    peaks = []
    for n in (n_trials // 10, n_trials):
        asked = step("ask", temporary / str(n), n)
        peaks.append(asked["peak_mib"])
        rate = asked["n"] / asked["seconds"]
        print(
            f"ask    {asked['n']:>9,} trials {asked['seconds']:7.1f} s {rate:9,.0f} trials/s, "
            f"{rate / TARGET_TRIALS:.1f} x the target of {TARGET_TRIALS:,}; peak {asked['peak_mib']:.0f} MiB"
        )
    print(f"memory at ten times the trials: {peaks[1] / peaks[0]:.2f} x")
    judged = step("judge", temporary / str(n_trials), n_trials)
    rate = judged["n"] / judged["seconds"]
    print(f"judge  {judged['n']:>9,} rows   {judged['seconds']:7.1f} s {rate:9,.0f} rows/s")
    folder = keep or temporary / "rows"
    built = step("build", folder, n_rows)
    print(f"build  {built['n']:>9,} rows   {built['seconds']:7.1f} s (not counted)")
    total = 0.0
    for name in ("estimate", "report"):
        done = step(name, folder, n_rows)
        total += done["seconds"]
        print(f"{name:<8}{done['n']:>8,} rows   {done['seconds']:7.1f} s; peak {done['peak_mib']:.0f} MiB")
    again = step("resume", folder, n_rows)
    print(f"resume {again['n']:>9,} rows   {again['seconds']:7.1f} s to find that nothing is left to ask")
    print(f"estimates and report: {total:.1f} s of {TARGET_SECONDS:.0f} s allowed for a million rows")


def step(name: str, folder: Path, n: int) -> dict[str, float]:
    """One step in a process of its own: its own seconds, without the start, and its peak memory."""
    command = [sys.executable, __file__, "--step", name, "--folder", str(folder), "--rows", str(n)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def timed(n: int, work: Callable[[], object]) -> dict[str, float]:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return {"n": n, "seconds": seconds, "peak_mib": peak_kib / 1024}


def ask(folder: Path, n: int) -> dict[str, float]:
    """Ask, with rows on the disk."""
    it = opened(folder, n)
    return timed(it.plan().n_trials, it.ask)


def opened(folder: Path, n: int):  # type: ignore[no-untyped-def]
    """A study of about `n` trials: the core probes, two models, as many samples as that takes."""
    import heredity as h
    from heredity.lineage import store as lineage
    from heredity.study.resolve import resolve_plan
    from heredity.study.spec import StudySpec

    records = [lineage.scripted(ref).record for ref in MODELS]
    layer = h.Application.load(APPLICATION)
    n_cells = resolve_plan(StudySpec(records, layer)).n_trials
    return h.Study(h.StudySpec(MODELS, layer, samples=max(1, n // n_cells), out=folder))


def judge(folder: Path, n: int) -> dict[str, float]:
    """Judge what `ask` left."""
    it = opened(folder, n)
    return timed(it.plan().n_trials, it.judge)


def build(folder: Path, n: int) -> dict[str, float]:
    """A folder of about `n` trials: the rows of one real sample, repeated under their own indices and ids."""
    it = opened(folder, n)
    made = it.plan()
    return timed(made.n_trials, lambda: _repeat(folder, made))


def _repeat(folder: Path, made) -> None:  # type: ignore[no-untyped-def]
    import heredity as h
    from heredity.core.files import Rows
    from heredity.core.records import Response, Verdict
    from heredity.study.plan import Grid

    small = h.Study(h.StudySpec(MODELS, made.application, out=folder / "one-sample"))
    small.run()
    grid, samples = Grid(made), made.samples
    for name, kind in (("responses.jsonl", Response), ("verdicts.jsonl", Verdict)):
        with Rows(folder / name, kind) as rows:
            for row in Rows(folder / "one-sample" / name, kind):
                for sample in range(samples):
                    trial = grid.trial(row.index * samples + sample)
                    own = {"index": trial.index, "trial": trial.id}
                    if isinstance(row, Response):
                        own |= {"sample": sample, "seed": trial.seed}
                    rows.append(msgspec.structs.replace(row, **own))
    for name in ("prefixes.jsonl", "runs.jsonl"):
        (folder / name).write_bytes((folder / "one-sample" / name).read_bytes())


def estimate(folder: Path, n: int) -> dict[str, float]:
    """Verdicts to estimates.json."""
    it = opened(folder, n)
    return timed(it.plan().n_trials, it.estimate)


def report(folder: Path, n: int) -> dict[str, float]:
    """Estimates and rows to report.html."""
    from heredity.study.report import html

    it = opened(folder, n)
    return timed(it.plan().n_trials, lambda: html.write(folder, folder / "report.html", with_text=True))


def resume(folder: Path, n: int) -> dict[str, float]:
    """The same command again, when everything was asked."""
    it = opened(folder, n)
    return timed(it.plan().n_trials, it.ask)


STEPS = {"ask": ask, "judge": judge, "build": build, "estimate": estimate, "report": report, "resume": resume}

if __name__ == "__main__":
    main()
