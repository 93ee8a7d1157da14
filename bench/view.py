"""Measure the pages of a study of 100,000 trials: building its index, opening it, filtering and searching.

    python bench/view.py               4 models x 5 attacks x 2,500 probes x 2 samples
    python bench/view.py --probes 250  a tenth of them
    python bench/view.py --export      also write all pages as files, which takes minutes

The rows are made, not asked: answers of 60 words from a list of 2,000. To open a study is to make its first
page with the index present, in a new process. A running study has no estimates, a finished one has. Times of
these are medians of three, and of other pages medians of five.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from _commit import commit
from heredity.application.spec import Application
from heredity.core.files import Rows
from heredity.core.records import Check, Exchange, Probe, Response, Verdict, digest_response
from heredity.redteam import attacks
from heredity.study import aggregate
from heredity.study.plan import Grid, Plan, PlannedModel, read_saved, write_plan
from heredity.study.storage import RESPONSES, VERDICTS, write_estimates
from heredity.view.export import export
from heredity.view.places import StudyPlace
from heredity.view.site import Site

ATTACKS = [attacks.load(name).spec for name in ("direct", "prefill", "encoding", "suffix", "roleplay")]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--probes", type=int, default=2500)
    parser.add_argument("--export", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = made(arguments.probes)
        print(f"commit {commit()}, {plan.n_trials:,} trials", flush=True)
        write(Path(folder) / "runs" / "study", plan)
        measure(Path(folder), plan)
        if arguments.export:
            print(exported(Path(folder)), flush=True)
    return 0


def made(n_probes: int) -> Plan:
    """Ten techniques; every second probe is a harmless twin."""
    probes = []
    for i in range(n_probes // 2):
        technique, name = f"technique_{i % 10}", f"technique_{i % 10}/item-{i:05d}"
        check, cluster = Check("marker", text="zorq"), f"{technique}/{i // 20}"
        probes += [
            Probe(name, technique, "breach", (f"Do thing {i}.",), check, cluster, twin=f"{name}~benign"),
            Probe(
                f"{name}~benign", technique, "benign", (f"Fold {i}.",), Check("refusal"), cluster, twin=name
            ),
        ]
    models = tuple(PlannedModel(name * 32, f"model-{name}", "family", "mit", "scripted") for name in "abcd")
    return Plan(models, Application("desk", "You help."), tuple(ATTACKS), tuple(probes), 2, 0, 0.05, 0.95, ())


def write(folder: Path, plan: Plan) -> None:
    """A response and a verdict for every trial."""
    write_plan(folder, plan)
    words = np.array([f"word{i:04d}" for i in range(2000)])
    generator, grid = np.random.default_rng(0), Grid(plan)
    with Rows(folder / RESPONSES, Response) as responses, Rows(folder / VERDICTS, Verdict) as verdicts:
        for index in range(len(grid)):
            trial, draw = grid.trial(index), generator.random()
            text = " ".join(generator.choice(words, 60))
            exchange = Exchange("", trial.probe.turns[0], "", text, (), "end", 20, 60)
            said = Response(
                index, trial.id, trial.model.id, grid.application, trial.probe.id, trial.attack, trial.sample,
                trial.seed, (exchange,), "scripted",
            )  # fmt: skip
            good, bad = ("answered", "refused") if trial.probe.kind == "benign" else ("held", "broke")
            outcome = bad if draw < 0.2 else "unclear" if draw < 0.25 else good
            responses.append(said)
            verdicts.append(
                Verdict(
                    index,
                    trial.id,
                    "checks",
                    outcome,
                    "compliance",
                    text[:60],
                    response=digest_response(said),
                )
            )


# What a process does that opens a study. It prints its seconds.
OPEN = """
import time; start = time.perf_counter()
import json, sys
from pathlib import Path
import uvicorn
from heredity.view.app import app
from heredity.view.places import StudyPlace
from heredity.view.site import Site
place = StudyPlace(Path(sys.argv[1]) / "runs", Path(sys.argv[1]) / "store")
site = Site(place); app(site)
ready = time.perf_counter()
site.render("/s/" + place.studies()[0].key)
print(json.dumps([ready - start, time.perf_counter() - ready]))
"""


def opened(root: Path) -> str:
    """The seconds of a new process with compiled modules, in words; the median of three."""
    command = [sys.executable, "-X", f"pycache_prefix={root / 'compiled'}", "-c", OPEN, str(root)]
    held = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    runs = [
        json.loads(subprocess.run(command, env=held, capture_output=True, check=True).stdout)
        for _ in range(4)
    ][1:]  # the first one compiled them
    start, page = (statistics.median(run[i] for run in runs) for i in range(2))
    return f"{page:.2f} s, after {start:.2f} s of the process's start"


def measure(root: Path, plan: Plan) -> None:
    """Print the time of each step."""
    start = time.perf_counter()
    place = StudyPlace(root / "runs", root / "store")
    key = place.studies()[0].key
    place.open(key).refresh(float("inf"))
    spent = time.perf_counter() - start
    folder = root / "runs" / "study"
    size = sum((folder / name).stat().st_size for name in (RESPONSES, VERDICTS))
    index = sum(path.stat().st_size for path in (root / "store" / "view").iterdir())
    print(f"building the index of {size / 1e6:.0f} MB of rows: {spent:.1f} s; index {index / 1e6:.0f} MB")
    print(f"open a running study: {opened(root)}", flush=True)
    write_estimates(folder, aggregate.estimate(read_saved(folder).plan, folder))
    print(f"open a finished study: {opened(root)}", flush=True)
    site, path = Site(place), f"/s/{key}"
    pages: dict[str, tuple[str, dict[str, str]]] = {
        "the study again": ("", {}),
        "all conversations": ("/conversations", {}),
        "one outcome": ("/conversations", {"outcome": "broke"}),
        "outcome, model, technique, attack": (
            "/conversations",
            {"outcome": "broke", "model": "model-c", "technique": "technique_7", "attack": "direct"},
        ),
        "a word": ("/conversations", {"q": "word0123"}),
        "a word, outcome and model": (
            "/conversations",
            {"q": "word0123", "outcome": "broke", "model": "model-b"},
        ),
        "the beginning of 100 words": ("/conversations", {"q": "word01"}),
        "the beginning of every word": ("/conversations", {"q": "wor"}),
        "a page from the middle": ("/conversations", {"outcome": "held", "after": str(plan.n_trials // 2)}),
        "a conversation": (f"/t/{plan.n_trials // 2}", {}),
        "what only one of two models broke": ("/pairs", {"a": "model-a", "b": "model-d"}),
        "two models side by side": (f"/pair/{plan.n_per_model // 2}", {}),
    }
    for name, (part, query) in pages.items():
        spent = median(lambda p=part, q=query: site.render(path + p, q))
        print(f"{name}: {1000 * spent:.0f} ms", flush=True)


def exported(root: Path) -> str:
    """The files of an export, their bytes, and its seconds, in words; one run."""
    start, busy = time.perf_counter(), time.process_time()
    n_files = export(StudyPlace(root / "runs", root / "store"), root / "out").n_files
    spent, busy = time.perf_counter() - start, time.process_time() - busy
    size = sum(path.stat().st_size for path in (root / "out").iterdir())
    return f"export: {n_files:,} files, {size / 1e6:.0f} MB, {spent:.0f} s, {busy:.0f} s of the processor"


def median(step: Callable[[], object]) -> float:
    """The median of five runs, in seconds."""
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        step()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


if __name__ == "__main__":
    raise SystemExit(main())
