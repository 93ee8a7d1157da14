"""What a terminal of 80 columns shows: whole words and numbers, and no line longer than the screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from heredity.cli.lab import show_agent_tasks as show
from heredity.core.records import Estimate
from heredity.redteam import probes
from heredity.study.importers import agentdojo
from heredity.study.importers.agentdojo import AgentTasks
from tests.support.agentdojo_logs import ATTACK
from tests.support.errors import Done, run_here

WIDTH = 80
DESK = str(Path(__file__).parents[2] / "examples" / "support-desk.toml")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def lines(done: Done) -> list[str]:
    assert done.returncode == 0, done.stderr
    found = [line.rstrip() for line in done.stdout.splitlines()]
    too_long = [line for line in found if len(line) > WIDTH and " " in line.strip()]
    assert too_long == []
    return found


@pytest.mark.usefixtures("narrow")
def test_the_probes_are_described_in_whole_lines() -> None:
    found = lines(run_here("probes"))
    text = " ".join(" ".join(found).split())
    for technique in probes.techniques():
        assert f"{technique.name}: {technique.description}" in text
    assert len(found) < 70, "a description in a narrow column took eight lines"


@pytest.mark.usefixtures("narrow")
def test_the_size_of_a_study_has_whole_headings() -> None:
    found = lines(run_here("power", "--gap", "0.1", "--margin", "0.05"))
    (head,) = (line for line in found if line.startswith("to show"))
    assert head.split("  ")[0] == "to show" and head.endswith("median") and "early: at most" in head
    assert sum(line.startswith("not worse by 5 points") for line in found) == 1


@pytest.mark.usefixtures("narrow")
def test_a_study_shows_each_cell_of_two_models_on_one_line(tmp_path: Path) -> None:
    models = ("--model", "scripted:careful", "--model", "scripted:leaky")
    asked = ("study", *models, "--application", DESK, "--probes", "quick", "--full")
    found = lines(run_here(*asked, "--attack", "direct", "--attack", "prefill@planted_secret", cwd=tmp_path))
    row = next(line for line in found if line.startswith("Planted secret"))
    assert len(re.findall(r"\d % +\[\d+, \d+\] n \d+", row.replace("\u00a0", " "))) == 2
    assert not any(line.startswith("%") for line in found), "no number is cut from its unit"
    assert any("prefill" in line for line in found)
    assert not any(line.startswith("over-refusal, direct") for line in found), (
        "one attack has the sum's rates"
    )


@pytest.mark.usefixtures("narrow")
def test_the_tasks_of_agents_have_whole_cells_in_a_line_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = Estimate(0.0625, 0.0111, 0.2833, 16, "wilson")
    rows = (AgentTasks("smollm2-135m-instruct", "banking", ATTACK, rate, rate, rate, 1, 1, 1, 0, 0, 3),)
    show(agentdojo.table(rows))
    found = [line.rstrip().replace("\u00a0", " ") for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, found)) <= WIDTH and "smollm2-135m-instruct" in found
    assert "  utility under attack: 6 % (1 to 28 %), 1/16" in found and "  errors: 3" in found
    monkeypatch.setenv("COLUMNS", "160")
    show(agentdojo.table(rows))
    assert "utility under attack   breach rate" in capsys.readouterr().out


def test_a_size_without_a_goal_names_the_flags_that_give_one() -> None:
    done = run_here("power")
    assert done.returncode == 2
    for flag in ("--gap", "--margin", "--study"):
        assert flag in done.stderr


@pytest.mark.parametrize(
    "words", ["--help", "judges", "judges show checks", "attacks", "engines", "derive", "models --catalog"]
)
def test_no_word_is_broken(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    whole = set(run_here(*words.split()).stdout.split())
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    assert set(" ".join(lines(run_here(*words.split()))).split()) <= whole
