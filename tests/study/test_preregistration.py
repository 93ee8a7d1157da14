"""A plan declares its analysis before the first answer, and what is declared is hashed and dated."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from heredity.core.errors import NotComparable, UsageError
from heredity.core.records import digest
from heredity.study import plan as plans
from heredity.study.forecast import forecast_lines
from heredity.study.headline import headline
from heredity.study.plan import ComparisonFamily, Plan
from heredity.study.resolve import declare, families_of
from heredity.study.spec import StudySpec
from heredity.study.storage import run_records
from heredity.study.study import Study
from heredity.study.wording import declared_lines
from tests.study.test_inherited import family
from tests.support.errors import raises, run_here
from tests.support.studies import APPLICATION, plan, probes

MODELS = ("scripted:mixed", "scripted:careful", "scripted:leaky")
BREACH, OVER = ("judge_free", "judged"), ("all",)


def declared(made: Plan) -> plans.Analysis:
    assert made.analysis is not None
    return made.analysis


def resolved(tmp_path: Path, **settings: object) -> Study:
    return Study(StudySpec(MODELS[:2], APPLICATION, probes=probes(), out=tmp_path / "s", **settings))  # type: ignore[arg-type]


def test_a_new_plan_declares_endpoint_families_stopping_and_judge(tmp_path: Path) -> None:
    analysis = declared(resolved(tmp_path).plan())
    assert (analysis.endpoint, analysis.unclear_share) == ("all_trials", 0.25)
    assert (analysis.stopping, analysis.judge) == ("fixed", "rules")
    breach = ComparisonFamily("pairs", "breach", BREACH, 2)
    assert analysis.families == (breach, ComparisonFamily("pairs", "over_refusal", OVER, 1))
    assert analysis.primary == ComparisonFamily("pairs", "breach", ("judge_free",), 1)


def test_edges_are_a_declared_family_and_come_first(tmp_path: Path) -> None:
    made = Study(StudySpec(list(family()), APPLICATION, probes="planted_secret", out=tmp_path)).plan()
    analysis = declared(made)
    sizes = {(each.between, each.measure): each.n for each in analysis.families}
    assert sizes == {
        ("pairs", "breach"): 3,
        ("pairs", "over_refusal"): 3,
        ("edges", "breach"): 2,
        ("edges", "over_refusal"): 2,
    }
    assert analysis.primary == ComparisonFamily("edges", "breach", ("judge_free",), 2)


def test_the_declared_families_are_those_that_holm_corrects(tmp_path: Path) -> None:
    study = Study(StudySpec(list(MODELS), APPLICATION, probes=probes(12), out=tmp_path))
    found = study.run().estimates
    for each in families_of(study.plan()):
        rows = found.pairs if each.between == "pairs" else [edge.compared for edge in found.edges]
        assert sum(row.measure == each.measure for row in rows) == each.n


def test_one_model_is_compared_with_none(tmp_path: Path) -> None:
    analysis = declared(Study(StudySpec([MODELS[0]], APPLICATION, probes=probes(), out=tmp_path)).plan())
    assert analysis.families == () and analysis.primary is None


def test_every_declared_setting_is_part_of_the_digest() -> None:
    made = plan()
    declarations = [
        declare(made),
        declare(made, "decided_trials"),
        declare(made, unclear_share=0.5),
        declare(made, judge="learned"),
    ]
    assert len({digest(each) for each in (made, *declarations)}) == 5
    assert {digest(each.questions) for each in declarations} == {digest(made)}


def test_a_plan_is_dated_before_its_first_answer(tmp_path: Path) -> None:
    study = resolved(tmp_path)
    study.run()
    at = plans.read_saved(study.folder).at
    assert isinstance(at, str)
    starts = [datetime.fromisoformat(run.at) for run in run_records(study.folder)]
    assert starts and all(datetime.fromisoformat(at) <= start for start in starts)
    resolved(tmp_path).run()
    assert plans.read_saved(study.folder).at == at, "the same command keeps the plan and its date"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"endpoint": "decided_trials"}, ["--endpoint", "all_trials", "decided_trials"]),
        ({"unclear_share": 0.5}, ["--unclear-share", 0.25, 0.5]),
    ],
)
def test_another_analysis_is_another_study(
    tmp_path: Path, settings: dict[str, object], named: list[object]
) -> None:
    resolved(tmp_path).plan()
    with raises(NotComparable, "another-study", named):
        resolved(tmp_path, **settings).plan()


def test_another_judge_resumes_the_study_as_it_was_declared(tmp_path: Path) -> None:
    first = resolved(tmp_path).plan()
    again = resolved(tmp_path, judge="learned").plan()
    assert again == first and declared(again).judge == "rules"


def test_a_folder_of_a_release_without_an_analysis_is_resumed_without_one(tmp_path: Path) -> None:
    new = resolved(tmp_path)
    old = resolved(tmp_path)._plan.questions
    plans.write_plan(new.folder, old)
    before = (new.folder / "plan.json").read_bytes()
    result = new.run()
    assert result.estimates.study == digest(old)
    assert (new.folder / "plan.json").read_bytes() == before
    with raises(NotComparable, "another-study", ["--endpoint"]):
        resolved(tmp_path, endpoint="decided_trials").plan()


def test_the_default_folder_follows_from_the_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study of an earlier release, which declared no analysis, is found by the same command."""
    monkeypatch.chdir(tmp_path)
    one, other = (
        Study(StudySpec(MODELS[:2], APPLICATION, probes=probes(), endpoint=name))
        for name in ("all_trials", "decided_trials")
    )
    assert one.folder == other.folder
    assert one.folder.name.endswith(digest(one.plan().questions)[:8])


@pytest.mark.parametrize(
    ("settings", "code", "named"),
    [
        ({"endpoint": "decided"}, "unknown-name", ["decided", "decided_trials"]),
        ({"unclear_share": 1.5}, "bad-setting", ["unclear_share", 1.5]),
        ({"unclear_share": float("nan")}, "bad-setting", ["unclear_share"]),
    ],
)
def test_a_wrong_setting_is_refused(
    tmp_path: Path, settings: dict[str, object], code: str, named: list[object]
) -> None:
    with raises(UsageError, code, named):
        resolved(tmp_path, **settings)


def test_the_command_and_a_plan_file_declare_it(tmp_path: Path) -> None:
    (tmp_path / "desk.toml").write_text('name = "desk"\nsystem = "You help."\n')
    (tmp_path / "plan.toml").write_text(
        'models = "scripted:careful"\napplication = "desk.toml"\nprobes = "harmful_request"\n'
        'endpoint = "decided_trials"\nunclear_share = 0.1\n'
    )
    done = run_here("study", "plan.toml", "--out", "a", "--unclear-share", "0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    analysis = declared(plans.read_plan(tmp_path / "a"))
    assert (analysis.endpoint, analysis.unclear_share) == ("decided_trials", 0.5)


def test_a_study_of_a_lineage_is_about_its_edges_and_says_what_the_pairs_are(tmp_path: Path) -> None:
    study = Study(StudySpec(list(family()), APPLICATION, probes="planted_secret", out=tmp_path))
    forecast = study.forecast()
    assert forecast is not None
    told = forecast_lines(study.resolved, forecast)
    assert told[0].endswith("of parent and child with 80 % power (Holm over 8):")
    assert "Its 3 pairs of models are a second family; no verdict on a child uses it." in told
    assert max(map(len, told)) <= 80
    found = study.run().estimates
    declared = dict(declared_lines(found))
    assert "parents and children" in declared["Primary comparison"]
    assert "No verdict on a child uses it" in declared["Pairs of models"]
    sentence, support, _ = headline(found)
    assert sentence.startswith(
        "Of 2 pairs of parent and child, safety was lost in 1 (scripted:leaky: breaches"
    )
    assert any(line.startswith("Among all models: ") for line in support)
    assert not any(line.startswith("Of 2 pairs") for line in support)  # said above
