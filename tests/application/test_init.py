"""The starter files: written whole or not at all, and they run as they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import heredity
from heredity.application.init import FILES, write_starter
from heredity.cli import main
from heredity.core.errors import UsageError
from tests.support.errors import raises


def test_every_starter_file_is_written_where_its_tool_looks(tmp_path: Path) -> None:
    written = write_starter(tmp_path / "mine")
    assert [path.relative_to(tmp_path / "mine").as_posix() for path in written] == list(FILES)
    assert all(path.stat().st_size for path in written)


def test_nothing_is_written_where_one_file_exists(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("mine")
    with raises(UsageError, "file-exists", mentions=["plan.toml"]):
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


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_the_commands_of_the_ci_job_pass_as_they_are_written(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "1000")  # a finding is one line
    assert main(["init"]) == 0
    text = Path(job).read_text("utf-8")
    commands = re.findall(r"^\s*- (?:run: )?(heredity .*)$", text, re.MULTILINE)
    assert [shlex.split(line)[1] for line in commands] == ["study", "report", "gate"]
    for line in commands:
        assert main(shlex.split(line)[1:]) == 0, line
    assert (
        capsys.readouterr()
        .out.splitlines()[-2]
        .startswith("  scripted:careful broke, as checks decide, in 0 of")
    )
    assert Path("report.html").stat().st_size > 10_000


def test_the_probes_of_the_starter_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0 and main(["probes", "show", "probes.toml"]) == 0
    assert "probes/till-01~benign" in capsys.readouterr().out
