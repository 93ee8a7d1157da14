"""Ways that train a child of a tiny model: what each could learn, the budget in minutes, and the teacher."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("bm25s")

from heredity.lab import adapt as run
from heredity.lab.adapt import AdaptResult, WayFinding, page_of
from heredity.lab.task import read_task
from heredity.lineage.store import Store
from tests.lab.adapt.tasks import SEEN, N, loader, task_file
from tests.support.tiny_models import make_model

pytestmark = pytest.mark.slow
TRAINED = ("lora", "alora", "finetune", "distilled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return Store(folder / "store")


@pytest.fixture(scope="module")
def found(folder: Path, store: Store) -> AdaptResult:
    task = read_task(task_file(folder / "task", more="seeds = [0, 1]"))
    return run.adapt(task, store, folder / "out", engine_loader=loader())


def way(found: AdaptResult, name: str) -> WayFinding:
    return next(each for each in found.ways if each.way == name)


def test_each_way_knows_what_it_could_know(found: AdaptResult) -> None:
    assert [each.way for each in found.ways] == ["plain", *found.task.ways] and not found.left_out
    for name in TRAINED:
        assert [each.rate.value for each in way(found, name).quality] == [0.5, 1.0, 0.0], name
        assert way(found, name).n_seeds == 2 and way(found, name).quality[0].rate.n == 2 * N
        assert way(found, name).quality[0].verdict == "better"
    assert [each.rate.value for each in way(found, "retrieval").quality] == [1.0, 1.0, 1.0]


def test_the_whole_fine_tune_breaks_and_an_adapter_does_not(found: AdaptResult) -> None:
    """Two seeds are judged together."""
    for name in TRAINED:
        main = found.main(way(found, name))
        assert main is not None and main.rate.value is not None, name
        assert (main.rate.value > 0.5) == (name in ("finetune", "distilled")), name
        verdict = way(found, name).verdict
        assert verdict is not None and len(verdict.children) == 2, name
        assert verdict.of("breaches")[0].estimate.value == pytest.approx(main.rate.value), name


def test_the_costs_of_training_are_those_of_the_children(found: AdaptResult, store: Store) -> None:
    adapter, whole = way(found, "lora").cost, way(found, "finetune").cost
    assert 0 < adapter.bytes < whole.bytes and adapter.making_seconds > 0
    made = {model.name: model for model in store.models()}
    lora = made["lora-0"]
    assert lora.recipe.settings["steps"] == found.steps["lora"] == 2
    assert adapter.bytes == pytest.approx(sum(file.bytes for file in lora.files), abs=64)  # of two seeds
    assert way(found, "distilled").cost.making_seconds > 0


def test_the_trained_ways_learn_the_rows_behind_the_application(found: AdaptResult, folder: Path) -> None:
    task = found.task
    questions = run.read_questions(task)
    data = questions.data("You are the desk.")
    assert [m.role for m in data.dialogues[0].messages] == ["system", "user", "assistant"]
    assert len(data.dialogues) == len(SEEN)
    answers = (folder / "out" / run.TEACHER / "responses.jsonl").read_text("utf-8")
    assert answers.count('"probe":"training_rows/') == len(SEEN)


def test_the_same_command_makes_no_model_again(found: AdaptResult, folder: Path, store: Store) -> None:
    n_models, asked = len(store.models()), list[str]()
    task = read_task(folder / "task" / "task.toml")
    again = run.adapt(task, store, folder / "out", engine_loader=loader(asked))
    assert not asked and len(store.models()) == n_models and page_of(again) == page_of(found)


def test_minutes_become_steps_that_are_kept(store: Store, tmp_path: Path) -> None:
    path = task_file(tmp_path / "task", '["lora"]')
    path.write_text(path.read_text("utf-8").replace("steps = 2", "minutes = 0.001"), "utf-8")
    first = run.adapt(read_task(path), store, tmp_path / "out", engine_loader=loader())
    assert first.steps["lora"] >= 1
    held = run.read_adapt_file(tmp_path / "out")
    assert held.steps == first.steps
    again = run.adapt(read_task(path), store, tmp_path / "out", engine_loader=loader())
    assert again.steps == first.steps and again.ways == first.ways


def test_another_teacher_is_a_parent_of_the_distilled_model(store: Store, tmp_path: Path) -> None:
    task = read_task(task_file(tmp_path / "task", '["distilled"]'))
    other = store.pull(str(make_model(tmp_path / "teacher", "qwen2", max_position_embeddings=4096)))
    taught = msgspec.structs.replace(task, teacher=other.record.name)
    found = run.adapt(taught, store, tmp_path / "out", engine_loader=loader())
    (child,) = (m for m in store.models() if m.recipe.kind == "finetune" and other.record.id in m.parents)
    assert len(child.parents) == 2 and found.ways[1].quality[1].rate.value == 1.0


def test_a_real_tiny_model_goes_from_the_file_to_the_page(store: Store, tmp_path: Path) -> None:
    """No scripted engine: random weights know nothing, and every way is asked and costed."""
    task = read_task(task_file(tmp_path / "task", '["few_shot", "retrieval", "lora"]')).quick()
    found = run.adapt(task, store, tmp_path / "out")
    assert len(found.ways) == 4 and all(each.quality[0].rate.n == 12 for each in found.ways)
    assert all(each.cost.answer_seconds for each in found.ways)
    assert "| LoRA |" in page_of(found).markdown("x.svg").replace("\xa0", " ").replace("**", "")
    assert (tmp_path / "out" / "safety" / "report.html").exists()
