"""`heredity study --lineage` and `heredity models --tree`, on a tiny model and an adapter over it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from heredity.cli import main
from heredity.lineage.graph import Edge
from heredity.lineage.store import Store
from heredity.study import plan as plans
from tests.support.cli import enter_copy, stocking
from tests.support.errors import check_refused, run_here


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store has a foundation, an adapter over it, and the two folded together."""
    folder = tmp_path_factory.mktemp("stocked")
    with stocking(folder) as store:
        how = ["--data", "rows.jsonl", "--steps", "1", "--rank", "2", "--target-modules", "q_proj"]
        assert main(["derive", "lora", "tiny", *how, "--name", "tuned"]) == 0
        store.whole(store.get("tuned"))
    return folder


@pytest.fixture
def place(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of the one with the store."""
    return enter_copy(stocked, tmp_path, monkeypatch)


def test_a_lineage_is_asked_once_whatever_its_forms_and_its_edges_are_told(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["--application", "desk.toml", "--probes", "planted_secret/*-01", "--out", "study"]
    assert main(["study", "--lineage", "tiny", *ask, "--full"]) == 0
    shown = capsys.readouterr()
    assert "left out: tuned-merged" in shown.err and "another form of 'tuned', which is asked" in shown.err
    store, plan = Store(), plans.read_plan(place / "study")
    parent, child = (store.get(name).record for name in ("tiny", "tuned"))
    assert [model.id for model in plan.models] == [parent.id, child.id]
    assert plan.edges == (Edge(parent.id, child.id, "lora"),)
    assert "of tiny, lora" in shown.out
    assert "What was inherited" in (place / "study" / "report.html").read_text()


def test_a_form_that_is_named_is_asked_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["--application", "desk.toml", "--probes", "planted_secret/*-01", "--out", "study"]
    assert main(["study", "--model", "tuned-merged", "--model", "tiny", "--lineage", "tiny", *ask]) == 0
    assert "left out" not in capsys.readouterr().err
    plan = plans.read_plan(place / "study")
    assert [model.name for model in plan.models] == ["tuned-merged", "tiny", "tuned"]
    assert isinstance(plan.edges, tuple)
    assert [edge.recipe for edge in plan.edges] == ["merge_adapter", "lora"]


def test_the_tree_has_foundations_first_and_one_line_a_model(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["models", "--tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tiny", "└─", "└─"]
    assert "pull, safetensors" in lines[0] and "lora, adapter" in lines[1]
    assert "merge_adapter, safetensors" in lines[2]


def test_a_study_without_models_names_both_ways(place: Path) -> None:
    check_refused(run_here("study", "--application", "desk.toml"), "", ["--lineage"])
    (place / "empty").mkdir()
    check_refused(run_here("study", "empty", "--lineage", "tiny"), "", ["--lineage"])
    done = run_here("study", "--lineage", "nobody", "--application", "desk.toml")
    check_refused(done, "unknown-name", ["nobody"])
