"""Killed with SIGKILL at twenty random moments, a study comes to the answers of one that was left alone.

A moment is a number of rows that a study has written, and for some a random pause after it: so the kills are
spread over the asking and the judging, however fast or busy the machine is.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

import heredity
from heredity.application.spec import Application
from heredity.core.files import Rows
from heredity.core.records import Exchange, Verdict
from heredity.lineage import store as lineage
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.study import plan as plans
from heredity.study.plan import Grid, Plan, PlannedModel
from heredity.study.study import Study
from tests.support import forkserver, real_models
from tests.support.studies import by_index, drop_circumstances, plan, responses

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

EXAMPLE = Path(__file__).parents[2] / "examples" / "support-desk.toml"
N_KILLS = 20
# The process kills itself once it has written so many rows, or a moment later: none comes too late. Rows are
# flushed more often than a user's study does, so that verdicts are on the disk when a kill falls among them.
CHILD = """
import os, signal, sys, threading
from pathlib import Path
from heredity.core import files as store
from heredity.study import storage as ledger
from heredity.lineage.store import Store
from heredity.study.study import Study
folder, models, engine = Path(sys.argv[1]), Store(Path(sys.argv[2])), sys.argv[3]
n_left, pause = int(sys.argv[4]), float(sys.argv[5])
ledger.FLUSH_SECONDS = 0.0
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
append = store.Rows.append
def counted(rows, record):
    global n_left
    append(rows, record)
    if rows.path.name in ("responses.jsonl", "verdicts.jsonl"):
        n_left -= 1
        if n_left == 0:
            threading.Timer(pause, die).start() if pause else die()
store.Rows.append = counted
def network(grown):
    # The dtype is given: which one a tiny network is faster in is a matter of chance.
    from heredity.engines.torch import engine as torch
    return torch.open_folder(grown.folder, models.root / "tuning" / grown.record.id, dtype="float32")
Study.open(folder, store=models, engine_loader=network if engine == "float32" else None).run()
"""


def live(folder: Path, store: Path, engine: str, n_rows: int = 0, pause: float = 0.0) -> bool:
    """Run the study in a process of its own, killed once it has written `n_rows` more (0: never).

    Whether the kill came before its end.
    """
    command = ["-c", CHILD, str(folder), str(store), engine, str(n_rows), str(pause)]
    ended = forkserver.run(command, folder.parent)
    assert ended.returncode == 0 or (n_rows and ended.returncode == -9), ended.stderr
    return ended.returncode == -9


def n_rows(folder: Path) -> int:
    """Rows that are on the disk, answers and verdicts."""
    paths = (folder / "responses.jsonl", folder / "verdicts.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())


def kill_and_go_on(
    made: Plan,
    folder: Path,
    store: Path,
    engine: str,
    longest: float,
    n_kills: int = N_KILLS,
    n_trials: int | None = None,
) -> list[int]:
    """The rows that were there after each kill. The moments are drawn anew in every run of the test.

    `longest` is the longest pause, in seconds; `n_trials` are those that get rows (None: all of the plan).
    """
    plans.write_plan(folder, made)
    n_trials = made.n_trials if n_trials is None else n_trials
    n_asking = max(1, n_kills * 3 // 4)
    asking = random.sample(range(1, n_trials), n_asking)
    judging = random.sample(range(n_trials + 1, 2 * n_trials), n_kills - n_asking)
    found = []
    for moment in sorted([*asking, *judging]):
        # Later ones have none: a fast machine might come to the end within it.
        pause = random.uniform(0, longest) if moment < n_trials // 2 else 0.0
        # A kill that was late leaves more rows than the next moment has: that one falls on the next row.
        n_more = max(1, moment - n_rows(folder))
        assert live(folder, store, engine, n_more, pause), (moment, n_more, pause, found)
        found.append(n_rows(folder))
    assert not live(folder, store, engine)
    return found


def said(folder: Path) -> dict[int, tuple[Sequence[Exchange], str | None]]:
    """What every model was shown and said in every trial, to the letter."""
    return {index: (row.exchanges, row.error) for index, row in by_index(folder).items()}


def assert_whole(made: Plan, folder: Path) -> None:
    """Every trial is there once, in both files, under its own id."""
    grid = Grid(made)
    for rows in (responses(folder), list(Rows(folder / "verdicts.jsonl", Verdict))):
        assert sorted(row.index for row in rows) == list(range(made.n_trials))
        assert all(row.trial == grid.trial(row.index).id for row in rows)


def assert_equal(made: Plan, killed: Path, whole: Path) -> None:
    assert_whole(made, killed)
    one, other = said(killed), said(whole)
    unequal = {
        index: (row.engine, row.is_cached)
        for index, row in by_index(killed).items()
        if one[index] != other[index]
    }
    assert not unequal, [(one[index], other[index]) for index in unequal]
    assert drop_circumstances(killed) == drop_circumstances(whole)


@pytest.mark.slow
def test_a_killed_study_comes_to_what_an_uninterrupted_one_comes_to(tmp_path: Path) -> None:
    made = plan(["scripted:mixed", "scripted:flaky"], samples=3)
    found = kill_and_go_on(made, tmp_path / "killed", tmp_path / "store", "scripted", longest=0.001)
    assert any(n < made.n_trials for n in found) and any(n > made.n_trials for n in found)
    plans.write_plan(tmp_path / "whole", made)
    Study.open(tmp_path / "whole").run()
    assert_equal(made, tmp_path / "killed", tmp_path / "whole")


def left_alone(made: Plan, folder: Path, store: Store, engine: str) -> Path:
    """The same study without a kill, and without the answers that the killed one left in the cache."""
    plans.write_plan(folder, made)
    (store.root / "cache.sqlite").rename(folder / "answers.sqlite")
    assert not live(folder, store.root, engine)
    return folder


def of_models(base: Plan, models: Sequence[Grown]) -> Plan:
    records = [grown.record for grown in models]
    planned = tuple(PlannedModel(r.id, r.name, r.family, r.licence, r.format) for r in records)
    return msgspec.structs.replace(base, models=planned)


@pytest.mark.proof
def test_a_killed_study_of_real_networks_comes_to_the_same(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.support.tiny_models import make_model

    store = lineage.Store(tmp_path / "store")
    folders = [make_model(tmp_path / name, name, max_position_embeddings=4096) for name in ("llama", "qwen2")]
    made = of_models(plan(n=2, samples=2), [store.pull(str(folder)) for folder in folders])
    found = kill_and_go_on(made, tmp_path / "killed", store.root, "float32", longest=0.05)
    assert any(0 < n < made.n_trials for n in found)  # with answers on the disk, and more to come
    assert_equal(made, tmp_path / "killed", left_alone(made, tmp_path / "whole", store, "float32"))


@pytest.mark.proof
@pytest.mark.models
def test_a_killed_study_of_smollm2_in_the_example_comes_to_the_same(tmp_path: Path) -> None:
    """The model, application and engine that `make study` has: a prefix of 594 tokens, rows in company."""
    pytest.importorskip("torch")
    ready = heredity.Store().ready(real_models.model())
    store = lineage.Store(tmp_path / "store")  # its own, for the answers in the cache
    model = store.pull(str(ready.folder))
    asked = ["planted_secret/plain-01", "tool_injection/order-01", "forbidden_tool/plain-01"]
    desk = Application.load(EXAMPLE)
    desk = msgspec.structs.replace(desk, decoding=msgspec.structs.replace(desk.decoding, max_tokens=32))
    it = heredity.Study(
        heredity.StudySpec(
            [model], desk, probes=asked, attacks=["direct", "crescendo"], out=tmp_path / "killed"
        ),
        store=store,
    )
    made = it.plan()
    found = kill_and_go_on(made, it.folder, store.root, "chosen", longest=0.5, n_kills=5)
    assert any(0 < n < made.n_trials for n in found)
    assert_equal(made, it.folder, left_alone(made, tmp_path / "whole", store, "chosen"))
