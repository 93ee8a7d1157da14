"""`heredity study` with workers, and in parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import Run
from tests.support.studies import by_index

STUDY = (
    "study", "--model", "scripted:careful", "--model", "scripted:leaky", "--application", "desk.toml",
    "--probes", "planted_secret",
)  # fmt: skip


@pytest.fixture(scope="module")
def one(run: Run, place: Path) -> Path:
    assert run(*STUDY, "--out", "one").returncode == 0
    return place / "one"


@pytest.mark.slow
def test_workers_write_the_study_of_one_process_and_their_line_counts_by_model(
    run: Run, place: Path, one: Path
) -> None:
    done = run(*STUDY, "--out", "several", "--workers", "2")
    assert done.returncode == 0
    assert by_index(place / "several") == by_index(one)
    digests = [json.loads((place / name / "plan.json").read_text())["study"] for name in ("one", "several")]
    assert digests[0] == digests[1]
    assert "with 2 workers" in done.stderr and "leased" in done.stderr


def test_parts_are_shown_while_one_is_missing_and_collected_at_the_end(
    run: Run, place: Path, one: Path
) -> None:
    args = (*STUDY, "--out", "parts")
    assert run(*args, "--shard", "1/2").returncode == 0
    shown = run("study", "parts", "--gather")
    assert shown.returncode == 4
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["part", "1/2", "all"]
    assert run(*args, "--shard", "2/2").returncode == 0
    shown = run("study", "parts", "--gather")
    n = str(len(by_index(one)))
    assert shown.returncode == 0 and shown.stdout.splitlines()[-1].split() == ["all", n, n]
    assert run("study", "parts").returncode == 0
    assert by_index(place / "parts") == by_index(one)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (("--on", "ray"), "--workers"),
        (("--workers", "2", "--on", "slurm"), "slurm"),
        (("--workers", "0"), "0"),
        (("--workers", "2", "--max-tokens-total", "9"), "--workers"),
        (("--shard", "3/2"), "3/2"),
        (("--shard", "1/2", "--workers", "2"), "--shard"),
        (("--gather",), "--shard"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_fit_are_refused(run: Run, given: tuple[str, ...], word: str) -> None:
    done = run(*STUDY, "--out", "refused", *given)
    assert done.returncode == 2 and word in done.stderr
