"""`heredity power`: plans before anything is asked, and refuses what cannot be planned in a line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.cli import main
from heredity.cli.power import command
from heredity.core.errors import UsageError
from heredity.lab.controls import with_controls
from heredity.lab.plan import read_plan
from heredity.lineage.store import Store
from heredity.stats import n_for_difference, n_for_margin
from heredity.stats.power import SampleSizeQuestion, plan_sample_size
from heredity.study.comparisons import StoppingRule
from heredity.study.outcomes import Outcomes
from tests.lineage.test_store import Toy
from tests.support.errors import raises
from tests.support.studies import plan, study


def told(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, object]:
    assert main(["power", *args, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_fixed_plan_is_that_of_the_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "--gap", "0.1", "--discordant", "0.2", "--margin", "0.05", "--judge-free")
    assert found["difference"]["fixed"] == n_for_difference(0.1, 0.2) == 168
    assert found["not_worse"]["fixed"] == n_for_margin(0.05, 0.2)
    assert found["difference"]["sequential_median"] < 168 < found["difference"]["sequential_most"]
    assert {width["n"] for width in found["widths"]} == {168, found["not_worse"]["fixed"]}
    assert all(width["fixed"] < width["anytime"] < 1 for width in found["widths"])


def test_without_a_discordant_share_the_models_break_independently(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = told(capsys, "--gap", "0.1", "--baseline", "0.2")
    assert found["difference"]["discordance"] == pytest.approx(0.2 * 0.7 + 0.3 * 0.8)
    assert found["not_worse"] is None


def test_more_models_and_clusters_need_more() -> None:
    def fixed(**settings: float) -> int:
        found = plan_sample_size(SampleSizeQuestion(gap=0.2, **settings), np.random.default_rng(0)).difference
        assert found is not None
        return found.fixed

    assert fixed() < fixed(models=3) < fixed(models=6)
    assert fixed(per_cluster=5, correlation=0.5) == pytest.approx(3 * fixed(), abs=3)


@pytest.mark.parametrize("is_until_decided", [True, False])
@pytest.mark.parametrize(
    ("techniques", "flags"), [(None, ()), (("planted_secret", "forbidden_tool"), ("--judge-free",))]
)
def test_it_plans_for_as_many_comparisons_as_a_study_makes(
    is_until_decided: bool,
    techniques: tuple[str, ...] | None,
    flags: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = plan([f"scripted:mixed/{i}" for i in range(3)], attacks=("direct",))
    if techniques is not None:
        kept = tuple(p for p in made.probes if p.technique in techniques and p.kind == "breach")
        made = msgspec.structs.replace(made, probes=kept)
    if is_until_decided:
        made = msgspec.structs.replace(made, blocks=(len(made.probes),))
    pairs = [pair for pair in study(tmp_path, made).run().estimates.pairs if pair.measure == "breach"]
    found = told(capsys, "--gap", "0.2", "--models", "3", *flags)
    assert found["difference"]["alpha"] == pytest.approx(0.05 / len(pairs))
    assert found["n_pairs"] * found["scopes"] == len(pairs)
    if is_until_decided:
        assert len(StoppingRule(Outcomes(made))._evidence) == len(pairs)


def test_people_read_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "--gap", "0.2", "--models", "3"]) == 0
    said = capsys.readouterr().out
    assert (
        "3 pairs in breaches that checks decide and that a judge decides (Holm over 6)" in said
        and "a gap of 20 points" in said
        and "if valid at any time" in said
    )


@pytest.fixture
def lineage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A base with four children, and a grandchild: five edges, fifteen pairs."""
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    store = Store(tmp_path / "store")
    base = store.grow(Toy(0.0, "base"))
    children = [store.grow(Toy(float(i), f"child-{i}"), [base]) for i in range(1, 5)]
    store.grow(Toy(9.0, "grandchild"), [children[0]])
    return store


@pytest.mark.slow
def test_a_lineage_of_the_store_is_planned_by_its_edges(
    lineage: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--gap", "0.24", "--discordant", "0.36", "--judge-free")
    found = told(capsys, *asked, "--lineage", "base")
    assert found["is_of_edges"] and found["n_pairs"] == 5
    assert found["difference"]["alpha"] == pytest.approx(0.05 / 5)
    assert found["difference"]["fixed"] == told(capsys, *asked, "--edges", "5")["difference"]["fixed"]
    assert found["difference"]["fixed"] < told(capsys, *asked, "--models", "6")["difference"]["fixed"]
    assert main(["power", *asked, "--lineage", "child-1"]) == 0
    said = capsys.readouterr().out
    assert "1 edge" in said and "grandchild of child-1, toy" in said


def test_the_models_of_a_plan_file_are_planned_by_their_edges(
    lineage: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "desk.toml").write_text('name = "desk"\nsystem = "You help."\n')
    models = 'models = ["base", "child-1", "grandchild"]'
    (tmp_path / "plan.toml").write_text(
        f'{models}\napplication = "desk.toml"\nprobes = ["harmful_request"]\n'
    )
    asked = ("--gap", "0.2", "--lineage", str(tmp_path / "plan.toml"))
    assert told(capsys, *asked)["n_pairs"] == 2
    forecast = told(capsys, "--study", str(tmp_path / "plan.toml"))
    rows = [r for r in forecast["rows"] if r["between"] == "edges" and r["technique"] == "judged"]
    assert [row["n_comparisons"] for row in rows] == [8]  # four numbers of each edge
    assert main(["power", "--study", str(tmp_path / "plan.toml")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of parent and child with 80 % power (Holm over 8):" in said
    assert "Its 3 pairs of models are a second family; no verdict on a child uses it." in said


@pytest.mark.parametrize(("more", "code"), [(("--edges", "3"), "bad-setting"), ((), "bad-usage")])
def test_a_lineage_without_edges_or_with_two_numbers_of_them_is_refused(
    lineage: Store, more: tuple[str, ...], code: str, tmp_path: Path
) -> None:
    reference = "base" if more else "grandchild"
    with raises(UsageError, code):
        command.main(["--gap", "0.2", "--lineage", reference, *more], standalone_mode=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "Give --gap, --margin or both, or a plan with --study."),
        (("--gap", "10"), "0.1 for ten points"),
        (("--gap", "0.3", "--baseline", "0.9"), "leave the range"),
        (("--gap", "0.3", "--discordant", "0.1"), "between the gap and 1"),
        (("--gap", "0.3", "--models", "1"), "at least 2"),
        (("--gap", "0.3", "--power", "1"), "Power must lie"),
        (("--gap", "0.3", "--correlation", "2"), "correlation"),
        (("--margin", "0.1", "--baseline", "0"), "never disagree"),
        (("--gap", "0.0001"), "larger"),
        (("--gap", "nan"), "must lie"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["power", *args]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint and complaint.count("\n") == 1


def test_the_studies_of_a_plan_of_inherit_are_shown_before_anything_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    path = Path(__file__).parents[2] / "examples" / "inheritance.toml"
    assert main(["power", "--study", str(path)]) == 0
    text = capsys.readouterr().out
    assert "Under the models' own default:" in text and "Under crescendo:" in text
    assert text.count("What this plan can show of parent and child") == 2
    plan = read_plan(path)
    asking = sum(each.minutes for each in plan.battery)
    found = re.search(r"expects (\d+) min to make (\d+) children on two cores, and (\d+) min to ask", text)
    assert found is not None
    making, children, shown = map(int, found.groups())
    every = with_controls(plan).child
    most = sum(child.minutes * len(child.each_seed) for child in every)
    assert shown == round(asking) and 0 < making <= most
    # Those that need more memory than is free, or a recipe that is not there, are not counted.
    assert 20 < children <= sum(len(child.each_seed) for child in every)
    assert "0 to " not in text
    assert main(["power", "--study", str(path), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["default", "crescendo"]
    assert not [each for each in tmp_path.rglob("*") if each.is_file()]


def test_a_plan_of_inherit_is_planned_by_its_edges(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "examples" / "inheritance.toml"
    shown = read_plan(path)
    assert main(["power", "--gap", "0.2", "--lineage", str(path)]) == 0
    text = capsys.readouterr().out
    n = sum(len(child.each_seed) * len(child.parents) for child in shown.child)
    assert f"{n} edges" in text and "gptq4 of teacher, quantize" in text and "student-all-1 of base" in text
