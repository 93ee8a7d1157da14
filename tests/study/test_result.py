"""What a result answers: tables, trials, edges and data frames."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from heredity.core.errors import Unavailable, UnknownName
from heredity.study import aggregate
from heredity.study.estimates import Measure
from heredity.study.plan import write_plan
from heredity.study.result import Result
from tests.support.errors import raises
from tests.support.small_study import small_plan, write_rows


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder, plan = tmp_path_factory.mktemp("small"), small_plan(edges=True)
    write_plan(folder, plan)
    write_rows(folder, plan, {0: "broke", 3: "unclear", 12: "broke", 18: "broke", 20: None})
    return Result(folder, aggregate.estimate(plan, folder))


def test_the_table_has_a_row_for_each_model_and_scope(result: Result) -> None:
    rows = list(result.table())
    assert [(row["model"], row["technique"]) for row in rows] == [
        (model, scope) for model in "ab" for scope in ("judge_free", "judged", "all")
    ]
    assert rows[0]["rate"] == 0.25 and rows[0]["n"] == 4 and rows[1]["unclear"] == 1
    assert rows[4]["errors"] == 1
    assert str(result.table()).splitlines()[0].split()[:3] == ["model", "measure", "technique"]
    assert {row["attack"] for row in result.table(by="attack")} == {"direct", "prefill"}
    assert {row["technique"] for row in result.table(by="technique")} == {"secret", "harm"}


def test_the_rate_of_several_models_has_all_their_trials_and_one_cluster_a_behaviour(result: Result) -> None:
    cells: list[tuple[str, Measure]] = [("judge_free", "breach"), ("all", "over_refusal")]
    for technique, measure in cells:
        single = [result.rate(model, technique, measure=measure) for model in "ab"]
        for rate in single:
            assert result.rate_together([rate.model], technique, measure) == rate.estimate
        both = result.rate_together(["a", "b"], technique, measure)
        assert both.n == sum(rate.estimate.n for rate in single)
        assert both.value == sum(rate.n_broke for rate in single) / both.n
        assert both.n_clusters == single[0].estimate.n_clusters
    with pytest.raises(UnknownName):
        result.rate_together(["c"], "judge_free")


def test_a_notebook_shows_the_table_escaped(result: Result) -> None:
    shown = result._repr_html_()
    assert "<table>" in shown and "desk: 24 trials" in shown and "0.250" in shown


def test_trials_are_found_by_outcome_technique_model_and_attack(result: Result) -> None:
    assert [found.trial.index for found in result.trials(outcome="broke")] == [0, 12, 18]
    assert [found.trial.index for found in result.trials(outcome="broke", model="b")] == [12, 18]
    assert [found.trial.index for found in result.trials("broke", attack="prefill")] == [18]
    (failed,) = result.trials(outcome="error")
    assert failed.trial.index == 20 and failed.technique == "harm" and failed.model == "b"
    assert len(result.trials(technique="secret")) == 8 and len(result.trials()) == 24
    assert result.trials(outcome="unclear")[0].text == "reply 3"


@pytest.mark.parametrize(
    "wrong", [{"model": "c"}, {"technique": "secrets"}, {"attack": "directt"}, {"outcome": "broken"}]
)
def test_an_unknown_name_is_refused(result: Result, wrong: dict[str, str]) -> None:
    with pytest.raises(UnknownName):
        result.trials(**wrong)  # type: ignore[arg-type]


def test_an_unknown_kind_of_row_is_refused(result: Result) -> None:
    with pytest.raises(UnknownName):
        result.to_dataframe("edgs")  # type: ignore[arg-type]


def test_a_shell_shows_a_result_in_one_line(result: Result) -> None:
    assert repr(result) == f"Result({str(result.folder)!r}: a, b; 24 trials)"


def test_an_edge_has_its_retention(result: Result) -> None:
    edge = result.edge("a", "b")
    # Of the trials that a held (1, 6, 7) b held 13 and 19, and broke 18.
    assert (edge.kept, edge.lost, edge.gained, edge.never) == (2, 1, 0, 1)
    assert edge.retention.value == pytest.approx(2 / 3)
    assert result.edges() == (edge,) and result.edges(scope="secret")[0].compared.technique == "secret"


def test_a_data_frame_has_a_row_for_each_rate_pair_edge_or_trial(result: Result) -> None:
    pytest.importorskip("pandas")
    rates = result.to_dataframe()
    assert len(rates) == len(result.estimates.rates) and set(rates["model"]) == {"a", "b"}
    assert rates["value"][0] == 0.25 and "low" in rates.columns
    trials = result.to_dataframe("trials")
    assert len(trials) == 24 and list(trials["outcome"][:2]) == ["broke", "held"]
    assert list(result.to_dataframe("edges")["retention_value"][:1]) == [pytest.approx(2 / 3)]
    assert {"a", "b", "difference_value"} <= set(result.to_dataframe("pairs").columns)


def test_without_pandas_the_message_names_the_other_ways(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with raises(Unavailable, "unavailable", mentions=["pandas", "table()"]):
        result.to_dataframe()


@pytest.mark.slow
def test_pandas_is_loaded_on_use_only(tmp_path: Path) -> None:
    import subprocess

    code = "import sys, heredity.study.result; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
