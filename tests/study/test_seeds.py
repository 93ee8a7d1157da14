"""Children that differ only in the seed of their training: one row, about these seeds, and about others."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from heredity.study.findings.seeds import SeedGroup, compare_seeds, seed_groups

from heredity.core.records import Model, RecipeRecord, digest
from heredity.lineage.graph import Edge, edges
from heredity.lineage.store import scripted
from heredity.study import plan as plans
from heredity.study.aggregate import read_proven
from heredity.study.comparisons import compare_edges
from heredity.study.estimates import JUDGE_FREE
from heredity.study.findings import seeds
from heredity.study.findings.protocols import RecordedStudy
from heredity.study.forecast import forecast_study
from heredity.study.outcomes import BROKE, HELD, Outcomes
from heredity.study.plan import Plan, write_plan
from heredity.study.resolve import declare
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from heredity.study.wording import declared_lines
from tests.stats.simulate_seeds import SeedWorld, cover
from tests.support.studies import APPLICATION, plan, probes

PARENT = "scripted:careful"
SETTINGS = {"data": "ab" * 32, "steps": 40, "lr": 2e-4}


def tuned(parent: Model, name: str, seed: int, kind: str = "lora", **settings: object) -> Model:
    record = scripted(name).record
    recipe = RecipeRecord(kind, SETTINGS | settings | {"seed": seed})
    ident = digest([record.id, kind, seed, settings, parent.id])
    return msgspec.structs.replace(record, id=ident, parents=(parent.id,), recipe=recipe)


def family() -> list[Model]:
    """A parent, two seeds of one recipe, and a child of other data."""
    parent = scripted(PARENT).record
    return [
        parent,
        tuned(parent, "scripted:mixed/0", 0),
        tuned(parent, "scripted:mixed/1", 1),
        tuned(parent, "scripted:leaky", 2, data="cd" * 32),
    ]


# --- which children are seeds of one recipe ---------------------------------------------------------


def test_children_that_differ_in_their_seed_only_are_of_one_recipe() -> None:
    models = family()
    found = edges(models, {m.id: m for m in models})
    first, second, other = found
    assert isinstance(first.seeds_of, str) and first.seeds_of == second.seeds_of
    assert (first.seed, second.seed) == (0, 1)
    assert other.seeds_of is msgspec.UNSET and other.seed is msgspec.UNSET


def test_the_name_of_the_data_file_is_no_difference() -> None:
    parent = scripted(PARENT).record
    named = [
        tuned(parent, f"scripted:mixed/{i}", i, data={"name": f"rows-{i}.jsonl", "rows": 8, "digest": digest})
        for i, digest in enumerate(("ab", "ab", "cd"))
    ]
    first, second, other = edges([parent, *named], {m.id: m for m in (parent, *named)})
    assert isinstance(first.seeds_of, str) and first.seeds_of == second.seeds_of
    assert other.seeds_of is msgspec.UNSET


def test_seeds_of_another_parent_another_setting_or_the_same_seed_are_not() -> None:
    parent, other = scripted(PARENT).record, scripted("scripted:leaky").record
    for second in (
        tuned(other, "scripted:mixed/1", 1),
        tuned(parent, "scripted:mixed/1", 1, steps=80),
        tuned(parent, "scripted:mixed/1", 1, kind="finetune"),
        tuned(parent, "scripted:mixed/1", 0),
    ):
        models = [parent, other, tuned(parent, "scripted:mixed/0", 0), second]
        assert all(e.seeds_of is msgspec.UNSET for e in edges(models, {m.id: m for m in models}))


def test_the_seed_of_a_step_that_is_not_asked_counts_too() -> None:
    """Two adapters, each quantized: the children have no seed of their own."""
    parent, *adapters = family()[:3]
    small = [
        msgspec.structs.replace(
            scripted(f"scripted:mixed/q{i}").record,
            id=digest(["q", i]), parents=(a.id,), recipe=RecipeRecord("quantize", {"bits": 8}),
        )
        for i, a in enumerate(adapters)
    ]  # fmt: skip
    models = [parent, *small]
    found = edges(models, {m.id: m for m in (*models, *adapters)})
    assert [e.recipe for e in found] == ["lora > quantize"] * 2
    assert [e.seed for e in found] == [0, 1] and found[0].seeds_of == found[1].seeds_of


# --- the comparison ---------------------------------------------------------------------------------


def planned(n: int = 60, n_seeds: int = 2) -> Plan:
    names = [PARENT, *(f"scripted:mixed/{i}" for i in range(n_seeds))]
    made = plan(names, n=1, samples=1, attacks=("direct",))
    asked = tuple(
        msgspec.structs.replace(p, cluster=p.id)
        for p in probes(n)
        if p.technique == "planted_secret" and p.kind == "breach"
    )
    ids = [m.id for m in made.models]
    of = tuple(Edge(ids[0], child, "lora", seeds_of="x", seed=i) for i, child in enumerate(ids[1:]))
    return declare(msgspec.structs.replace(made, probes=asked, edges=of))


def drawn(made: Plan, breaks: list[float], seed: int = 0) -> Outcomes:
    """Each model breaks in this share of its trials; the trials of a behaviour are alike."""
    rng = np.random.default_rng(seed)
    outcomes, n = Outcomes(made), len(made.probes)
    shared = rng.random(n)
    for m, share in enumerate(breaks):
        u = np.where(rng.random(n) < 0.5, shared, rng.random(n))
        outcomes.array[m, 0, :, 0] = np.where(u < share, BROKE, HELD)
    return outcomes


def group_of(outcomes: Outcomes) -> SeedGroup:
    (only,) = compare_seeds(outcomes, "breach", [JUDGE_FREE])
    return only


def test_the_row_of_all_seeds_is_the_mean_over_them_and_counts_a_behaviour_once() -> None:
    outcomes = drawn(planned(), [0.1, 0.4, 0.5])
    found, alone = group_of(outcomes), compare_edges(outcomes, "breach", [JUDGE_FREE])
    compared = found.inherited.compared
    values = [edge.compared.difference.value or 0.0 for edge in alone]
    assert compared.difference.value == pytest.approx(sum(values) / 2)
    assert (compared.n, compared.difference.n_clusters) == (120, 60)
    assert found.seeds == (0, 1) and found.children == tuple(edge.child for edge in alone)
    for name in ("kept", "lost", "gained", "never"):
        assert getattr(found.inherited, name) == sum(getattr(edge, name) for edge in alone)
    widths = [(e.compared.difference.high or 0) - (e.compared.difference.low or 0) for e in alone]
    assert (compared.difference.high or 0) - (compared.difference.low or 0) < max(widths)


def test_two_seeds_show_a_loss_of_theirs_and_nothing_about_other_seeds() -> None:
    found = group_of(drawn(planned(120), [0.1, 0.45, 0.5]))
    assert found.inherited.verdict == "worse"
    low, high = found.other_seeds.low, found.other_seeds.high
    assert low is not None and high is not None and low < 0 < high
    assert found.p_other_seeds > 0.05 and "two-way clusters" in found.other_seeds.method


def test_five_seeds_that_agree_speak_for_others() -> None:
    found = group_of(drawn(planned(120, 5), [0.1, *[0.5] * 5]))
    assert (found.other_seeds.low or 0) > 0 and found.p_other_seeds < 0.05


# --- the study --------------------------------------------------------------------------------------


def test_a_study_declares_its_seeds_and_prints_one_row_for_them(tmp_path: Path) -> None:
    study = Study(StudySpec(family(), APPLICATION, probes=probes(30), out=tmp_path))
    analysis = study.plan().analysis
    assert not isinstance(analysis, msgspec.UnsetType)
    sizes = {(f.between, f.measure): f.n for f in analysis.families}
    assert sizes["edges", "breach"] == 6 and sizes["seeds", "breach"] == 2
    assert analysis.primary is not None and analysis.primary.between == "edges"
    forecast = study.forecast()
    assert forecast is not None
    assert {r.technique for r in forecast.rows if r.between == "seeds"} == {"judge_free", "judged", "all"}
    study.run()
    found = read_proven(tmp_path)
    assert not found.deviations and len(seed_groups(found)) == 3
    section = seeds.show(seed_groups(found), RecordedStudy(study.plan(), found))
    assert section is not None
    (table,), lines = section.tables, section.sentences
    first = dict(zip(table.head, table.rows[0], strict=True))
    assert first["child"] == "lora (2 seeds)" and first["each seed"].count("seed ") == 2
    assert "all seeds of a child" in dict(declared_lines(found))["Families"]
    assert len(lines) == 4 and "for these seeds" in lines[0] and "one degree of freedom" in lines[-1]


def test_a_plan_without_seeds_encodes_none_and_an_older_one_resumes(tmp_path: Path) -> None:
    study = Study(StudySpec(family(), APPLICATION, probes=probes(2), out=tmp_path / "new"))
    new = study.resolved
    assert new.edges is not None
    bare = tuple(Edge(e.parent, e.child, e.recipe, e.role) for e in new.edges)
    assert b"seed" not in msgspec.json.encode(bare)
    old = msgspec.structs.replace(new, edges=bare, analysis=None)
    assert old.questions == new.questions
    write_plan(tmp_path / "old", old)
    resumed = write_plan(tmp_path / "old", new)
    assert resumed == old == plans.read_plan(tmp_path / "old")


def test_a_plan_whose_release_found_other_edges_resumes_with_them(tmp_path: Path) -> None:
    new = Study(StudySpec(family(), APPLICATION, probes=probes(2), out=tmp_path / "new")).resolved
    assert new.edges is not None
    for found in (new.edges[:1], None):
        old = msgspec.structs.replace(new, edges=found)
        folder = tmp_path / str(len(found or ()))
        write_plan(folder, old)
        assert write_plan(folder, new) == old == plans.read_plan(folder)


def test_the_forecast_of_seeds_has_their_trials_in_the_same_clusters(tmp_path: Path) -> None:
    found = forecast_study(planned(60, 3), tmp_path)
    assert found is not None
    rows = {row.between: row for row in found.rows if row.technique == JUDGE_FREE}
    assert rows["seeds"].n_clusters == rows["edges"].n_clusters == 60
    assert rows["seeds"].n_effective > rows["edges"].n_effective
    assert (rows["seeds"].detectable or 1) < (rows["edges"].detectable or 1)


# --- coverage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_the_interval_of_these_seeds_covers_theirs_and_that_of_others_the_recipe(n_seeds: int) -> None:
    """With seeds whose effects differ by a standard deviation of 15 points (10 points of the difference)."""
    found = cover(SeedWorld(n_seeds, 0.15), 300, np.random.default_rng(n_seeds))
    assert found.these >= 0.92 and found.others >= 0.92
    assert found.these_as_others < 0.88
