"""Children that differ only in the seed of their training, and plans from before these were looked for."""

from __future__ import annotations

from pathlib import Path

import msgspec

from heredity.core.records import Model, RecipeRecord, digest
from heredity.lineage.graph import Edge, edges
from heredity.lineage.store import scripted
from heredity.study import plan as plans
from heredity.study.plan import write_plan
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.support.studies import APPLICATION, probes

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


# --- the study --------------------------------------------------------------------------------------


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
