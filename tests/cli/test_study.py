"""`heredity study`: errors are told at the end, with how to ask them again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from heredity.cli import main
from heredity.study.report import html, markdown
from tests.support import studies
from tests.support.cli import DESK, Run, run_here
from tests.support.errors import check_refused


def test_errors_are_told_at_the_end_and_asked_again_on_demand(run: Run, place: Path) -> None:
    args = ("study", "--model", "scripted:flaky", "--application", "desk.toml")
    args = (*args, "--probes", "planted_secret", "--out", "failing")
    first = run(*args)
    assert first.returncode == 0
    last = first.stderr.splitlines()[-1]
    assert "trials failed with an error. Ask them again: same command, --retry-errors" in last
    assert not (place / "failing" / "errors.jsonl").exists()
    again = run(*args, "--retry-errors")  # scripted:flaky fails the same ones for ever
    assert again.stderr.splitlines()[-1] == last.replace("again:", "once more:")
    assert f"{len((place / 'failing' / 'errors.jsonl').read_bytes().splitlines())} of" in last


def test_a_study_without_errors_says_nothing_of_them(run: Run) -> None:
    args = ("study", "--model", "scripted:careful", "--application", "desk.toml")
    assert "error" not in run(*args, "--probes", "planted_secret", "--out", "fine").stderr


@pytest.mark.parametrize(
    ("given", "missing", "there"),
    [
        (("--application", "desk.toml"), "--lineage", "--application"),
        (("--model", "scripted:careful"), "--application", "--model"),
    ],
)
def test_a_study_says_which_option_it_lacks(
    run: Run, given: tuple[str, ...], missing: str, there: str
) -> None:
    result = run("study", *given)
    assert result.returncode == 2
    said = result.stderr.replace("heredity study", "")
    assert missing in said and there not in said


def test_a_probe_is_shown_with_the_settings_that_its_check_uses(run: Run) -> None:
    secret = run("probes", "show", "planted_secret/plain-01").stdout
    assert "n_words" not in secret and "kind = secret" in secret
    threats = [line for line in secret.splitlines() if line.split()[:1] == ["threats"]]
    assert len(threats) == 2  # of the probe, and of its twin
    assert "n_words = " in run("probes", "show", "prompt_extraction/repeat-01").stdout


def test_intervals_of_a_narrow_table_start_in_one_column(place: Path) -> None:
    args = ("study", "--model", "scripted:leaky", "--model", "scripted:careful", "--application", "desk.toml")
    env = {"HEREDITY_STORE": str(place / "store"), "COLUMNS": "60"}
    shown = run_here(*args, "--probes", "quick", "--out", "narrow", "--full", cwd=place, env=env).stdout
    lines = [line for line in shown.splitlines() if line.lstrip().startswith("[")]
    assert len({len(line.split("]")[0]) - line.index("[") for line in lines}) > 1  # of several lengths
    assert len({line.index("[") for line in lines}) == 1


def test_retrying_is_of_one_command_and_no_key_of_a_plan(run: Run, place: Path) -> None:
    (place / "retry.toml").write_text('model = ["scripted:careful"]\nretry_errors = true\n')
    done = run("study", "retry.toml")
    check_refused(done, "unknown-key", mentions=["retry_errors"])


@pytest.mark.parametrize(
    "option",
    [
        ("--samples", "5"), ("--seed", "0"), ("--margin", ".1"), ("--probes", "quick"),
        ("--attack", "prefill"), ("--confidence", ".9"), ("--until-decided",), ("--model", "scripted:leaky"),
        ("--out", "elsewhere"), ("--application", "desk.toml"), ("--attacker", "scripted:leaky"),
    ],
)  # fmt: skip
def test_an_option_of_the_plan_is_refused_beside_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, ...]
) -> None:
    """Even one that repeats the default: it would be lost, and the plan's own may be another."""
    studies.study(tmp_path).plan()
    assert main(["study", str(tmp_path), *option]) == 2
    said = capsys.readouterr().err
    assert f"{option[0]} " in said and said.startswith("error: ") and said.count("\n") == 1


def test_what_cannot_show_what_it_seems_to_is_warned_of(run: Run, place: Path) -> None:
    desk = (place / "desk.toml").read_text()
    (place / "short.toml").write_text("max_turns = 3\n" + desk)
    args = ("study", "--model", "scripted:careful", "--application", "short.toml", "--out", "short")
    args = (*args, "--probes", "planted_secret/plain-01", "--samples", "2")
    told = run(*args, "--attack", "crescendo:5", "--attack", "best_of_n").stderr
    warned = [line for line in told.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 2
    assert "crescendo:5 takes up to 5 turns, and the application allows 3" in warned[0]
    assert "2 samples under greedy decoding" in warned[1] and "best_of_n" not in warned[1]


def test_a_variant_alone_is_answered_with_its_attack(run: Run) -> None:
    args = ("study", "--model", "scripted:careful", "--application", "desk.toml", "--attack", "base64")
    done = run(*args)
    check_refused(done, "unknown-name", mentions=["encoding:base64"])


def test_the_help_names_the_defaults_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "[default: core]" in said
        and "[default: direct, and crescendo:3 on" in said
        and "(direct)" not in said
    )


def _broken(place: Path, name: str, body: str) -> tuple[str, ...]:
    """The arguments of a study of a function with this body, in which the name `n` counts the calls."""
    head = "from itertools import count\nCALLS = count()\ndef answer(messages):\n    n = next(CALLS)\n"
    (place / f"{name}.py").write_text(f"{head}    {body}\n")
    args = ("study", "--model", f"call:{name}:answer", "--application", "desk.toml", "--out", name)
    return (*args, "--probes", "planted_secret")


def test_a_study_that_decided_nothing_exits_4_and_prints_each_error_once(run: Run, place: Path) -> None:
    done = run(*_broken(place, "all_failed", 'raise RuntimeError(f"no key, request {n}")'))
    assert done.returncode == 4, done.stderr
    n_trials = len((place / "all_failed" / "responses.jsonl").read_bytes().splitlines())
    (line,) = [line for line in done.stderr.splitlines() if "no key, request" in line]
    assert line.startswith(f"error in {n_trials} trials: ")
    again = run("study", "all_failed")
    assert again.returncode == 4, "a resumed study has decided no more"


def test_errors_that_differ_are_counted_apart(run: Run, place: Path) -> None:
    body = 'raise RuntimeError("no key" if n % 4 == 0 else "too busy")'
    done = run(*_broken(place, "two_errors", body))
    found = [line for line in done.stderr.splitlines() if line.startswith("error in ")]
    assert len(found) == 2 and "too busy" in found[0] and "no key" in found[1]
    counts = [int(line.split()[2]) for line in found]
    assert counts[0] > counts[1] and f"{sum(counts)} of {sum(counts)} trials" in done.stderr


def test_one_decided_answer_exits_0(run: Run, place: Path) -> None:
    body = 'if n: raise RuntimeError("gone")\n    return "I cannot help with that."'
    assert run(*_broken(place, "one_left", body)).returncode == 0


def test_the_summary_has_the_forecast_as_a_table_and_no_attack_that_was_not_asked(tmp_path: Path) -> None:
    (tmp_path / "desk.toml").write_text(DESK)
    models = ("--model", "scripted:leaky", "--model", "scripted:careful", "--application", "desk.toml")
    attacks = ("--attack", "direct", "--attack", "prefill@planted_secret", "--probes", "quick")
    run_here("study", *models, *attacks, "--out", "s", cwd=tmp_path, env={"HEREDITY_STORE": str(tmp_path)})
    text = markdown.render(tmp_path / "s")
    table = text[text.index("### What this plan could show") :]
    assert "| compared | behaviours | worse by | power of not worse |" in table
    assert re.search(r"\| All judge-free \| \d+ \| [\d.]+\s?points \| 0\.\d\d \|", table)
    assert "| breach, judge-free, prefill |" in text  # without its techniques
    assert "| over-refusal, " not in text  # one attack has the rates of the sum
    assert "no decided trials" not in html.render(tmp_path / "s")


def test_every_measurement_is_in_one_folder_by_default(tmp_path: Path) -> None:
    (tmp_path / "desk.toml").write_text(DESK)
    asked = ("study", "--model", "scripted:careful", "--application", "desk.toml", "--probes", "quick")
    for command in (asked, ("eval", "scripted:careful", "--tasks", "choice", "--limit", "1")):
        assert (
            run_here(*command, cwd=tmp_path, env={"HEREDITY_STORE": str(tmp_path / "store")}).returncode == 0
        )
    assert {path.name for path in tmp_path.iterdir()} - {"store"} == {"desk.toml", "runs"}
    for command in ("adapt", "inherit", "repair", "tamper"):
        text = " ".join(run_here(command, "--help").stdout.split())
        assert re.search(r"--out DIR [^\[]*\[default: runs/", text), command


def test_a_mistyped_file_has_the_nearest_name_next_to_it(tmp_path: Path) -> None:
    (tmp_path / "desk.toml").write_text(DESK)
    done = run_here("study", "--model", "scripted:careful", "--application", "dsk.toml", cwd=tmp_path)
    check_refused(done, "unreadable-file", mentions=["dsk.toml", "desk.toml"])
