"""Killed with SIGKILL at twenty random moments, a study comes to what an uninterrupted one comes to."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from heredity import lineage
from heredity import plan as plans
from heredity.plan import Grid, Plan, PlannedModel
from heredity.records import Verdict
from heredity.store import Rows
from heredity.study import Study
from tests.planning import drop_circumstances, plan, responses

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

N_KILLS = 20
# Rows are flushed more often than a user's study does, so that twenty short lives get to the end.
CHILD = """
import sys
from pathlib import Path
from heredity import ledger, study
from heredity.engines import scripted
from heredity.lineage import Store
ledger.FLUSH_SECONDS = study.FLUSH_SECONDS = 0.02
folder, store, seconds = Path(sys.argv[1]), Store(Path(sys.argv[2])), float(sys.argv[3])
slow = lambda grown: scripted.load(grown.record, grown.folder, seconds=seconds)
def network(grown):
    # The dtype is given: which one a tiny network is faster in is a matter of chance.
    from heredity.engines import torch
    return torch.open_folder(grown.folder, store.root / "tuning" / grown.record.id, dtype="float32")
it = study.Study.open(folder, store=store, engine_loader=slow if seconds else network)
it.run(lambda progress: print(progress.step, progress.n_done, flush=True))
"""


def live(folder: Path, store: Path, seconds: float, until: float | None) -> str | None:
    """Run the study in a process of its own; kill it `until` seconds after it began to work.

    Gives the last step that it told of where the kill came in time, None where it ended by itself.
    """
    command = [sys.executable, "-c", CHILD, str(folder), str(store), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        if until is not None:
            time.sleep(until)
            process.kill()
        told, complaints = process.communicate()
    if process.returncode == 0:
        return None
    assert until is not None and process.returncode == -9, complaints
    return ((first + told).split() or ["start"])[-2 if first else -1]


def kill_and_go_on(made: Plan, folder: Path, store: Path, seconds: float, longest: float) -> list[str]:
    """The steps in which `N_KILLS` kills fell. The moments are drawn anew in every run of the test."""
    plans.write(folder, made)
    fallen: list[str] = []
    for _ in range(10 * N_KILLS):
        if len(fallen) == N_KILLS:
            break
        step = live(folder, store, seconds, random.uniform(0, longest))
        if step is not None:
            fallen.append(step)
    assert len(fallen) == N_KILLS
    assert live(folder, store, seconds, None) is None
    return fallen


def assert_whole(made: Plan, folder: Path) -> None:
    """Every trial is there once, in both files, under its own id."""
    grid = Grid(made)
    for rows in (responses(folder), list(Rows(folder / "verdicts.jsonl", Verdict))):
        assert sorted(row.index for row in rows) == list(range(made.n_trials))
        assert all(row.trial == grid.trial(row.index).id for row in rows)


def test_a_killed_study_comes_to_what_an_uninterrupted_one_comes_to(tmp_path: Path) -> None:
    made = plan(["scripted:mixed", "scripted:flaky"], samples=3)
    fallen = kill_and_go_on(made, tmp_path / "killed", tmp_path / "store", seconds=0.004, longest=0.3)
    assert "ask" in fallen
    plans.write(tmp_path / "whole", made)
    Study.open(tmp_path / "whole").run()
    assert_whole(made, tmp_path / "killed")
    assert drop_circumstances(tmp_path / "killed") == drop_circumstances(tmp_path / "whole")


@pytest.mark.proof
def test_a_killed_study_of_real_networks_comes_to_the_same(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.engines.conftest import make_model

    store = lineage.Store(tmp_path / "store")
    folders = [make_model(tmp_path / name, name, max_position_embeddings=4096) for name in ("llama", "qwen2")]
    models = [store.pull(str(folder)) for folder in folders]
    planned = tuple(
        PlannedModel(r.id, r.name, r.family, r.licence, r.format) for r in (grown.record for grown in models)
    )
    base = plan(n=2, samples=2)
    made = msgspec.structs.replace(base, models=planned)
    kill_and_go_on(made, tmp_path / "killed", store.root, seconds=0, longest=3.0)
    plans.write(tmp_path / "whole", made)
    # A store of its own for the answers, or the second study would find those of the first.
    (store.root / "cache.sqlite").rename(tmp_path / "answers.sqlite")
    assert live(tmp_path / "whole", store.root, 0, None) is None
    assert_whole(made, tmp_path / "killed")
    assert drop_circumstances(tmp_path / "killed") == drop_circumstances(tmp_path / "whole")
