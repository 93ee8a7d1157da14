"""Workers that a driver must not mix, and models that a worker must not load."""

from __future__ import annotations

import itertools
import pickle
import threading
from pathlib import Path

import msgspec
import pytest

from heredity.core import __version__
from heredity.core import progress as progress_module
from heredity.core.errors import BadInput, HeredityError, NotComparable, Unavailable, UnknownName, WrongHash
from heredity.core.progress import Progress, phase
from heredity.core.records import FileHash, Model, Reply, Request
from heredity.core.terminal import trial_words
from heredity.engines.scripted import ScriptedEngine
from heredity.lineage.store import Store
from heredity.lineage.store import scripted as scripted_model
from heredity.lineage.types import Grown
from heredity.study import workers
from heredity.study.plan import Plan, PlannedModel, write_plan
from heredity.study.storage import run_records
from heredity.study.workers import Lease, Setup, Status, StudyWorker
from tests.support.errors import raises
from tests.support.studies import by_index, plan, responses, study
from tests.support.worker_threads import ThreadWorker

WEIGHTS = FileHash(path="model.safetensors", bytes=8, sha256="0" * 64)
MADE = plan(["scripted:mixed", "scripted:careful"], n=2)


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LocalWorker", ThreadWorker)


def machines(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the workers run on machines of these kinds, in turn."""
    turns = itertools.cycle(names)
    monkeypatch.setattr(workers, "machine", lambda *_: next(turns))


def test_only_machines_of_the_first_kind_answer_and_each_row_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines(monkeypatch, "kind A", "kind B")
    study(tmp_path / "several", MADE).ask(workers=4)
    named = {row.machine for row in responses(tmp_path / "several")}
    assert len(named) == 1 and named <= {"kind A", "kind B"}
    assert {run.machine for run in run_records(tmp_path / "several")} == named
    study(tmp_path / "one", MADE).ask()
    unnamed = {
        index: msgspec.structs.replace(row, machine=msgspec.UNSET)
        for index, row in by_index(tmp_path / "several").items()
    }
    assert unnamed == by_index(tmp_path / "one")


def test_a_study_is_not_finished_on_another_kind_of_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "several"
    machines(monkeypatch, "kind A")
    study(folder, MADE).ask(workers=2)
    path = folder / "responses.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:50]))
    machines(monkeypatch, "kind B")
    with raises(NotComparable, "not-comparable", ["kind A", "kind B"]):
        study(folder, MADE).ask(workers=2)
    assert len(responses(folder)) == 50
    machines(monkeypatch, "kind A")
    study(folder, MADE).ask(workers=2)
    assert len(responses(folder)) == MADE.n_trials


def test_workers_that_compute_differently_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = itertools.count()

    class Differing(ScriptedEngine):
        def __init__(self, grown: Grown) -> None:
            super().__init__("mixed", seconds=0.005)
            self.numerics = f"numerics {next(turns)}"

    monkeypatch.setattr(workers, "load_engine", lambda grown, store: Differing(grown))
    with raises(NotComparable, "not-comparable", ["scripted:mixed", "numerics 0", "numerics 1"]):
        study(tmp_path / "several", plan(["scripted:mixed"]), store=Store(tmp_path / "store")).ask(workers=2)


def test_it_is_shown_that_workers_start_and_which_model_they_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is loaded once its loading is shown, so that the study ends only if it is."""
    seen, is_shown = list[Progress](), threading.Event()

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if any(model.n_loading for model in progress.models):
            is_shown.set()

    def load(grown: Grown, store: Store) -> ScriptedEngine:
        assert is_shown.wait(60)
        return ScriptedEngine("mixed")

    monkeypatch.setattr(workers, "load_engine", load)
    study(tmp_path / "several", plan(["scripted:mixed"]), store=Store(tmp_path / "store")).ask(
        watch, workers=2
    )
    asked = [each for each in seen if each.step == "ask" and each.n_workers]
    assert (asked[0].n_workers, asked[0].n_starting) == (2, 2) and "2 starting" in trial_words(asked[0])
    loading = next(each for each in asked if each.models and each.models[0].n_loading)
    assert f"{loading.models[0].n_loading} loading" in trial_words(loading)
    assert not asked[-1].n_starting and not asked[-1].models[0].n_loading


def test_the_phase_of_a_worker_that_loads_is_shown_with_its_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, is_shown = set[str](), threading.Event()

    def watch(progress: Progress) -> None:
        seen.add(trial_words(progress))
        if any("measuring widths 3 of 6" in words for words in seen):
            is_shown.set()

    def load(grown: Grown, store: Store) -> ScriptedEngine:
        with phase(store.report, "measuring widths", n_total=6) as meter:
            meter.reached(2)
            assert is_shown.wait(60)
        return ScriptedEngine("mixed")

    monkeypatch.setattr(progress_module, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(workers, "load_engine", load)
    study(tmp_path / "several", plan(["scripted:mixed"]), store=Store(tmp_path / "store")).ask(
        watch, workers=1
    )
    assert is_shown.is_set()


def test_a_second_worker_that_loads_a_model_does_not_hide_that_the_first_one_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, is_second, is_shown = list[Progress](), threading.Event(), threading.Event()
    is_first = list[bool]()

    def watch(progress: Progress) -> None:
        if is_second.is_set():
            seen.append(progress)
        if len(seen) == 3:  # the driver takes its messages between two of them
            is_shown.set()

    class Waiting(ScriptedEngine):
        def _one(self, request: Request) -> Reply:
            assert is_shown.wait(60)
            return super()._one(request)

    def load(grown: Grown, store: Store) -> ScriptedEngine:
        is_first.append(not is_first)
        if not is_first[-1]:
            with phase(store.report, "measuring widths"):
                is_second.set()
                assert is_shown.wait(60)
        return Waiting("mixed")

    monkeypatch.setattr(progress_module, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(workers, "load_engine", load)
    study(tmp_path / "several", plan(["scripted:mixed"]), store=Store(tmp_path / "store")).ask(
        watch, workers=2
    )
    assert is_first == [True, False] and seen[2].models[0].n_loading == 1
    assert all(model.phase is None for each in seen for model in each.models)


def test_a_worker_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poll = StudyWorker.poll
    monkeypatch.setattr(StudyWorker, "poll", lambda *given: poll(*given)._replace(version="0.0.1"))
    with raises(NotComparable, "not-comparable", ["0.0.1", __version__]):
        study(tmp_path / "several", MADE).ask(workers=2)
    assert not responses(tmp_path / "several")


# --- the worker's side -----------------------------------------------------------------------------


def setup(folder: Path, store: Path, made: Plan = MADE, **changed: object) -> Setup:
    records = tuple(scripted_model(model.name).record for model in made.models)
    given = Setup(made, "", records, str(store), str(folder), "host")
    write_plan(folder, made)
    return msgspec.structs.replace(given, **changed)


def last_state(given: Setup, *trials: int) -> Status:
    """The state of a worker after these trials; its rows are in the folder `part`."""
    asked = StudyWorker(msgspec.msgpack.encode(given), str(Path(given.folder) / "part"))
    state = asked.poll([Lease(0, trials), None])
    while not state.is_closed:
        state = asked.poll([])
    return state


def of_function(store: Store) -> Grown:
    """A model that is recorded in the store: the function `reply` of this module."""
    return store.keep(store.get("call:tests.study.workers.test_driver:reply"))


def reply(messages: list[dict[str, str]]) -> str:
    return f"I read: {messages[-1]['content']}"


def of_model(grown: Grown) -> Plan:
    record = grown.record
    model = PlannedModel(record.id, record.name, record.family, record.licence, record.format)
    return msgspec.structs.replace(plan(n=2), models=(model,))


def with_other_files(grown: Grown) -> Model:
    files = (FileHash(path="model.safetensors", sha256="0" * 64, bytes=8),)
    return msgspec.structs.replace(grown.record, files=files)


def test_a_worker_refuses_files_that_are_not_those_of_the_driver(tmp_path: Path) -> None:
    grown = of_function(Store(tmp_path / "store"))
    given = setup(tmp_path, tmp_path / "store", of_model(grown), models=(with_other_files(grown),))
    error = last_state(given, 0).error
    assert isinstance(error, WrongHash) and error.code == "hash-mismatch"


def test_a_worker_without_the_store_says_what_it_needs(tmp_path: Path) -> None:
    grown = of_function(Store(tmp_path / "store"))
    given = setup(tmp_path, tmp_path / "elsewhere", of_model(grown), models=(with_other_files(grown),))
    error = last_state(given, 0).error
    assert isinstance(error, Unavailable) and error.code == "model-not-pulled"
    assert str(tmp_path / "elsewhere") in str(error)


def test_a_worker_without_the_folder_says_what_it_needs(tmp_path: Path) -> None:
    given = setup(tmp_path / "study", tmp_path / "store")
    (tmp_path / "study" / "plan.json").unlink()
    error = last_state(given, 0).error
    assert isinstance(error, Unavailable) and error.code == "unavailable"
    assert not (tmp_path / "study" / "part").exists()


def test_a_worker_loads_a_model_of_the_store_by_its_id(tmp_path: Path) -> None:
    grown = of_function(Store(tmp_path / "store"))
    given = setup(tmp_path, tmp_path / "store", of_model(grown), models=(grown.record,))
    assert last_state(given, 0, 1).error is None
    assert sorted(row.index for row in responses(tmp_path / "part")) == [0, 1]


@pytest.mark.parametrize(
    "error",
    [UnknownName("model", "a", ["b"]), BadInput("plan.toml", "no number", 3), Unavailable("x", code="y")],
)
def test_an_error_is_whole_in_another_process(error: HeredityError) -> None:
    found = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
    assert (type(found), str(found), found.code) == (type(error), str(error), error.code)
