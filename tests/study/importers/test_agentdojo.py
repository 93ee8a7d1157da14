"""AgentDojo's logs: its verdicts on the state decide, and errors and damage are counted, never verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heredity.core.errors import BadInput, UsageError
from heredity.study import plan
from heredity.study.findings.useful import UsefulRate
from heredity.study.importers import agentdojo
from heredity.study.report import html, markdown
from heredity.study.study import Study
from tests.support.agentdojo_logs import ATTACK, log, place, put, suite, text
from tests.support.errors import raises, run_here
from tests.support.importer_files import made, read, responses

TWO = ("agent-a", "agent-b")


def outcomes(folder: Path) -> dict[str, str | None]:
    """The outcome of each probe of a study of one model."""
    study = Study.open(folder)
    study.judge()
    rows = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    names = [probe.id for probe in plan.read_plan(folder).probes]
    return {names[row["index"]]: row["outcome"] for row in rows}


def test_the_state_decides_a_breach_and_not_the_words(tmp_path: Path) -> None:
    """An agent that says that it refused did what its calls did; one that says nonsense did nothing."""
    sorry = [*log()["messages"][:4], {"role": "assistant", "content": text("I cannot help with that.")}]
    noise = [*log()["messages"][:4], {"role": "assistant", "content": text("")}]
    put(
        tmp_path / "runs",
        log("user_task_0", "injection_task_0", security=True, messages=sorry),
        log("user_task_0", "injection_task_1", security=False, messages=noise),
    )
    made(tmp_path / "s", tmp_path / "runs")
    assert list(outcomes(tmp_path / "s").values()) == ["broke", "held"]
    assert [row.recorded for row in responses(tmp_path / "s")] == [
        {"utility": True, "security": True},
        {"utility": True, "security": False},
    ]


def test_a_task_without_an_injection_is_benign_and_useful_if_done(tmp_path: Path) -> None:
    put(tmp_path / "runs", log("user_task_0"), log("user_task_1", utility=False))
    made(tmp_path / "s", tmp_path / "runs")
    assert all(probe.kind == "benign" for probe in plan.read_plan(tmp_path / "s").probes)
    found = Study.open(tmp_path / "s").run().estimates
    (useful,) = found.rows("useful", UsefulRate)
    assert (useful.n_useful, useful.estimate.n) == (1, 2)
    assert not any(rate.measure == "breach" and rate.estimate.n for rate in found.rates)


def test_a_whole_suite_has_utility_first_and_intervals_of_two_ways(tmp_path: Path) -> None:
    put(tmp_path / "runs", *suite("agent-a", broke=4), *suite("agent-b", broke=0))
    summary = made(tmp_path / "s", tmp_path / "runs")
    assert summary.models == TWO and (summary.n_prompts, summary.n_missing) == (9, 0)
    result = Study.open(tmp_path / "s").run()
    assert result.rate("agent-a").estimate.value == pytest.approx(4 / 6)
    first, second = agentdojo.write(tmp_path / "s")
    assert (first.model, first.suite, first.attack) == ("agent-a", "banking", ATTACK)
    assert (first.n_done, first.utility.n, first.n_done_under_attack, first.under_attack.n) == (2, 3, 2, 6)
    assert (first.n_broke, first.breach.n, second.n_broke) == (4, 6, 0)
    assert first.n_done_by_nothing == 1
    assert "two-way clusters" in first.breach.method and second.breach.high is not None
    assert second.breach.low == 0 and second.breach.high > 0.3  # 0 of 6 in two injections is little
    (grid,) = agentdojo.table((first, second))
    assert grid.head[2:6] == ["utility", "by doing nothing", "utility under attack", "breach rate"]
    assert grid.rows[0][2].endswith("2/3") and grid.rows[0][3] == "1/3"
    assert grid.rows[1][5].startswith("0") and grid.rows[0][1] == f"banking, {ATTACK}"
    assert (tmp_path / "s" / agentdojo.FILE).exists()
    page = html.write(tmp_path / "s", tmp_path / "r.html").read_text()
    summary_page = markdown.write(tmp_path / "s", tmp_path / "r.md").read_text()
    assert all(agentdojo.TITLE in text and "by doing nothing" in text for text in (page, summary_page))


def test_several_suites_have_a_sum(tmp_path: Path) -> None:
    put(tmp_path / "runs", *suite(), *({**each, "suite_name": "slack"} for each in suite(broke=0)))
    made(tmp_path / "s", tmp_path / "runs")
    rows = agentdojo.agent_tasks(tmp_path / "s")
    assert [(row.suite, row.n_broke, row.breach.n) for row in rows] == [
        ("banking", 1, 6), ("slack", 0, 6), ("all", 1, 12),
    ]  # fmt: skip


def test_one_injection_gives_a_share_and_no_interval(tmp_path: Path) -> None:
    put(tmp_path / "runs", *(log(f"user_task_{i}", "injection_task_0", security=i == 0) for i in range(2)))
    made(tmp_path / "s", tmp_path / "runs")
    (row,) = agentdojo.agent_tasks(tmp_path / "s")
    assert (row.breach.value, row.breach.low, row.breach.note != "") == (0.5, None, True)
    assert agentdojo.NO_INTERVAL in agentdojo.table((row,))[0].rows[0][5]
    assert row.utility.value is None and row.utility.n == 0 and row.n_done_by_nothing is None


def test_an_error_is_no_verdict_whatever_agentdojo_wrote_next_to_it(tmp_path: Path) -> None:
    """AgentDojo writes utility false and security true for a context that is too long."""
    too_long = {"error": "Skipping task: context_length_exceeded", "utility": False, "security": True}
    stopped = log("user_task_1", "injection_task_1")
    del stopped["utility"], stopped["security"]
    put(tmp_path / "runs", log("user_task_0", "injection_task_0", **too_long), stopped, log("user_task_2"))
    made(tmp_path / "s", tmp_path / "runs")
    rows = {row.probe: row for row in responses(tmp_path / "s")}
    assert [row.error is not None for row in rows.values()].count(True) == 2
    assert all(
        row.error is None or (row.error_code == "recorded-error" and not row.exchanges)
        for row in rows.values()
    )
    found = Study.open(tmp_path / "s").run().estimates
    assert found.n_errors == 2 and not any(
        r.n_broke or r.n_held for r in found.rates if r.measure == "breach"
    )
    (task,) = agentdojo.agent_tasks(tmp_path / "s")
    assert (task.n_errors, task.n_errors_under_attack, task.breach.n) == (0, 2, 0)


def test_a_log_of_before_content_blocks_is_read(tmp_path: Path) -> None:
    old = log("user_task_0", "injection_task_0", security=True)
    for message in old["messages"]:
        message["content"] = message["content"] and message["content"][0]["content"]
    for name in ("agentdojo_package_version", "benchmark_version"):
        del old[name]
    (found,) = read(put(tmp_path / "runs", old))
    assert found.response == "Done." and found.turns == ("Pay my bill.",) and "You use tools." in found.shown
    assert [call.name for call in found.raw.tool_calls] == ["send_money"]


def test_goals_that_were_asked_directly_are_left_out(tmp_path: Path) -> None:
    put(tmp_path / "runs", log("injection_task_0"), log("user_task_0"))
    assert made(tmp_path / "s", tmp_path / "runs").n_prompts == 1
    with raises(UsageError, "bad-usage"):
        made(tmp_path / "t", place(tmp_path / "runs", log("injection_task_0")))


DAMAGED = {
    "empty": b"",
    "cut": json.dumps(log()).encode()[:200],
    "not utf-8": b'{"suite_name": "\xff"}',
    "a list": b"[]",
    "deep": b"[" * 200_000,
    "deep content": json.dumps(log()).replace('"Done."', "[" * 900 + "]" * 900).encode(),
    "numbers for names": json.dumps(log(suite_name=3)).encode(),
    "a word for a verdict": json.dumps(log(utility="yes")).encode(),
    "messages of words": json.dumps(log(messages=["a", "b"])).encode(),
    "no user": json.dumps(log(messages=[{"role": "assistant", "content": "Hi"}])).encode(),
    "an error that is a table": json.dumps(log(error={"a": 1})).encode(),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_log_is_counted_in_a_folder_and_refused_alone(name: str, tmp_path: Path) -> None:
    runs = put(tmp_path / "runs", log("user_task_0"), log("user_task_1"))
    bad = runs / "agent-a" / "banking" / "user_task_2" / "none" / "none.json"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(DAMAGED[name])
    summary = made(tmp_path / "s", runs)
    (lacking,) = summary.lacking
    assert (lacking.n, lacking.n_planned, lacking.noun, summary.n_prompts) == (1, 3, "log", 2)
    with pytest.raises(BadInput) as caught:
        agentdojo.read_log(bad)
    assert caught.value.code in ("not-json", "bad-input") and "none.json" in str(caught.value)


def test_a_huge_log_is_not_read(tmp_path: Path) -> None:
    runs = put(tmp_path / "runs", log("user_task_0"))
    huge = place(runs, log("user_task_1"))
    huge.parent.mkdir(parents=True)
    with huge.open("wb") as file:
        file.truncate(agentdojo.MAX_BYTES + 1)
    with raises(BadInput, "bad-input", mentions=[f"{agentdojo.MAX_BYTES:,}"]):
        agentdojo.read_log(huge)
    assert made(tmp_path / "s", runs).lacking[0].n == 1


def test_names_that_climb_out_of_a_folder_stay_names(tmp_path: Path) -> None:
    climbing = {"suite_name": "../../up", "pipeline_name": "../../../etc/passwd", "attack_type": "a/../b"}
    bad = log("../user_task_0", "../../x/y", **climbing, security=True)
    path = tmp_path / "runs" / "p" / "s" / "u" / "a" / "i.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(bad))
    made(tmp_path / "deep" / "s", tmp_path / "runs")
    Study.open(tmp_path / "deep" / "s").run()
    (row,) = agentdojo.write(tmp_path / "deep" / "s")
    assert (row.model, row.n_broke, row.breach.n) == ("../../../etc/passwd", 1, 1) and "/" not in row.attack
    assert sorted(each.name for each in tmp_path.iterdir()) == ["deep", "runs"]


def test_the_command_shows_the_rates_and_the_damage(tmp_path: Path) -> None:
    runs = put(tmp_path / "runs", *suite(broke=2))
    (runs / "agent-a" / "banking" / "user_task_0" / "none" / "none.json").write_bytes(b"{")
    done = run_here("import", str(runs), "--out", str(tmp_path / "s"))
    assert done.returncode == 0, done.stderr
    assert "under" in done.stdout and "nothing" in done.stdout
    assert "runs lacks 1 of the 9 logs of its run" in done.stderr


def test_a_folder_without_logs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    done = run_here("import", str(tmp_path / "runs"), "--out", str(tmp_path / "s"))
    assert (done.returncode, done.code) == (2, "bad-input")
