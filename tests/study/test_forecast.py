"""What a plan can show, said before the first request: the numbers are those that a simulation finds."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity import stats
from heredity.core.records import Check, Probe
from heredity.core.terminal import wrapped
from heredity.stats.edges import EdgeTest, edge_difference, kept_power, loss_power, shipped_run_variance
from heredity.stats.judge_error import compare_at_shares
from heredity.stats.power import EXACT_TO, _tango_critical, not_worse_power, sequential_power, shown_margin
from heredity.stats.sequential import SequentialComparison
from heredity.study.findings.edge_verdicts import edge_verdicts
from heredity.study.forecast import (
    BASELINE,
    UNCLEAR,
    Assumed,
    forecast_lines,
    forecast_study,
    left_out,
    smallest,
)
from heredity.study.plan import ForecastRow, Plan, StudyForecast, read_saved
from heredity.study.resolve import declare
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.study.test_inherited import family
from tests.support.errors import raises, run_here
from tests.support.studies import APPLICATION, plan, probes

MODELS = ("scripted:mixed", "scripted:careful")


def planned(
    n: int = 40, per_cluster: int = 1, margin: float = 0.1, techniques: int = 2, **declared: object
) -> Plan:
    """A plan of two models over `n` clusters of each technique, judge-free and without twins."""
    made = tuple(
        Probe(
            f"t{t}/{c}-{i}", f"t{t}", "breach", (f"Say {t} {c} {i}.",), Check("marker", text=f"zor{c}"),
            f"c{c}", why_no_twin="of a test",
        )
        for t in range(techniques)
        for c in range(n)
        for i in range(per_cluster)
    )  # fmt: skip
    asked = msgspec.structs.replace(
        plan(MODELS, n=1, attacks=("direct",), samples=1), probes=made, margin=margin
    )
    return declare(asked, **declared)  # type: ignore[arg-type]


def row(found: StudyForecast | None, technique: str = "judge_free", between: str = "pairs") -> ForecastRow:
    assert found is not None
    (only,) = [r for r in found.rows if (r.technique, r.between, r.measure) == (technique, between, "breach")]
    return only


# --- the formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "margin"), [(20, 0.1), (37, 0.3), (60, 0.05)])
def test_the_critical_counts_of_not_worse_are_those_of_tangos_bound(n: int, margin: float) -> None:
    critical = _tango_critical(n, margin, 0.05)
    for m in range(n + 1):
        tables = [stats.Table(0, m - b, b, n - m) for b in range(m + 1)]
        shown = [t.only_b for t in tables if stats.paired.tango_bounds(t, n, 0.9).high < margin]
        assert shown == list(range(len(shown))) and critical[m] == len(shown) - 1


def test_exact_and_normal_power_of_not_worse_meet() -> None:
    below, above = (not_worse_power(n, 0.2, 0.015) for n in (EXACT_TO, EXACT_TO + 1))
    assert 0.6 < below < 0.95 and below == pytest.approx(above, abs=0.01)


def test_the_margin_that_is_shown_has_the_power_and_a_smaller_one_has_not() -> None:
    found = shown_margin(180, 0.25)
    assert found is not None
    assert not_worse_power(180, 0.25, found) >= 0.8 > not_worse_power(180, 0.25, found - 0.005)
    assert shown_margin(0, 0.9) is None


def test_a_narrow_question_is_refused() -> None:
    with raises(ValueError, "bad-setting", [0.0]):
        not_worse_power(100, 0.2, 0.0)


# --- against simulated studies ----------------------------------------------------------------------


def verdicts(made: Plan, difference: float, discordance: float, unclear: float, runs: int) -> list[str]:
    """The verdict on b of `runs` studies, and whether "worse" survives the declared share of unclear answers.

    A behaviour shares its outcome over its trials with a chance of 0.4 to be one draw.
    """
    rng, alpha = np.random.default_rng(5), 0.05
    clusters = np.unique([f"{p.technique}{p.cluster}" for p in made.probes], return_inverse=True)[1]
    n_clusters, found = clusters.max() + 1, []
    p_b = (discordance + difference) / 2
    for _ in range(runs):
        draws = rng.random(len(clusters))
        shared = rng.random(n_clusters)[clusters]
        is_shared = (rng.random(n_clusters) < 0.4)[clusters]
        u = np.where(is_shared, shared, draws)
        b, a = u < p_b, (u >= p_b) & (u < discordance)
        comparison = stats.compare(a, b, clusters)
        word = stats.verdict(comparison, made.margin, alpha)
        if word == "worse" and unclear:
            is_unclear = ~a & ~b & (rng.random(len(a)) < unclear / (1 - discordance))
            at = compare_at_shares(np.where(is_unclear, np.nan, a), b.astype(float), clusters, 0.25)
            word = "worse" if at.is_worse(alpha) else "not enough evidence"
        found.append(word)
    return found


@pytest.mark.parametrize("per_cluster", [1, 3])
def test_not_worse_has_the_power_that_was_foreseen(per_cluster: int, tmp_path: Path) -> None:
    made = planned(60, per_cluster)
    foreseen = row(forecast_study(made, tmp_path / "s"))
    found = verdicts(made, 0.0, Assumed().discordance, 0.0, 600)
    # Three standard errors of 600 studies, and what the effective n of clusters rounds off.
    assert np.mean([w == "not worse" for w in found]) == pytest.approx(foreseen.not_worse, abs=0.09)
    assert 0.3 < foreseen.not_worse < 0.9


@pytest.mark.parametrize("per_cluster", [1, 3])
def test_the_detectable_difference_is_found_with_the_power_of_the_forecast(
    per_cluster: int, tmp_path: Path
) -> None:
    made = planned(60, per_cluster)
    foreseen = row(forecast_study(made, tmp_path / "s"))
    assert foreseen.detectable is not None and foreseen.n_comparisons == 1
    discordance = Assumed().discordance + foreseen.detectable - 0.25 * UNCLEAR
    found = verdicts(made, foreseen.detectable, discordance, UNCLEAR, 600)
    assert np.mean([w == "worse" for w in found]) == pytest.approx(0.8, abs=0.09)


def test_interim_analyses_decide_as_often_as_the_simulation_says() -> None:
    """The real evidence, block by block, against the counts of the forecast."""
    ends, rng, runs = (30, 60, 90, 120), np.random.default_rng(3), 150
    decided = 0
    for _ in range(runs):
        evidence = SequentialComparison(0.05, 120)
        values = rng.choice([-1.0, 1.0, 0.0], size=120, p=[0.05, 0.25, 0.7])
        for low, high in zip((0, *ends[:-1]), ends, strict=True):
            evidence.add(values[low:high])
        decided += evidence.p_value < 0.05 and evidence.means.mean() > 0
    expected = sequential_power(ends, 0.3, np.random.default_rng(0), 0.2)
    assert decided / runs == pytest.approx(expected, abs=0.12)
    of_equals = sequential_power(ends, 0.3, np.random.default_rng(0))
    assert of_equals < 0.05 / 2 + 0.02


# --- a plan -----------------------------------------------------------------------------------------


def test_more_clusters_show_more_and_more_wordings_of_them_little(tmp_path: Path) -> None:
    few, many, worded = (
        row(forecast_study(planned(*sizes), tmp_path / "s")) for sizes in ((30, 1), (120, 1), (30, 4))
    )
    assert few.not_worse < worded.not_worse < many.not_worse
    assert few.n_effective == 60 and worded.n_effective < 240 / 2
    assert few.clusters_needed == pytest.approx(many.clusters_needed, rel=0.02)


def test_a_technique_shows_less_than_all_of_them(tmp_path: Path) -> None:
    found = forecast_study(planned(40), tmp_path / "s")
    pooled, one = row(found), row(found, "t0")
    assert one.n_comparisons == 2 and pooled.n_comparisons == 1
    assert one.detectable is None or one.detectable > (pooled.detectable or 1)
    assert one.not_worse < pooled.not_worse and one.margin is None


def test_leaving_unclear_answers_out_costs_trials(tmp_path: Path) -> None:
    all_, decided = (
        row(forecast_study(planned(60, endpoint=name), tmp_path / "s"))
        for name in ("all_trials", "decided_trials")
    )
    assert decided.n_effective < all_.n_effective
    assert all_.detectable is not None and decided.detectable is not None
    shareless = row(forecast_study(planned(60, unclear_share=0.0), tmp_path / "s"))
    assert shareless.detectable == pytest.approx(all_.detectable - 0.25 * UNCLEAR, abs=0.02)


def test_early_stopping_shows_less_at_the_same_size(tmp_path: Path) -> None:
    fixed = planned(60)
    n = len(fixed.probes)
    early = declare(msgspec.structs.replace(fixed, blocks=tuple(n * i // 12 for i in range(1, 13))))
    a, b = (row(forecast_study(each, tmp_path / "s")) for each in (fixed, early))
    assert b.not_worse < a.not_worse and (b.detectable or 1) > (a.detectable or 1)
    assert b.clusters_needed > a.clusters_needed


def test_parents_and_children_are_foreseen_as_edges(tmp_path: Path) -> None:
    study = Study(StudySpec(list(family()), APPLICATION, probes=probes(20), out=tmp_path / "s"))
    found = study.forecast()
    edge, pair = (row(found, between=kind) for kind in ("edges", "pairs"))
    assert pair.n_comparisons == 6
    verdicts = Study(StudySpec(list(family()), APPLICATION, probes=probes(20), out=tmp_path / "v")).run()
    rows = edge_verdicts(verdicts.estimates).values()  # Holm corrects over the numbers of all edges
    assert edge.n_comparisons == sum(len(each.numbers) for each in rows) > 4
    assert found is not None and found.discordance["edges"] == found.discordance["pairs"] / 2
    assert "parent and child" in forecast_lines(study.resolved, found)[0]


@pytest.mark.parametrize("n_edges", [1, 12])
def test_a_loss_is_shown_with_the_power_of_its_family(n_edges: int) -> None:
    """The tests of edges themselves, on trials and runs as they are assumed."""
    rng, n, margin, runs = np.random.default_rng(7), 200, 0.1, shipped_run_variance(is_made_again=True)
    alpha, every = 0.05 / (6 * n_edges), np.arange(n)
    loss = smallest(lambda d: loss_power(n, 0.16 + d, d, runs, margin, alpha, 0.05) >= 0.8) or 0.0
    shown, kept = list[bool](), list[bool]()
    for _ in range(400):
        for true, of in ((loss, shown), (0.0, kept)):
            moved = 0.08 + max(true + rng.normal(0, 0.025), -0.08)
            worse = rng.random(n) < moved
            d = worse.astype(float) - (~worse & (rng.random(n) < 0.08 / (1 - moved)))
            test = EdgeTest.of("refusals", edge_difference(d, every, runs), margin, 0.05)
            of.append(test.lost < alpha if true else test.within < 0.05 / n_edges)
    assert np.mean(shown) == pytest.approx(0.8, abs=0.08)
    assert np.mean(kept) == pytest.approx(kept_power(n, 0.16, runs, margin, 0.05 / n_edges), abs=0.08)


def test_one_model_foresees_nothing(tmp_path: Path) -> None:
    assert Study(StudySpec([MODELS[0]], APPLICATION, probes=probes(), out=tmp_path / "s")).forecast() is None


# --- the words --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 12, 40, 4000])
def test_it_is_said_in_eight_lines_of_eighty_columns(n: int, tmp_path: Path) -> None:
    made = declare(msgspec.structs.replace(plan(n=n), margin=0.05))
    found = forecast_study(made, tmp_path / "s")
    assert found is not None
    said = forecast_lines(made, found)
    assert len(said) <= 8 and all(len(line) <= 80 for line in said)
    assert "behaviours" in said[1] and "cluster" not in " ".join(said)
    assert any("not enough evidence" in line for line in said) == (row(found).not_worse < 0.5)


def test_a_plan_that_can_show_it_says_no_doubt(tmp_path: Path) -> None:
    made = planned(400)
    found = forecast_study(made, tmp_path / "s")
    assert found is not None and row(found).not_worse > 0.95
    assert len(forecast_lines(made, found)) == 4


@pytest.mark.parametrize("differ", [0.02, 0.05, 0.3])
@pytest.mark.parametrize("n", [30, 35, 60, 120])
def test_a_plan_that_falls_short_is_told_to_ask_more_never_less(
    differ: float, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where equal models hardly differ, the normal approximation asked for fewer clusters than planned."""
    monkeypatch.setattr("heredity.study.forecast.Assumed", lambda: Assumed(0.0, differ, 0.0))
    made = planned(n, margin=0.05)
    found = forecast_study(made, tmp_path / "s")
    said = next((line for line in forecast_lines(made, found) if line.startswith("That takes")), "")
    assert bool(said) == (row(found).not_worse < 0.795)
    assert "-" not in said
    if said:
        assert row(found).clusters_needed >= row(found).n_clusters


def test_the_clusters_that_it_asks_for_have_the_power(tmp_path: Path) -> None:
    needed = row(forecast_study(planned(20), tmp_path / "s")).clusters_needed
    assert row(forecast_study(planned(needed // 2), tmp_path / "s")).not_worse == pytest.approx(0.8, abs=0.03)


# --- earlier studies --------------------------------------------------------------------------------


def test_an_earlier_study_of_these_models_is_assumed(tmp_path: Path) -> None:
    Study(StudySpec(MODELS, APPLICATION, probes=probes(30), out=tmp_path / "first")).run()
    found = Study(StudySpec(MODELS, APPLICATION, probes=probes(20), out=tmp_path / "second")).forecast()
    assert found is not None and found.source == "first"
    assert (found.baseline, found.unclear) != (BASELINE, UNCLEAR)
    assert found.source_models == MODELS and found.source_at == datetime.now(UTC).date().isoformat()
    told = forecast_lines(
        Study(StudySpec(MODELS, APPLICATION, probes=probes(20), out=tmp_path / "second")).resolved, found
    )[-1]
    assert all(each in told for each in ("first", found.source_at, *MODELS)) and len(told) <= 80
    others = Study(
        StudySpec(["scripted:leaky", "scripted:helpful"], APPLICATION, probes=probes(20), out=tmp_path / "o")
    )
    elsewhere = Study(StudySpec(MODELS, APPLICATION, probes=probes(20), out=tmp_path / "deep" / "second"))
    for study in (others, elsewhere):
        guessed = study.forecast()
        assert guessed is not None and (guessed.source, guessed.baseline) == ("", BASELINE)


def test_a_study_that_lacks_a_model_and_a_copy_of_this_study_tell_nothing(tmp_path: Path) -> None:
    Study(StudySpec(MODELS, APPLICATION, probes=probes(30), out=tmp_path / "first")).run()
    more = Study(
        StudySpec([*MODELS, "scripted:leaky"], APPLICATION, probes=probes(20), out=tmp_path / "more")
    ).forecast()
    assert more is not None and (more.source, more.baseline) == ("", BASELINE)
    copied = Study(StudySpec(MODELS, APPLICATION, probes=probes(30), out=tmp_path / "copy"))
    found = copied.forecast()
    assert found is not None and (found.source, found.baseline) == ("", BASELINE)
    assert any(line.startswith("Guessed:") for line in forecast_lines(copied.resolved, found))


def test_a_finished_study_keeps_the_forecast_that_was_made_before_it(tmp_path: Path) -> None:
    one = Study(StudySpec(MODELS, APPLICATION, probes=probes(20), out=tmp_path / "a"))
    one.run()
    saved = read_saved(tmp_path / "a").forecast
    Study(StudySpec(MODELS, APPLICATION, probes=probes(30), out=tmp_path / "later")).run()
    for again in (
        Study.open(tmp_path / "a"),
        Study(StudySpec(MODELS, APPLICATION, probes=probes(20), out=tmp_path / "a")),
    ):
        found = again.forecast()
        assert found == saved and found is not None and found.source == ""


def test_a_row_that_can_show_no_difference_does_not_read_as_if_there_were_none(tmp_path: Path) -> None:
    made = planned(2)
    found = forecast_study(made, tmp_path / "s")
    assert row(found).detectable is None
    (said,) = [line for line in forecast_lines(made, found) if "breaches, by checks" in line]
    assert "no difference" not in said and "cannot show worse" in said


def test_a_damaged_neighbour_is_passed_over(tmp_path: Path) -> None:
    first = Study(StudySpec(MODELS, APPLICATION, probes=probes(30), out=tmp_path / "first"))
    first.run()
    (tmp_path / "first" / "estimates.json").write_text("{")
    found = Study(StudySpec(MODELS, APPLICATION, probes=probes(20), out=tmp_path / "second")).forecast()
    assert found is not None and found.source == ""


# --- where it is kept and shown ---------------------------------------------------------------------


def test_it_is_kept_beside_the_plan_and_outside_its_digest(tmp_path: Path) -> None:
    one = Study(StudySpec(MODELS, APPLICATION, probes=probes(20), out=tmp_path / "a"))
    one.run()
    saved = read_saved(tmp_path / "a")
    assert isinstance(saved.forecast, StudyForecast) and saved.forecast.source == ""
    Study(StudySpec(MODELS, APPLICATION, probes=probes(30), out=tmp_path / "earlier")).run()
    two = Study(StudySpec(MODELS, APPLICATION, probes=probes(20), out=tmp_path / "b"))
    two.plan()
    other = read_saved(tmp_path / "b")
    assert isinstance(other.forecast, StudyForecast) and other.forecast.source == "earlier"
    assert saved.study == other.study
    Study.open(tmp_path / "a").run()
    assert read_saved(tmp_path / "a").forecast == saved.forecast


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "desk.toml").write_text('name = "desk"\nsystem = "You help."\n')
    (tmp_path / "plan.toml").write_text(
        'models = ["scripted:mixed", "scripted:careful"]\napplication = "desk.toml"\nprobes = "core"\n'
    )
    return tmp_path


def test_a_study_says_it_before_the_first_request_and_once(place: Path) -> None:
    done = run_here("study", "plan.toml", "--out", "out", cwd=place, env={"COLUMNS": "80"})
    said = done.stderr.splitlines()
    foreseen = read_saved(place / "out")
    assert isinstance(foreseen.forecast, StudyForecast)
    expected = [
        *forecast_lines(foreseen.plan, foreseen.forecast),
        *wrapped(*left_out(foreseen.plan), 80).splitlines(),
    ]
    assert said[: len(expected)] == expected and said[len(expected)].startswith("asking")
    again = run_here("study", "plan.toml", "--out", "out", cwd=place)
    assert expected[0] not in again.stderr


def test_power_foresees_the_same_for_the_plan_file(place: Path) -> None:
    told = run_here("power", "--study", "plan.toml", "--json", cwd=place)
    run_here("study", "plan.toml", "--out", "out", cwd=place)
    foreseen = json.loads((place / "out" / "plan.json").read_bytes())["forecast"]
    assert json.loads(told.stdout) == foreseen
    shown = run_here("power", "--study", "plan.toml", cwd=place)
    assert re.search(r"^pairs by breach *\n  judge_free  ", shown.stdout, re.MULTILINE)
    shutil.rmtree(place / "out")


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("verb", [("power", "--study", "plan.toml"), ("study", "plan.toml", "--out", "out")])
def test_no_word_is_broken_on_a_narrow_screen(place: Path, width: int, verb: tuple[str, ...]) -> None:
    """At 80 columns `power` printed its techniques in pieces of nine letters."""
    env = {"COLUMNS": str(width)}
    whole = run_here(*verb, cwd=place, env={"COLUMNS": "200"})
    shutil.rmtree(place / "out", ignore_errors=True)
    narrow = run_here(*verb, cwd=place, env=env)
    told = [
        run.stdout if verb[0] == "power" else run.stderr.partition("asking")[0] for run in (whole, narrow)
    ]
    assert max(map(len, told[1].splitlines())) <= width
    assert set(told[1].split()) <= set(told[0].split()), "pieces of words"
    if verb[0] == "power":
        assert {"executable_output", "behaviours"} <= set(told[1].split())


def test_techniques_that_the_application_lacks_are_named_in_one_line(place: Path) -> None:
    done = run_here("study", "plan.toml", "--out", "out", cwd=place)
    (line,) = left_out(read_saved(place / "out").plan)
    assert "planted_secret" in line and "forbidden_tool" in line and "direct_injection" not in line
    assert " ".join(line.split()) in " ".join(done.stderr.split())
    assert left_out(msgspec.structs.replace(planned(), skipped=())) == []


def test_power_needs_no_model_in_the_store(place: Path) -> None:
    text = (place / "plan.toml").read_text().replace("scripted:mixed", "qwen2.5-coder-0.5b-instruct")
    (place / "plan.toml").write_text(text)
    done = run_here(
        "power", "--study", "plan.toml", "--json", cwd=place, env={"HEREDITY_STORE": str(place / "st")}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seconds"][1] > 0
    assert not (place / "studies").exists()


def test_power_plans_for_parents_and_children(place: Path) -> None:
    def needed(*args: str) -> dict[str, object]:
        done = run_here("power", "--gap", "0.1", "--margin", "0.05", *args, "--json", cwd=place)
        found: dict[str, object] = json.loads(done.stdout)
        return found

    three, edges = needed("--models", "3"), needed("--models", "3", "--edges", "2")
    assert (three["n_pairs"], edges["n_pairs"]) == (3, 2)
    assert edges["difference"]["fixed"] < three["difference"]["fixed"]  # type: ignore[index]
    assert edges["not_worse"]["fixed"] == three["not_worse"]["fixed"]  # type: ignore[index]


def test_an_attack_counts_only_for_the_techniques_that_it_is_for(tmp_path: Path) -> None:
    both = msgspec.structs.replace(planned(), attacks=("direct", "crescendo:5@t0"))
    found = forecast_study(both, tmp_path)
    assert (row(found, "t0").n_trials, row(found, "t1").n_trials) == (80, 40)
    assert row(found).n_trials == 120
    assert forecast_study(msgspec.structs.replace(both, attacks=("crescendo:5@t0",)), tmp_path) is not None
