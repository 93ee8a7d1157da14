"""A study of documents whose words were searched for: searched once, in the plan, and part of its trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")

import heredity as h
from heredity.application.retrieval.build import build
from heredity.application.spec import Application
from heredity.cli import main
from heredity.core.errors import Damaged, UsageError
from heredity.core.records import Probe, digest
from heredity.redteam import probes
from heredity.study.plan import PLAN, Grid, Plan, read_plan
from heredity.study.runner import FOUND
from heredity.study.study import forecast_searches
from tests.application.retrieval.test_dense import TinyEncoder
from tests.application.retrieval.test_triggers import triggers, vocabulary
from tests.support.errors import raises

ATTACKS = ["poisoned_index:1", "poisoned_index:1,gradient=2", "poisoned_index:2,gradient=2"]


def desk(folder: Path, method: str = "dense") -> Path:
    path = folder / f"{method}.toml"
    path.write_text(
        'name = "desk"\nsystem = "Help."\n[retrieval]\nindex = "docs.index"\npassages = 8\n'
        f'method = "{method}"\n'
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triggers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEREDITY_STORE", str(folder / "store"))
        h.Store().grow(TinyEncoder(words=vocabulary()), [])
        (folder / "docs").mkdir()
        for i in range(6):
            (folder / "docs" / f"{i}.txt").write_text(f"Manual {i}. The heat pump of shelf {i}.")
        build(folder / "docs", folder / "docs.index", embed="tiny-encoder")
    return folder


@pytest.fixture(autouse=True)
def counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of each search that runs."""
    monkeypatch.setenv("HEREDITY_STORE", str(folder / "store"))
    found, search = list[str](), triggers.search

    def counting(*given: Any) -> triggers.TriggerText:
        text = search(*given)
        found.append(text.words)
        return text

    monkeypatch.setattr(triggers, "search", counting)
    return found


def asked(folder: Path) -> list[Probe]:
    """Two probes with a passage, and their twins."""
    loaded, _ = probes.select(probes.load("passage_injection"), Application.load(desk(folder)))
    return [p for p in loaded if len(p.turns) == 1][:4]


def study(folder: Path, name: str, method: str = "dense") -> h.Study:
    return h.Study(
        h.StudySpec(
            ["scripted:leaky"], desk(folder, method), probes=asked(folder), attacks=ATTACKS, out=folder / name
        ),
        store=h.Store(folder / "store"),
    )


@pytest.fixture
def plan(folder: Path) -> Plan:
    return study(folder, "study").plan()


def test_each_document_is_searched_for_once_and_a_smaller_budget_has_those_of_a_larger(
    folder: Path, counted: list[str]
) -> None:
    made = study(folder, "once").plan()
    breach = [probe.id for probe in made.probes if probe.kind == "breach"]
    assert isinstance(made.triggers, tuple) and len(breach) == 2
    assert [(each.probe, each.document, each.n_steps) for each in made.triggers] == [
        (probe, 0, 2) for probe in breach
    ] + [(probe, 1, 2) for probe in breach]
    assert counted == [each.words for each in made.triggers] and len(set(counted)) == 4


def test_the_words_come_before_the_passage_and_the_question_does_not(folder: Path, plan: Plan) -> None:
    result = study(folder, "study").run()
    n_shown = 0
    for trial in result.trials(model="scripted:leaky", attack=ATTACKS[2]):
        probe = trial.trial.probe
        own = {each.words for each in plan.triggers or () if each.probe in (probe.id, probe.twin)}
        found = [each for exchange in trial.response.exchanges for each in exchange.retrieved or ()]
        notes = [each for each in found if each.citation.startswith("note-")]
        for note in notes:
            words, _, passage = note.text.partition("\n")
            assert words in own and passage == probe.passage
            assert not any(turn in note.text for turn in probe.turns)
        n_shown += len(notes)
    assert n_shown and len({trial.trial.probe.kind for trial in result.trials(attack=ATTACKS[2])}) == 2
    assert result.retrieved("scripted:leaky", attack=ATTACKS[2]).n_planted == 2


def test_a_resumed_study_searches_for_nothing_again(folder: Path, plan: Plan, counted: list[str]) -> None:
    assert study(folder, "killed").plan() == plan
    counted.clear()
    (folder / "killed" / PLAN).unlink()  # as if it was killed before the plan was written
    assert study(folder, "killed").plan() == plan
    (folder / "killed" / FOUND).unlink()
    assert study(folder, "killed").plan() == plan
    assert counted == []


def test_the_same_settings_find_the_same_words(folder: Path, plan: Plan, counted: list[str]) -> None:
    counted.clear()
    assert digest(study(folder, "again").plan()) == digest(plan) and len(counted) == 4


def test_the_words_are_part_of_a_trial_s_identity(plan: Plan) -> None:
    assert isinstance(plan.triggers, tuple)
    other = tuple(msgspec.structs.replace(each, words="other words") for each in plan.triggers)
    grid, changed = Grid(plan), Grid(msgspec.structs.replace(plan, triggers=other))
    for index in range(plan.n_per_model):
        one, same = grid.trial(index), changed.trial(index)
        assert (one.id == same.id) == (one.attack == ATTACKS[0]) and one.seed == same.seed


def test_a_plan_without_its_words_is_damaged(plan: Plan) -> None:
    bare = Grid(msgspec.structs.replace(plan, triggers=None))
    with raises(Damaged, "damaged", [ATTACKS[1], "another folder"]):
        bare.trial(len(plan.probes))


def test_a_search_by_words_is_refused_with_the_reason(folder: Path) -> None:
    with raises(UsageError, "bad-usage", [ATTACKS[1], "'desk'", "bm25", "hybrid"]):
        study(folder, "lexical", "bm25")
    assert not (folder / "lexical").exists()


def test_the_cost_is_known_before_the_search(folder: Path) -> None:
    new = study(folder, "costs", "hybrid")
    line = forecast_searches(new.resolved, new.folder)
    assert (
        "4 planted documents" in line and "8 gradients" in line and "256 forward passes, about 1 min" in line
    )
    new.plan()
    assert forecast_searches(new.resolved, new.folder) == ""


def test_the_command_says_the_cost_and_then_writes_the_plan(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    given = ["--model", "scripted:leaky", "--application", str(desk(folder)), "--out", "told"]
    chosen = [text for probe in asked(folder) for text in ("--probes", probe.id)]
    asked_for = ["study", *given, *chosen, "--attack", ATTACKS[1]]
    assert main([*asked_for, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "2 planted documents" in said and "searching" not in said and not (folder / "told").exists()
    assert main(asked_for) == 0
    said = capsys.readouterr().err
    assert said.index("2 planted documents") < said.index("searching")
    assert len(read_plan(folder / "told").triggers or ()) == 2
