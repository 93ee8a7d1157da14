"""`heredity study`: errors are told at the end, with how to ask them again."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run


def test_errors_are_told_at_the_end_and_asked_again_on_demand(run: Run, place: Path) -> None:
    args = ("study", "--model", "scripted:flaky", "--application", "desk.toml")
    args = (*args, "--probes", "planted_secret", "--out", "failing")
    first = run(*args)
    assert first.returncode == 0
    last = first.stderr.splitlines()[-1]
    assert "trials came to an error. Ask them again: same command, --retry-errors" in last
    assert not (place / "failing" / "errors.jsonl").exists()
    again = run(*args, "--retry-errors")  # scripted:flaky fails the same ones for ever
    assert again.stderr.splitlines()[-1] == last.replace("again:", "once more:")
    assert f"{len((place / 'failing' / 'errors.jsonl').read_bytes().splitlines())} of" in last


def test_a_study_without_errors_says_nothing_of_them(run: Run) -> None:
    args = ("study", "--model", "scripted:careful", "--application", "desk.toml")
    assert "error" not in run(*args, "--probes", "planted_secret", "--out", "fine").stderr


def test_retrying_is_of_one_command_and_no_key_of_a_plan(run: Run, place: Path) -> None:
    (place / "retry.toml").write_text('model = ["scripted:careful"]\nretry_errors = true\n')
    done = run("study", "retry.toml")
    assert done.returncode == 2 and "unknown key 'retry_errors'" in done.stderr
