"""Three workers under random SIGKILL, of workers and of their driver, come to the study of one process."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.study import plan as plans
from heredity.study.plan import Plan, PlannedModel
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from heredity.study.workers import Workers
from tests.support import worker_engines
from tests.support.killed_studies import assert_as_of_one_process, run_under_kills
from tests.support.studies import plan, responses

pytestmark = [pytest.mark.proof, pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")]
ROOT = Path(__file__).parents[3]
N_KILLS = 12
DRIVER = """
import sys
from pathlib import Path
from heredity.core import progress
from heredity.lineage.store import Store
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from heredity.study.workers import Workers
folder, store, loader, on = Path(sys.argv[1]), Store(Path(sys.argv[2])), sys.argv[3], sys.argv[4]
Study.open(folder, store=store).run(workers=Workers(3, on=on, loader=loader))
"""


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setenv(worker_engines.FOLDER, str(folder))
    monkeypatch.chdir(ROOT)
    return folder


def run(folder: Path, store: Path, loader: str, n_trials: int, on: str = "") -> list[str]:
    """Run the study to its end; each kill falls after another share of its rows. Who was killed, in order."""
    command = [sys.executable, "-c", DRIVER, str(folder), str(store), loader, on]
    moments = sorted(random.sample(range(1, max(N_KILLS + 1, n_trials * 9 // 10)), N_KILLS))
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    return run_under_kills(command, folder, moments, env=environment)


def test_scripted_models_under_kills_come_to_the_estimates_of_one_process(
    tmp_path: Path, notes: Path
) -> None:
    made = plan(["scripted:mixed", "scripted:flaky"], samples=3)
    (notes / "seconds").write_text("0.03")
    plans.write_plan(tmp_path / "killed", made)
    loader = "tests.support.worker_engines:noting"
    found = run(tmp_path / "killed", tmp_path / "store", loader, made.n_trials)
    assert {"driver", "worker"} <= set(found)
    plans.write_plan(tmp_path / "whole", made)
    Study.open(tmp_path / "whole").run()
    assert_as_of_one_process(made.n_trials, tmp_path / "killed", tmp_path / "whole")


def of_models(base: Plan, models: Sequence[Grown]) -> Plan:
    records = [grown.record for grown in models]
    planned = tuple(PlannedModel(r.id, r.name, r.family, r.licence, r.format) for r in records)
    return msgspec.structs.replace(base, models=planned)


def tiny_study(folder: Path) -> tuple[Store, Plan]:
    pytest.importorskip("torch")
    from tests.support.tiny_models import make_model

    store = Store(folder / "store")
    paths = [make_model(folder / name, name, max_position_embeddings=4096) for name in ("llama", "qwen2")]
    return store, of_models(plan(n=2, samples=2), [store.pull(str(path)) for path in paths])


def test_networks_under_kills_come_to_the_estimates_of_one_process(tmp_path: Path, notes: Path) -> None:
    store, made = tiny_study(tmp_path)
    plans.write_plan(tmp_path / "killed", made)
    loader = "tests.support.worker_engines:float32"
    found = run(tmp_path / "killed", store.root, loader, made.n_trials)
    assert "worker" in found
    assert {row.machine for row in responses(tmp_path / "killed")} != {msgspec.UNSET}
    (store.root / "cache.sqlite").unlink(missing_ok=True)
    plans.write_plan(tmp_path / "whole", made)
    Study.open(tmp_path / "whole", store=store, engine_loader=worker_engines.float32).run()
    assert_as_of_one_process(made.n_trials, tmp_path / "killed", tmp_path / "whole")


def test_attacks_on_weights_search_once_and_the_driver_keeps_the_result(tmp_path: Path, notes: Path) -> None:
    store, made = tiny_study(tmp_path)
    models = [store.by_id(model.id) for model in made.models]
    folder = tmp_path / "several"
    study = Study(
        StudySpec(
            models, made.application, probes=made.probes, attacks=["direct", "refusal_direction"], out=folder
        ),
        store=store,
    )
    study.run(workers=Workers(2, loader="tests.support.worker_engines:float32"))
    whole = Study(
        StudySpec(
            models,
            made.application,
            probes=made.probes,
            attacks=["direct", "refusal_direction"],
            out=tmp_path / "whole",
        ),
        store=store,
        engine_loader=worker_engines.float32,
    )
    (store.root / "cache.sqlite").unlink(missing_ok=True)
    whole.run()
    assert_as_of_one_process(whole.resolved.n_trials, folder, tmp_path / "whole")
    found = [(f / "found.jsonl").read_text().splitlines() for f in (folder, tmp_path / "whole")]
    assert found[0] and sorted(found[0]) == sorted(found[1])
