"""The study that recorded answers make: paired by prompt, whole, and the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from heredity.application.spec import Application
from heredity.core.errors import BadInput, NotComparable, UsageError
from heredity.study import plan
from heredity.study.importers import APPLICATION, NOTHING
from heredity.study.report import html, markdown
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.support.errors import raises
from tests.support.hostile_text import NASTY
from tests.support.importer_files import NO, YES, answers, jsonl, made, responses


def test_an_import_is_a_study_that_judging_estimating_and_reporting_go_through(tmp_path: Path) -> None:
    made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", answers()))
    result = Study.open(tmp_path / "s").run()
    rate = {name: result.rate(name).estimate for name in ("parent", "child")}
    assert (rate["parent"].value, rate["parent"].n) == (0.0, 4)
    assert (rate["child"].value, rate["child"].n) == (1.0, 4)
    assert result.pair("parent", "child").table.only_b == 4


def test_nothing_claims_a_layer_that_was_held_constant(tmp_path: Path) -> None:
    made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", answers()))
    result = Study.open(tmp_path / "s").run()
    assert result.estimates.application.name == APPLICATION == "recorded elsewhere"
    assert {card.format for card in result.estimates.models} == {"recorded"}


def test_models_are_paired_by_prompt_whatever_the_order(tmp_path: Path) -> None:
    rows = answers()
    mixed = rows[:4] + rows[:3:-1]
    made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", mixed))
    probes = {probe.id: probe.turns for probe in plan.read_plan(tmp_path / "s").probes}
    assert len(probes) == 4
    for row in responses(tmp_path / "s"):
        assert row.exchanges[0].prompt == probes[row.probe][0]


def test_an_answer_that_one_model_lacks_is_an_error_row(tmp_path: Path) -> None:
    summary = made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", answers()[:-1]))
    assert (summary.n_answers, summary.n_missing) == (7, 1)
    assert [row.error for row in responses(tmp_path / "s")] == [None] * 7 + [NOTHING]
    found = Study.open(tmp_path / "s").run().estimates
    assert (found.n_errors, found.n_trials) == (1, 8)


def test_the_same_files_again_change_nothing(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", answers())
    made(tmp_path / "s", path)
    Study.open(tmp_path / "s").run()
    names = ("plan.json", "responses.jsonl", "verdicts.jsonl", "recorded.jsonl")
    before = {name: (tmp_path / "s" / name).read_bytes() for name in names}
    made(tmp_path / "s", path)
    Study.open(tmp_path / "s").run()
    assert {name: (tmp_path / "s" / name).read_bytes() for name in names} == before


def test_other_answers_are_another_study(tmp_path: Path) -> None:
    made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", answers()))
    changed = [*answers()[:-1], {**answers()[-1], "response": "Something else."}]
    with raises(NotComparable, "another-study"):
        made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", changed))


def test_a_category_is_a_technique_and_a_cluster_a_behaviour(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"p{i}",
            "response": NO,
            "category": "Fraud/Deception" if i else "all",
            "goal": f"g{i // 2}",
        }
        for i in range(4)
    ]
    made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", rows), model="m", columns={"cluster": "goal"})
    probes = plan.read_plan(tmp_path / "s").probes
    assert [p.technique for p in probes] == [
        "recorded-all",
        *["fraud-deception"] * 3,
    ]  # "all" is a scope's name
    assert [p.cluster for p in probes[2:]] == ["fraud-deception/g1"] * 2


def test_benign_prompts_are_counted_as_over_refusal(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "response": NO, "type": "safe" if i % 2 else "unsafe"} for i in range(6)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    made(tmp_path / "s", path, model="m", columns={"kind": "type"}, benign=("safe",))
    result = Study.open(tmp_path / "s").run()
    assert result.rate("m").estimate.value == 0.0
    assert result.rate("m", measure="over_refusal").estimate.value == 1.0


def test_repeated_prompts_are_samples_where_that_is_said(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": f"{YES} {i}", "turn": i % 3} for i in range(3)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    with raises(BadInput, "name-twice", mentions=["a.jsonl:2", "m", "1", "--repeats"]):
        made(tmp_path / "x", path, model="m")
    for folder, how in (("s", {"repeats": True}), ("t", {"columns": {"sample": "turn"}})):
        assert made(tmp_path / folder, path, model="m", **how).n_samples == 3
        assert [row.exchanges[0].text[-1] for row in responses(tmp_path / folder)] == ["0", "1", "2"]


def test_one_id_is_one_prompt(tmp_path: Path) -> None:
    rows = [{"model": m, "id": 7, "prompt": f"Ask {m}", "response": NO} for m in ("a", "b")]
    with raises(BadInput, "bad-input", mentions=["a.jsonl:2", "7", "a.jsonl:1"]):
        made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", rows))


def test_ids_that_look_alike_stay_apart(tmp_path: Path) -> None:
    rows = [
        {"id": name, "prompt": f"p {name!r}", "response": NO}
        for name in ("a b", "a-b", "A B", "a/b", "", "é")
    ]
    made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", rows), model="m")
    assert len({probe.id for probe in plan.read_plan(tmp_path / "s").probes}) == 6


@pytest.mark.parametrize("name", NASTY)
def test_hostile_text_is_kept_and_hurts_nobody(name: str, tmp_path: Path) -> None:
    text = NASTY[name][:5000]
    rows = [
        {
            "prompt": f"x{text}",
            "response": text,
            "model": text[:50] or "m",
            "id": text[:50],
            "category": text[:60],
        }
    ]
    made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", rows))
    assert responses(tmp_path / "s")[0].exchanges[0].text == text
    assert Study.open(tmp_path / "s").run().estimates.n_errors == 0


def test_a_lone_surrogate_becomes_a_replacement(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p\\ud800", "response": "r\\udfff", "model": "m"}\n')
    made(tmp_path / "s", path)
    assert responses(tmp_path / "s")[0].exchanges[0].text == "r\ufffd"


def test_the_report_says_that_the_layer_is_not_known(tmp_path: Path) -> None:
    made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", answers()))
    Study.open(tmp_path / "s").run()
    for writer, said in ((html, "same application"), (markdown, "held constant")):
        page = writer.write(tmp_path / "s", tmp_path / "page").read_text()
        assert "nothing shows that the application was the same for all models" in page
        assert said not in page and "held constant" not in page


def test_what_is_missing_cannot_be_asked_again_and_nothing_is_lost(tmp_path: Path) -> None:
    made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", answers()[:-1]))
    before = (tmp_path / "s" / "responses.jsonl").read_bytes()
    with raises(UsageError, "bad-usage"):
        Study.open(tmp_path / "s").run(retry_errors=True)
    assert (tmp_path / "s" / "responses.jsonl").read_bytes() == before


def test_no_study_that_asks_may_call_its_application_recorded(tmp_path: Path) -> None:
    layer = Application("x", system="", rendering="recorded")
    with raises(UsageError, "bad-usage", mentions=["heredity import"]):
        Study(StudySpec(["scripted:careful"], layer, probes="quick", out=tmp_path / "s"))
