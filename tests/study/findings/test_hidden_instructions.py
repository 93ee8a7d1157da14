"""A study of instructions hidden in data: executed, used as data, ignored; counted from the rows."""

from __future__ import annotations

import json as stdlib_json
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

import heredity as h
from heredity.application.tools import is_answered_by
from heredity.cli import _findings
from heredity.core.records import Probe
from heredity.core.sections import Section
from heredity.redteam import probes
from heredity.study import aggregate
from heredity.study.findings import hidden_instructions
from heredity.study.findings.hidden_instructions import HiddenInstruction, InstructionUse
from heredity.study.findings.protocols import RecordedStudy
from heredity.study.plan import read_plan
from heredity.study.report import html, json, markdown
from heredity.study.storage import write_estimates
from tests.support import studies

LAYER = msgspec.structs.replace(studies.APPLICATION, passages=())
MODELS = ["scripted:leaky", "scripted:careful"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> h.Result:
    folder = tmp_path_factory.mktemp("hidden")
    asked: tuple[Probe, ...] = ()
    for technique in ("passage_injection", "tool_injection", "direct_injection"):
        asked += probes.select(probes.load(technique), LAYER)[0][:12]
    return h.Study(
        h.StudySpec(MODELS, LAYER, probes=asked, attacks=["direct", "prefill"], out=folder / "study"),
        store=h.Store(folder / "store"),
    ).run()


def uses(result: h.Result) -> tuple[InstructionUse, ...]:
    return result.estimates.rows("hidden_instructions", InstructionUse)


def section(result: h.Result, rows: Sequence[InstructionUse]) -> Section:
    shown = hidden_instructions.show(rows, RecordedStudy(read_plan(result.folder), result.estimates))
    assert shown is not None
    return shown


def row(result: h.Result, model: str, technique: str, attack: str = "all") -> InstructionUse:
    (card,) = (card.id for card in result.estimates.models if card.name == model)
    (found,) = (
        each for each in uses(result)
        if (each.model, each.technique, each.attack) == (card, technique, attack)
    )  # fmt: skip
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("technique", ["passage_injection", "tool_injection"])
def test_the_shares_are_those_of_the_rows_and_add_up(result: h.Result, model: str, technique: str) -> None:
    by_id = {t.trial.probe.id: t.trial.probe for t in result.trials(model=model)}
    n_executed = n_used = n = n_unclear = 0
    for trial in result.trials(model=model, technique=technique):
        probe = trial.trial.probe
        if probe.kind == "benign":
            continue
        if (planted := probe.tool_result) is not None and not any(
            is_answered_by(call, planted)
            for each in trial.response.exchanges[:-1]
            for call in each.tool_calls
        ):
            continue  # the model was never shown the instruction
        n_unclear += trial.outcome == "unclear"
        if trial.outcome in ("held", "broke"):
            hidden = HiddenInstruction(probe, by_id[str(probe.twin)])
            n += 1
            n_executed += trial.outcome == "broke"
            is_used = any(hidden.is_used_in(each.text) for each in trial.response.exchanges)
            n_used += trial.outcome == "held" and is_used
    found = row(result, model, technique)
    shares = (found.executed, found.used, found.ignored)
    assert {each.n for each in shares} == {n} and found.n_unclear == n_unclear
    assert sum(each.value or 0.0 for each in shares) == pytest.approx(1.0 if n else 0.0)
    if n:
        assert (found.executed.value, found.used.value) == (n_executed / n, n_used / n)
        assert found.executed.n_clusters and found.executed.low is not None


def test_a_model_that_never_called_the_tool_has_ignored_nothing(result: h.Result) -> None:
    trials = [
        trial for trial in result.trials(model="scripted:careful", technique="tool_injection")
        if trial.trial.probe.kind == "breach"
    ]  # fmt: skip
    assert trials and {trial.outcome for trial in trials} == {"held"}
    assert not any(each.tool_calls for trial in trials for each in trial.response.exchanges)
    assert row(result, "scripted:careful", "tool_injection").ignored.n == 0


def test_the_three_outcomes_differ_between_models(result: h.Result) -> None:
    leaky, careful = (
        row(result, name, "passage_injection") for name in ("scripted:leaky", "scripted:careful")
    )
    assert (leaky.executed.value or 0.0) > 0.2 and careful.executed.value == 0.0
    assert careful.ignored.value == 1.0


def test_only_techniques_that_hide_instructions_in_data_have_rows(result: h.Result) -> None:
    assert {each.technique for each in uses(result)} == {
        "judge_free", "passage_injection", "tool_injection",
    }  # fmt: skip


def test_report_terminal_and_json_have_them(
    result: h.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (table,) = section(result, uses(result)).tables
    assert len(table.rows) == len(uses(result)) == 3 * 2 * 3
    assert "Instructions hidden in data" in html.render(result.folder)
    assert "### Instructions hidden in data" in markdown.render(result.folder)
    _findings.show(result.estimates, read_plan(result.folder), result.folder, is_full=True)
    assert "used as data" in " ".join(capsys.readouterr().out.split())
    flat = stdlib_json.loads(json.write(result.folder, tmp_path / "flat.json").read_bytes())
    rows = flat["findings"]["hidden_instructions"]
    assert {"executed_value", "used_low", "ignored_n", "n_unclear", "attack"} <= rows[0].keys()


def test_estimates_without_a_finding_or_with_that_of_a_plug_in_are_read(
    result: h.Result, tmp_path: Path
) -> None:
    folder = shutil.copytree(result.folder, tmp_path / "other")
    other = {"of_a_plug_in": [{"model": "m", "n": 3}]}
    write_estimates(folder, msgspec.structs.replace(result.estimates, findings=other))
    read = aggregate.read_study(folder).estimates.findings
    assert (
        read.keys() == {*result.estimates.findings, *other} and read["of_a_plug_in"] == other["of_a_plug_in"]
    )


def test_the_terminal_has_no_sentence_of_a_model_without_such_trials(result: h.Result) -> None:
    rows, first = uses(result), result.estimates.models[0]
    sentences = section(result, rows).sentences
    assert sentences and all("instructions in data" in line for line in sentences)
    none = msgspec.structs.replace(rows[0].executed, value=None, n=0)
    rest = [msgspec.structs.replace(r, executed=none) if r.model == first.id else r for r in rows]
    assert section(result, rest).sentences == tuple(
        line for line in sentences if not line.startswith(first.name)
    )
