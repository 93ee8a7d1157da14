"""Running the script and making the study, with a stand-in for the interpreter that has AgentDojo."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from heredity.core.errors import Damaged, NotComparable, Unavailable, UsageError
from heredity.lab import agentdojo
from heredity.lab.agentdojo import LOGS, OUTPUT, AgentRun
from heredity.study.importers.agentdojo import agent_tasks
from heredity.study.study import Study
from tests.support.agentdojo_logs import put, suite
from tests.support.errors import check_refused, raises, run_here

pytestmark = pytest.mark.slow  # each starts a process

ONE = AgentRun({"agent-a": "id-a"}, ["banking"])
URL = "http://127.0.0.1:9/v1"
# Writes the logs of the job that are not there, in the protocol of the script. The first argument of a line
# in `script.txt` says how it ends.
STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
sys.path[:0] = {path!r}
from tests.support.agentdojo_logs import place, suite
how = {how!r}
def say(**event): print(json.dumps(event), flush=True)
print("loading", file=sys.stderr)
assert sys.argv[1] == "-I" and sys.argv[2].endswith("suites.py")
if sys.argv[3] == "--check":
    say(event="ready", version="0.1.35"); say(event="done"); sys.exit()
job = json.loads(Path(sys.argv[3]).read_text())
every = [log for model in job["models"] for log in suite(model, 2)]
left = [log for log in every if not place(Path(job["logs"]), log).exists()]
if how == "refuses":
    say(event="refused", code="unknown-name", message="no suite 'bank'"); sys.exit(3)
if how == "is old":
    say(event="refused", code="unavailable", message="0.1.9 is not known"); sys.exit(3)
say(event="ready", version="0.1.35", patched=["banking/user_task_5"], n_cells=len(every), n_left=len(left))
for number, log in enumerate(left):
    if how == "dies" and number == 4:
        sys.exit("out of luck")
    if how == "babbles" and number == 4:
        print("<b>hello</b>", flush=True)
    error = "EndpointError: x" if how == "errs" and number == 8 else None
    path = place(Path(job["logs"]), log | {{"error": error}})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(log | {{"error": error}}))
    say(event="log", cell={{}}, error=error)
say(event="done")
"""


def stand_in(folder: Path, how: str = "") -> Path:
    root = [str(Path(__file__).parents[3])]
    path = folder / f"python {how}"
    path.write_text(STAND_IN.format(python=sys.executable, path=root, how=how))
    path.chmod(0o755)
    return path


def test_logs_become_a_study_and_are_not_run_again(tmp_path: Path) -> None:
    counts = agentdojo.run(ONE, stand_in(tmp_path), URL, tmp_path / "out")
    assert (counts.version, counts.n_cells, counts.n_run, counts.n_errors) == ("0.1.35", 9, 9, 0)
    folder, summary = agentdojo.study_of(tmp_path / "out", print)
    assert summary.n_prompts == 9 and Study.open(folder).run().estimates.n_trials == 9
    assert [row.n_broke for row in agent_tasks(folder)] == [2]
    assert agentdojo.run(ONE, stand_in(tmp_path), URL, tmp_path / "out").n_run == 0
    assert agentdojo.study_of(tmp_path / "out", print)[0] == folder
    assert (tmp_path / "out" / OUTPUT).read_text() == "loading\nloading\n"


def test_a_run_that_died_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with raises(Unavailable, "unavailable", mentions=["out of luck", 1]):
        agentdojo.run(ONE, stand_in(tmp_path, "dies"), URL, tmp_path / "out")
    assert agentdojo.run(ONE, stand_in(tmp_path), URL, tmp_path / "out").n_run == 5


def test_a_line_that_is_no_event_ends_the_run_and_keeps_the_logs(tmp_path: Path) -> None:
    with raises(Unavailable, "unavailable", mentions=["hello"]):
        agentdojo.run(ONE, stand_in(tmp_path, "babbles"), URL, tmp_path / "out")
    assert len(list((tmp_path / "out" / LOGS).glob("*/*/*/*/*.json"))) >= 4  # it may be ahead of us


def test_errors_are_counted(tmp_path: Path) -> None:
    assert agentdojo.run(ONE, stand_in(tmp_path, "errs"), URL, tmp_path / "out").n_errors == 1
    folder, _ = agentdojo.study_of(tmp_path / "out", print)
    (row,) = agent_tasks(folder)
    assert (row.n_errors_under_attack, row.breach.n) == (1, 5)


@pytest.mark.parametrize(
    ("how", "kind", "code"),
    [("refuses", UsageError, "unknown-name"), ("is old", Unavailable, "unavailable")],
)
def test_what_the_script_refuses_is_an_error_with_its_code(
    how: str, kind: type[Exception], code: str, tmp_path: Path
) -> None:
    with raises(kind, code):
        agentdojo.run(ONE, stand_in(tmp_path, how), URL, tmp_path / "out")


def test_an_interpreter_that_does_not_start_is_named(tmp_path: Path) -> None:
    with raises(UsageError, "bad-usage", mentions=["nowhere"]):
        agentdojo.check(tmp_path / "nowhere", tmp_path / "out")
    with raises(Unavailable, "package-missing"):
        agentdojo.check(Path(sys.executable), tmp_path / "out")
    assert agentdojo.check(stand_in(tmp_path), tmp_path / "out") == "0.1.35"


def test_a_folder_holds_one_run_and_takes_more_models(tmp_path: Path) -> None:
    python, out = stand_in(tmp_path), tmp_path / "out"
    agentdojo.run(ONE, python, URL, out)
    told: list[str] = []
    before, _ = agentdojo.study_of(out, told.append)
    assert agentdojo.run(AgentRun({"agent-b": "id-b"}, ["banking"]), python, URL, out).n_run == 9
    folder, summary = agentdojo.study_of(out, told.append)
    assert summary.models == ("agent-a", "agent-b") and folder == before
    assert len(told) == 1 and (out / "study-1" / "plan.json").exists()
    others = [
        (AgentRun({"agent-a": "another"}), ["agent-a", "id-a", "another"]),
        (AgentRun({"agent-a": "id-a"}, attack="direct"), ["attack", "direct"]),
        (AgentRun({"agent-a": "id-a"}, max_tokens=9), ["max_tokens", 512, 9]),
        (AgentRun({"agent-a": "id-a"}, seed=1), ["seed"]),
    ]
    for other, mentions in others:
        with raises(NotComparable, "another-study", mentions=mentions):
            agentdojo.run(other, python, URL, out)
    (out / "run.json").write_text("{")
    with raises(Damaged, "damaged", mentions=["run.json"]):
        agentdojo.run(ONE, python, URL, out)


def test_the_command_prints_utility_first(tmp_path: Path) -> None:
    arguments = ("--url", URL, "--out", str(tmp_path / "out"), "--suite", "banking")
    done = run_here("agentdojo", "agent-a", "--python", str(stand_in(tmp_path)), *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("utility") < done.stdout.index("breach")
    assert "banking/user_task_5" in done.stderr and (tmp_path / "out" / "study" / "report.html").exists()
    done = run_here("agentdojo", "agent-a", "--python", str(stand_in(tmp_path)), *arguments, "--json")
    (row,) = json.loads(done.stdout)
    assert (row["n_done"], row["utility"]["n"], row["n_broke"], row["breach"]["n"]) == (2, 3, 2, 6)


def test_the_command_names_a_wrong_interpreter_before_it_loads_a_model(tmp_path: Path) -> None:
    done = run_here("agentdojo", "scripted:leaky", "--python", sys.executable, "--out", str(tmp_path / "out"))
    check_refused(done, "package-missing")
    assert not (tmp_path / "out" / "server.log").exists()


def test_logs_of_another_program_in_the_folder_are_read_too(tmp_path: Path) -> None:
    put(tmp_path / "out" / LOGS, *suite("gpt"))
    agentdojo.run(ONE, stand_in(tmp_path), URL, tmp_path / "out")
    assert agentdojo.study_of(tmp_path / "out", print)[1].models == ("agent-a", "gpt")
