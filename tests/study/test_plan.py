"""The plan: one order, one id and one seed a trial, and never two plans in one folder."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.core.errors import Damaged, NotComparable, UnknownName, UsageError
from heredity.core.records import digest, encode
from heredity.lineage import store as lineage
from heredity.study import plan as plans
from heredity.study.plan import Analysis, Grid, Plan, PlanFile, TrialSet, plan_seal
from heredity.study.resolve import declare, resolve_plan
from heredity.study.spec import StudySpec
from tests.support.errors import raises
from tests.support.small_study import small_plan
from tests.support.studies import APPLICATION, plan

CAREFUL, LEAKY = (lineage.scripted(f"scripted:{name}").record for name in ("careful", "leaky"))


def test_every_trial_is_one_cell_in_the_order_model_attack_probe_sample() -> None:
    made = plan(n=2, samples=3)
    trials = [Grid(made).trial(i) for i in range(made.n_trials)]
    cells = [
        (m.id, attack, probe.id, sample)
        for m in made.models
        for attack in made.attacks
        for probe in made.probes
        for sample in range(made.samples)
    ]
    assert [(t.model.id, t.attack, t.probe.id, t.sample) for t in trials] == cells
    assert [t.index for t in trials] == list(range(len(cells)))
    assert len({t.id for t in trials}) == len(cells)


def test_models_draw_the_same_luck_and_everything_else_draws_its_own() -> None:
    made = plan()
    grid, half = Grid(made), made.n_per_model
    ours = [grid.trial(i).seed for i in range(half)]
    assert ours == [grid.trial(i).seed for i in range(half, 2 * half)]
    assert len(set(ours)) == half
    assert all(0 <= seed < 2**53 for seed in ours)  # JSON readers with doubles keep them
    assert Grid(plan(seed=1)).trial(0).seed != ours[0]


def test_a_trial_of_another_study_is_not_of_this_one() -> None:
    grid, other = Grid(plan()), Grid(plan(seed=1))
    assert grid.matches(3, grid.trial(3).id)
    assert not grid.matches(4, grid.trial(3).id)
    assert not grid.matches(3, other.trial(3).id)
    assert not grid.matches(-1, grid.trial(3).id)
    assert not grid.matches(len(grid), grid.trial(3).id)


@pytest.mark.parametrize("index", [-1, 10**9])
def test_a_trial_outside_the_plan_is_an_index_error(index: int) -> None:
    with raises(IndexError, mentions=[index, len(Grid(plan()))]):
        Grid(plan()).trial(index)


@given(st.sets(st.integers(0, 200)), st.integers(0, 200), st.integers(0, 200))
def test_a_set_of_trials_gives_back_what_was_not_added(marked: set[int], start: int, stop: int) -> None:
    done = TrialSet(200)
    assert all(done.add(index) for index in marked)
    assert not any(done.add(index) for index in marked)
    assert list(done.missing(range(start, stop))) == [i for i in range(start, stop) if i not in marked]


def test_a_plan_has_the_digest_of_stored_studies() -> None:
    """What is left out is not encoded, and a declared analysis is encoded whole."""
    made, edge = plan(), small_plan(edges=True)
    full = msgspec.structs.replace(made, analysis=Analysis(), blocks=(1, 4), attacker=made.models[0])
    assert [digest(each) for each in (made, edge, full)] == [
        "4e5993467dca6ee05820825a79378a1b",
        "f9490832817b79633593e624bade2916",
        "2ce31e387cde40a8669c87f6fd739dca",
    ]
    assert [msgspec.json.decode(encode(each), type=Plan) for each in (made, edge, full)] == [made, edge, full]
    file = PlanFile(digest(made), made.application.digest, made)
    assert plan_seal(file) == "01ac21c130591648"
    assert plan_seal(msgspec.structs.replace(file, at="2026")) == "d5155b58ffd5cc06"


def test_a_plan_comes_back_equal_and_saving_it_again_changes_nothing(tmp_path: Path) -> None:
    made = plan()
    plans.write_plan(tmp_path, made)
    before = (tmp_path / "plan.json").read_bytes()
    plans.write_plan(tmp_path, plan())
    assert plans.read_plan(tmp_path) == made
    assert (tmp_path / "plan.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, ("another-study", ["seed", "0", "1"])),
        ({"samples": 3}, ("another-study", ["samples", "2", "3"])),
        ({"attacks": ("direct",)}, ("another-study", ["attacks", "direct, prefill", "direct"])),
        (
            {"application": msgspec.structs.replace(APPLICATION, max_turns=2)},
            ("another-study", ["application", "support-desk"]),
        ),
        (
            {"models": plan(["scripted:careful"]).models},
            ("another-study", ["models", "scripted:mixed, scripted:mixed/b"]),
        ),
        (
            {"probes": plan().probes[::-1], "blocks": (4, 28)},
            ("another-study", ["--stopping", "fixed", "until_decided"]),
        ),
        ({"probes": plan(n=3).probes}, ("another-study", ["probes", "28", "planted_secret/item-0", "21"])),
    ],
)
def test_another_plan_in_the_folder_is_refused_and_the_difference_said(
    tmp_path: Path, change: dict[str, object], said: tuple[str, list[str]]
) -> None:
    plans.write_plan(tmp_path, plan())
    before = (tmp_path / "plan.json").read_bytes()
    with raises(NotComparable, *said):
        plans.write_plan(tmp_path, msgspec.structs.replace(plan(), **change))
    assert (tmp_path / "plan.json").read_bytes() == before


def test_a_plan_of_an_older_schema_is_refused(tmp_path: Path) -> None:
    plans.write_plan(tmp_path, plan())
    path = tmp_path / "plan.json"
    text = path.read_text().replace('"schema":1}\n', '"schema":0}\n')
    path.write_text(text)
    with raises(NotComparable, "schema-mismatch", mentions=["plan.json", 0, 1]):
        plans.read_plan(tmp_path)


def test_a_plan_that_was_edited_by_hand_is_damaged(tmp_path: Path) -> None:
    plans.write_plan(tmp_path, plan())
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace('"samples":2', '"samples":1'))
    with raises(Damaged, "damaged"):
        plans.read_plan(tmp_path)


def test_a_plan_of_another_version_says_what_to_do_in_one_line(tmp_path: Path) -> None:
    """As those that had a family of seeds."""
    plans.write_plan(tmp_path, declare(plan(("scripted:careful", "scripted:leaky"))))
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace('"between":"pairs"', '"between":"seeds"'))
    with raises(Damaged, "damaged", mentions=["plan.json", "seeds", "of another version"]) as raised:
        plans.read_plan(tmp_path)
    assert "\n" not in str(raised.value)


def test_an_application_digest_that_was_edited_is_damaged(tmp_path: Path) -> None:
    made = plan()
    plans.write_plan(tmp_path, made)
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace(made.application.digest, "0" * 32))
    with raises(Damaged, "damaged", mentions=["plan.json", "application_digest"]):
        plans.read_plan(tmp_path)


def test_more_trials_than_can_be_kept_are_a_usage_error(tmp_path: Path) -> None:
    model = lineage.scripted("scripted:mixed").record
    with raises(UsageError, "bad-usage", mentions=["1", "1,000,000,000,000", "100,000,000"]):
        resolve_plan(StudySpec([model], APPLICATION, samples=10**12))
    plans.write_plan(tmp_path, plan(samples=10**12))
    with raises(UsageError, "bad-usage", mentions=["100,000,000"]):
        plans.read_plan(tmp_path)


@given(st.binary(max_size=60))
def test_no_bytes_in_the_place_of_a_plan_give_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    (folder / "plan.json").write_bytes(junk)
    with pytest.raises((Damaged, NotComparable)):
        plans.read_plan(folder)


def test_a_folder_without_a_plan_holds_no_study(tmp_path: Path) -> None:
    with raises(UsageError, "bad-usage", mentions=["plan.json"]):
        plans.read_plan(tmp_path)


def test_rows_without_a_plan_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "responses.jsonl").write_text("")
    with raises(Damaged, "damaged"):
        plans.write_plan(tmp_path, plan())


def resolve(**settings: object) -> Plan:
    defaults: dict[str, object] = {"models": [CAREFUL, LEAKY], "application": APPLICATION}
    return resolve_plan(StudySpec(**{"probes": "planted_secret", **defaults, **settings}))  # type: ignore[arg-type]


def test_a_resolved_plan_holds_filled_probes_and_says_what_it_skipped() -> None:
    made = resolve()
    assert made.probes
    assert not any("{" in turn for probe in made.probes for turn in probe.turns)
    bare = msgspec.structs.replace(APPLICATION, tools=())
    made = resolve(application=bare, probes=["planted_secret", "forbidden_tool"])
    assert {probe.technique for probe in made.probes} == {"planted_secret"}
    assert {row.probe.split("/")[0] for row in made.skipped} == {"forbidden_tool"}
    assert all(row.reason for row in made.skipped)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"models": []}, ("bad-usage", [])),
        ({"models": [CAREFUL, CAREFUL]}, ("name-twice", ["scripted:careful", "2"])),
        ({"attacks": ("direct", "direct")}, ("name-twice", ["direct", "2"])),
        ({"samples": 0}, ("bad-setting", ["samples", "1", "0"])),
        ({"margin": 0.0}, ("bad-setting", ["margin", "0", "1", "0.0"])),
        ({"confidence": 95}, ("bad-setting", ["confidence", "0.5", "1", "95"])),
        (
            {"application": msgspec.structs.replace(APPLICATION, secrets=())},
            ("bad-usage", []),
        ),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(
    settings: dict[str, object], said: tuple[str, list[str]]
) -> None:
    with raises(UsageError, *said):
        resolve(**settings)


@pytest.mark.parametrize(
    ("settings", "near"),
    [({"attacks": ("direkt",)}, "direct"), ({"probes": "planted_secrett"}, "planted_secret")],
)
def test_an_unknown_name_is_answered_with_the_nearest(settings: dict[str, object], near: str) -> None:
    with raises(UnknownName, "unknown-name", mentions=[near]):
        resolve(**settings)
