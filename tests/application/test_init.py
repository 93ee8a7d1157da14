"""The starter files: written whole or not at all, and they run as they are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import heredity
from heredity import application
from heredity.application import FILES, write_starter
from heredity.cli import main
from heredity.core.errors import UsageError
from tests.support.documents import ROOT
from tests.support.errors import raises


def test_every_starter_file_is_written_where_its_tool_looks(tmp_path: Path) -> None:
    written = write_starter(tmp_path / "mine")
    assert [path.relative_to(tmp_path / "mine").as_posix() for path in written] == list(FILES)
    assert all(path.stat().st_size for path in written)


def test_nothing_is_written_where_one_file_exists(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("mine")
    with raises(UsageError, "bad-usage", mentions=["plan.toml"]):
        write_starter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.toml"]
    assert (tmp_path / "plan.toml").read_text() == "mine"


JOBS = [".github/workflows/heredity.yml", "heredity.gitlab-ci.yml"]


@pytest.mark.parametrize("job", JOBS)
def test_a_ci_job_installs_no_name_that_anyone_could_register(job: str, tmp_path: Path) -> None:
    write_starter(tmp_path)
    text = (tmp_path / job).read_text("utf-8")
    wheel = f"wheels/heredity-{heredity.__version__}-py3-none-any.whl"  # as `pip wheel` names it
    assert re.search(rf"^\s+HEREDITY_PACKAGE: .*{re.escape(wheel)}", text, re.MULTILINE)
    assert set(re.findall(r"^[^#]*pip install (.*)$", text, re.MULTILINE)) == {'"$HEREDITY_PACKAGE"'}
    assert "pip wheel --no-deps --wheel-dir wheels" in text


class StandInRunner:
    """Runs the shell commands of a job of GitHub or GitLab, as its YAML has them, in the working folder."""

    def __init__(self, path: Path) -> None:
        self.job = yaml.safe_load(path.read_text("utf-8"))
        if "jobs" in self.job:
            (self.job,) = self.job["jobs"].values()
            self.commands = [step["run"] for step in self.job["steps"] if "run" in step]
            kept = (step["with"] for step in self.job["steps"] if step.get("uses", "").find("upload") >= 0)
            self.kept = [each.get("path") or each["sarif_file"] for each in kept]
        else:
            self.job = self.job["heredity"]
            self.commands = self.job["script"]
            self.kept = [*self.job["artifacts"]["paths"], self.job["artifacts"]["reports"]["junit"]]

    def run(self) -> None:
        """Run each command. What installs is not run: the tests' own heredity is asked."""
        install, *commands = self.commands
        assert install == 'pip install "$HEREDITY_PACKAGE"'
        for line in commands:
            word, *arguments = shlex.split(line)
            assert word == "heredity" and main(arguments) == 0, line


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_ci_job_passes_as_it_is_written(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setenv("COLUMNS", "1000")  # a rule is one line
    assert main(["init"]) == 0
    runner = StandInRunner(Path(job))
    runner.run()
    said = capsys.readouterr().out
    assert "Pass.\n  \u2713 scripted:careful broke, as checks decide, in 0 of" in said
    assert all(Path(name).stat().st_size for name in runner.kept) and len(runner.kept) == 2
    if job == JOBS[0]:
        assert Path("summary.md").read_text().startswith("### heredity gate: Pass.")
        assert "::error" not in said and "::warning" not in said
        (run,) = json.loads(Path("heredity.sarif").read_text())["runs"]
        places = [result["locations"][0]["physicalLocation"] for result in run["results"]]
        named = {place["artifactLocation"]["uri"] for place in places}
        assert named == {"application.toml", "override_code.toml"}
    else:
        assert ElementTree.parse("gate.xml").getroot().get("failures") == "0"


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])
def test_the_page_on_ci_shows_the_job_that_is_written(name: str) -> None:
    page = (ROOT / "docs" / "how-to" / "run.md").read_text("utf-8")
    source = Path(application.__file__).parent / "starter" / name
    job = re.sub(r"^#.*\n", "", source.read_text("utf-8"), flags=re.MULTILINE)
    assert f"```yaml\n{job}```" in page


def test_the_probes_of_the_starter_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0 and main(["probes", "show", "override_code.toml"]) == 0
    assert "override_code/till-01~benign" in capsys.readouterr().out


def test_the_starter_points_to_no_file_that_a_wheel_lacks(tmp_path: Path) -> None:
    for path in write_starter(tmp_path):
        assert not re.search(r"\bdocs/", path.read_text("utf-8")), path.name
