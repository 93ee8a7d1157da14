"""What a child inherited: a worse child, a copy, too few trials; counted by hand and asked for real."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from heredity.core.errors import UnknownName
from heredity.core.records import Model, RecipeRecord, digest
from heredity.lineage.graph import Edge
from heredity.lineage.store import Store, scripted
from heredity.study import plan as plans
from heredity.study.estimates import JUDGE_FREE, JUDGED, Estimates, Inheritance
from heredity.study.plan import Plan
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.study.test_estimates import by_number, judged
from tests.support.errors import raises
from tests.support.studies import APPLICATION, plan

PARENT, COPY, WORSE = "scripted:careful", "scripted:careful/copy", "scripted:leaky"


def child_of(parents: list[Model], name: str, kind: str = "finetune") -> Model:
    record, ids = scripted(name).record, tuple(parent.id for parent in parents)
    return msgspec.structs.replace(
        record, id=digest([record.id, kind, ids]), parents=ids, recipe=RecipeRecord(kind, {})
    )


def family() -> list[Model]:
    parent = scripted(PARENT).record
    return [parent, child_of([parent], COPY, "copy"), child_of([parent], WORSE)]


def planned(n: int, samples: int = 1) -> Plan:
    """A plan of three models with the two edges from the first."""
    made = plan(tuple(m.name for m in family()), n=n, attacks=("direct",), samples=samples)
    ids = [m.id for m in made.models]
    edges = (Edge(ids[0], ids[1], "copy"), Edge(ids[0], ids[2], "finetune"))
    return msgspec.structs.replace(made, edges=edges)


def edge(found: Estimates, child: str, measure: str = "breach", scope: str = JUDGE_FREE) -> Inheritance:
    ident = next(card.id for card in found.models if card.name == child)
    wanted = (ident, measure, "all" if measure == "over_refusal" else scope)
    (only,) = [e for e in found.edges if (e.child, e.compared.measure, e.compared.technique) == wanted]
    return only


def test_kept_lost_gained_and_never_are_counted_by_hand(tmp_path: Path) -> None:
    # By number of three judge-free techniques: the parent broke on 0 and 1, the child on 1 to 4.
    rule = by_number({PARENT: {0, 1}, WORSE: {1, 2, 3, 4}}, {PARENT: {0}, WORSE: {0, 5}})
    found = judged(tmp_path, planned(10), rule)
    one = edge(found, WORSE)
    assert (one.kept, one.lost, one.gained, one.never) == (15, 9, 3, 3)
    assert (one.retention.value, one.retention.n) == (15 / 24, 24)
    assert one.compared.difference.value == pytest.approx((12 - 6) / 30)
    over = edge(found, WORSE, "over_refusal")
    assert (over.kept, over.lost, over.gained, over.never) == (24, 3, 0, 3)
    assert {e.compared.technique for e in found.edges} == {JUDGE_FREE, JUDGED, "all"}


def test_a_worse_child_is_worse_and_a_copy_is_not(tmp_path: Path) -> None:
    found = judged(tmp_path, planned(60), by_number({PARENT: {0}, COPY: {0}, WORSE: set(range(0, 60, 2))}))
    worse, copy = edge(found, WORSE), edge(found, COPY)
    assert (worse.verdict, worse.lost > 0) == ("worse", True)
    assert (copy.verdict, copy.retention.value, copy.lost, copy.gained) == ("not worse", 1.0, 0, 0)
    assert edge(found, COPY, "over_refusal").verdict == "not worse"


def test_too_few_trials_are_undecided_and_say_what_they_could_have_shown(tmp_path: Path) -> None:
    found = judged(tmp_path, planned(6), by_number({WORSE: {0}}))
    one = edge(found, WORSE)
    assert one.verdict == "not enough evidence"
    assert one.compared.detectable is None or one.compared.detectable > 0.05
    assert "Not enough evidence" in one.compared.words


def test_edges_are_a_family_of_their_own_for_holm(tmp_path: Path) -> None:
    found = judged(tmp_path, planned(30), by_number({WORSE: set(range(0, 30, 3))}))
    one, pairs = edge(found, WORSE), {(p.a, p.b, p.technique): p for p in found.pairs}
    same = pairs[one.parent, one.child, JUDGE_FREE]
    assert one.compared.p_value == same.p_value
    assert one.compared.p_holm < same.p_holm  # two edges, three pairs, of two scopes each
    assert one.compared.table == same.table


def test_techniques_have_edges_of_their_own(tmp_path: Path) -> None:
    found = judged(tmp_path, planned(4), by_number({}))
    techniques = {e.compared.technique for e in found.technique_edges}
    assert techniques == {"planted_secret", "forbidden_tool", "harmful_request", "injection"}


def test_a_plan_without_edges_keeps_its_digest_and_has_no_edge(tmp_path: Path) -> None:
    made = plan()
    assert b"edges" not in msgspec.json.encode(made)
    found = judged(tmp_path, made, by_number({}))
    assert (found.edges, found.technique_edges) == ((), ())


def test_a_study_finds_its_edges_and_keeps_them_in_its_plan(tmp_path: Path) -> None:
    parent, copy, worse = family()
    made = Study(StudySpec([parent, copy, worse], APPLICATION, probes="planted_secret", out=tmp_path))
    result = made.run()
    saved = plans.read_plan(tmp_path)
    assert saved.edges == (Edge(parent.id, copy.id, "copy"), Edge(parent.id, worse.id, "finetune"))
    assert Study.open(tmp_path).estimate().estimates.edges == result.estimates.edges
    found = result.edge(parent, worse)
    assert (found.verdict, found.lost > 0, found.compared.a) == ("worse", True, parent.id)
    assert found.retention.value is not None and found.retention.value < 0.5
    assert result.edge(PARENT, COPY).retention.value == 1.0
    assert result.edge(parent, worse, "over_refusal").compared.technique == "all"
    with raises(UnknownName, "unknown-name"):
        result.edge(worse, parent)


def test_an_ancestor_that_is_not_asked_is_found_in_the_store(tmp_path: Path) -> None:
    from tests.lineage.test_store import Toy

    store = Store(tmp_path / "store")
    base = store.grow(Toy())
    between = store.grow(Toy(2.0, "between"), [base])
    last = child_of([between.record], WORSE)
    study = Study(
        StudySpec([base.record, last], APPLICATION, probes="planted_secret", out=tmp_path / "study"),
        store=store,
    )
    assert study.plan().edges == (Edge(base.record.id, last.id, "toy > finetune"),)


def test_unrelated_models_have_a_plan_without_edges(tmp_path: Path) -> None:
    study = Study(StudySpec([PARENT, WORSE], APPLICATION, probes="planted_secret", out=tmp_path))
    assert study.plan().edges is None


def test_an_edge_holds_where_a_study_stops_when_decided(tmp_path: Path) -> None:
    parent, _, worse = family()
    made = Study(
        StudySpec([parent, worse], APPLICATION, probes="planted_secret", out=tmp_path, until_decided=True)
    )
    found = made.run().edge(parent, worse)
    assert found.verdict == "worse"
    assert "wilson" not in found.retention.method
    assert found.kept + found.lost == found.retention.n


@pytest.mark.slow
def test_a_family_of_a_store_leaves_out_what_cannot_answer(tmp_path: Path) -> None:
    from tests.lineage.test_store import Toy

    store = Store(tmp_path / "store")
    base = store.grow(Toy())
    child = store.grow(Toy(2.0, "child"), [base])
    found = store.family(base.record)
    assert [m.name for m in found.asked] == ["toy", "child"] and not found.left_out
    mute = msgspec.structs.replace(child.record, modality="image")
    assert store._why_silent(mute) == "its modality is image: it generates no text"
    lost = msgspec.structs.replace(child.record, format="adapter", parents=("0" * 32,))
    assert "0000" in store._why_silent(lost)
