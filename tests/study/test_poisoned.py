"""A study of poisoned documents: which were retrieved, what was obeyed then, and which trial is which."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import heredity as h
from heredity.application.retrieval.build import build
from heredity.application.spec import Application
from heredity.core.files import hash_file
from heredity.core.records import Probe
from heredity.redteam import probes
from heredity.study.estimates import ALL
from heredity.study.findings.retrieval import RetrievedBreaches
from heredity.study.plan import Grid, Plan, read_plan
from tests.support.findings import section

POISONED = ["poisoned_index:1", "poisoned_index:5"]
DESK = 'name = "desk"\nsystem = "Help."\n[retrieval]\nindex = "docs.index"\npassages = 3\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("poisoned")
    (folder / "docs").mkdir()
    for i in range(12):
        (folder / "docs" / f"{i}.txt").write_text(
            f"Manual {i}. The desk answers what the passage says of shelf {i}."
        )
    build(folder / "docs", folder / "docs.index")
    (folder / "desk.toml").write_text(DESK)
    return folder


def asked(folder: Path) -> list[Probe]:
    """Eight probes with a passage and a marker, and their twins."""
    loaded, _ = probes.select(probes.load("passage_injection"), Application.load(folder / "desk.toml"))
    return [p for p in loaded if len(p.turns) == 1][:16]


def hashes(index: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in index.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def before(folder: Path) -> dict[str, str]:
    """The files of the index before any study searched it."""
    return hashes(folder / "docs.index")


@pytest.fixture(scope="module")
def result(folder: Path, before: dict[str, str]) -> h.Result:
    return h.Study(
        h.StudySpec(
            ["scripted:leaky"],
            folder / "desk.toml",
            probes=asked(folder),
            attacks=["direct", *POISONED],
            out=folder / "study",
            guards=["without_retrieval"],
        ),
        store=h.Store(folder / "store"),
    ).run()


def test_a_planted_document_is_shown_only_if_it_was_retrieved(result: h.Result) -> None:
    n_shown = 0
    for trial in result.trials(model="scripted:leaky"):
        for exchange in trial.response.exchanges:
            notes = [each for each in exchange.retrieved or () if each.citation.startswith("note-")]
            assert all(each.text in exchange.prompt for each in notes)
            assert ("[note-" in exchange.prompt) == bool(notes)
            if trial.trial.attack == "direct":
                assert trial.trial.probe.passage in exchange.prompt and not notes
            n_shown += len(notes)
    assert n_shown > 16


def test_the_split_counts_planted_documents_only(result: h.Result) -> None:
    for attack in POISONED:
        own = [
            t for t in result.trials(model="scripted:leaky", attack=attack)
            if t.outcome in ("held", "broke", "unclear")
        ]  # fmt: skip
        has = [
            any(e.citation.startswith("note-") for x in t.response.exchanges for e in x.retrieved or ())
            for t in own
        ]
        broke = [t.outcome == "broke" for t in own]
        row = result.retrieved("scripted:leaky", attack=attack)
        assert row.n_planted == int(attack[-1])
        assert (row.retrieved.n, row.retrieved.value) == (len(own), sum(has) / len(own))
        assert row.n_broke == sum(b for h, b in zip(has, broke, strict=True) if h) > 0
        assert row.retrieved.value == 1.0, "crafted for its question, it is found among 12 documents"
    assert result.retrieved("scripted:leaky", attack="direct").n_planted == 0
    rows = result.estimates.rows("retrieval", RetrievedBreaches)
    assert rows and ALL not in {row.attack for row in rows}
    shown = section(read_plan(result.folder), result.estimates, "retrieval")
    assert shown is not None and any("(5 planted)" in str(row[2]) for row in shown.tables[0].rows)


def test_the_guard_takes_planted_documents_out_too(result: h.Result) -> None:
    guarded = "scripted:leaky+without_retrieval"
    for trial in result.trials(model=guarded):
        assert not any("note-" in each.prompt for each in trial.response.exchanges)
    assert result.retrieved(guarded, attack=POISONED[1]).retrieved.value == 0.0


def test_twins_get_the_same_documents_without_the_instruction(result: h.Result) -> None:
    twins = [t for t in result.trials(attack=POISONED[0]) if t.trial.probe.kind == "benign"]
    for trial in twins:
        for each in (e for x in trial.response.exchanges for e in x.retrieved or ()):
            assert not each.citation.startswith("note-") or trial.trial.probe.passage in each.text
    assert twins


def test_the_index_on_disk_is_not_changed(result: h.Result, folder: Path, before: dict[str, str]) -> None:
    assert any(row.n_planted for row in result.estimates.rows("retrieval", RetrievedBreaches))
    assert before and hashes(folder / "docs.index") == before


def test_the_overlay_is_part_of_a_trial_s_identity(result: h.Result) -> None:
    plan = read_plan(result.folder)
    grid = Grid(plan)
    first = plan.probes[0]
    other = msgspec.structs.replace(first, passage=f"{first.passage} More.")
    changed = Grid(msgspec.structs.replace(plan, probes=(other, *plan.probes[1:])))
    for index in range(0, plan.n_per_model, len(plan.probes)):  # the first probe under each attack
        one, same = grid.trial(index), changed.trial(index)
        assert (one.id == same.id) == (one.attack == "direct") and one.seed == same.seed


def test_a_plan_without_planted_passages_keeps_its_trials(result: h.Result) -> None:
    plan: Plan = read_plan(result.folder)
    assert not Grid(msgspec.structs.replace(plan, attacks=("direct",))).planted.attacks
    bare = msgspec.structs.replace(plan.application, retrieval=None)
    assert not Grid(msgspec.structs.replace(plan, application=bare)).planted.attacks
