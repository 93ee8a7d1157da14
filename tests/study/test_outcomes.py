"""A verdict counts for the answer beside it and for no other; what a model cannot have is no error."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from heredity.cli import main
from heredity.core.errors import Damaged
from heredity.core.files import Rows
from heredity.core.progress import Progress
from heredity.core.records import Reply, Response, encode, is_failed, is_skipped
from heredity.study import aggregate, runner
from heredity.study import plan as plans
from heredity.study.findings.cost import Cost
from heredity.study.gate import gate
from heredity.study.plan import Plan, SkippedProbe
from heredity.study.storage import RunRecord
from tests.support import studies
from tests.support.errors import check_refused, raises, run_here

MADE = studies.plan(("scripted:mixed",), n=2, attacks=("direct",), samples=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    studies.study(tmp_path, MADE).run()
    return tmp_path


def rewritten(folder: Path, rows: list[Response]) -> None:
    (folder / "responses.jsonl").write_bytes(b"".join(encode(row) + b"\n" for row in rows))


@pytest.mark.parametrize(
    "verb", [["gate", "--max-errors", "100"], ["report"], ["report", "--format", "sarif"]]
)
def test_an_edited_answer_is_refused_in_one_line_that_says_what_to_do(folder: Path, verb: list[str]) -> None:
    rows = list(Rows(folder / "responses.jsonl", Response))
    said = rows[3].exchanges
    last = msgspec.structs.replace(said[-1], text="I refuse.")
    rows[3] = msgspec.structs.replace(rows[3], exchanges=(*said[:-1], last))
    rewritten(folder, rows)
    done = run_here(verb[0], str(folder), *verb[1:])
    check_refused(done, "damaged", ["responses.jsonl:4", f"heredity study {folder}"])
    assert main(["study", str(folder)]) == 0
    assert main([verb[0], str(folder), *verb[1:]]) != 2


def test_an_answer_that_was_removed_or_is_there_twice_is_refused(folder: Path) -> None:
    rows = list(Rows(folder / "responses.jsonl", Response))
    rewritten(folder, rows[:-1])
    with raises(Damaged, "damaged"):
        aggregate.estimate(MADE, folder)
    rewritten(folder, [*rows, rows[0]])
    with raises(Damaged, "damaged"):
        aggregate.estimate(MADE, folder)


def test_an_answer_that_another_program_spelt_otherwise_is_the_same(folder: Path) -> None:
    path = folder / "responses.jsonl"
    found = aggregate.estimate(MADE, folder)
    rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    path.write_bytes(b"".join(msgspec.json.format(msgspec.json.encode(r), indent=-1) + b"\n" for r in rows))
    spaced = path.read_text().replace('","', '" , "').replace('"text":', '"text" : ')
    path.write_text(spaced)
    assert aggregate.estimate(MADE, folder) == found


def with_closed(made: Plan, attack: str) -> Plan:
    reason = f"skipped: {attack} works on weights in the torch engine, and this model is behind 'scripted'"
    closed = tuple(SkippedProbe("*", f"{reason} ('{model.name}')") for model in made.models)
    return msgspec.structs.replace(made, skipped=closed)


def test_an_attack_that_a_model_cannot_have_is_no_error_and_is_said(tmp_path: Path) -> None:
    made = with_closed(
        studies.plan(("scripted:refuser",), n=2, attacks=("direct", "refusal_direction"), samples=1),
        "refusal_direction",
    )
    studies.study(tmp_path, made).run()
    found = aggregate.estimate(plans.read_plan(tmp_path), tmp_path)
    assert (found.n_errors, found.n_skipped, found.n_asked) == (0, made.n_trials // 2, made.n_trials)
    rates = [r for r in found.rates if r.attack == "refusal_direction"]
    assert rates and all(r.n_skipped and not r.n_error for r in rates)
    assert {cost.attack for cost in found.rows("cost", Cost)} == {"direct"}
    outcome = gate(found, max_breach=1.0)
    assert outcome.code == 0
    assert f"{found.n_skipped} of {found.n_asked} trials were not asked" in outcome.words


def test_what_a_model_cannot_be_asked_is_no_error_on_the_way_and_is_not_asked_again(tmp_path: Path) -> None:
    made = with_closed(
        studies.plan(("scripted:refuser",), n=2, attacks=("direct", "refusal_direction"), samples=1),
        "refusal_direction",
    )
    watched: list[Progress] = []
    studies.study(tmp_path, made).run(watched.append)
    before = (tmp_path / "responses.jsonl").read_bytes()
    studies.study(tmp_path, made).run(watched.append, retry_errors=True)
    assert (tmp_path / "responses.jsonl").read_bytes() == before and not (tmp_path / "errors.jsonl").exists()
    assert watched and max(at.n_errors for at in watched) == 0
    runs = [row.n_errors for row in Rows(tmp_path / "runs.jsonl", RunRecord)]
    assert runs and not any(runs)


def test_a_service_cannot_call_its_errors_skipped(tmp_path: Path) -> None:
    words = "skipped: direct works on weights in the torch engine"
    made = with_closed(MADE, "direct")
    hostile = studies.Recorder(say=lambda _: Reply(0, "", "", stop="error", error=words))
    studies.study(tmp_path, made, loader=lambda _: hostile).run()
    rows = studies.responses(tmp_path)
    assert rows and all(is_failed(row) and row.error == words for row in rows)
    found = aggregate.estimate(made, tmp_path)
    assert (found.n_errors, found.n_skipped) == (made.n_trials, 0)


def test_what_was_skipped_is_known_by_a_code_whatever_the_words_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = studies.plan(("scripted:refuser",), n=2, attacks=("direct", "refusal_direction"), samples=1)
    monkeypatch.setattr(runner, "why_unsupported", lambda *_: "other words")
    studies.study(tmp_path, made).run()
    rows = [r for r in studies.responses(tmp_path) if r.attack == "refusal_direction"]
    assert rows and all(is_skipped(row) and row.error == "other words" for row in rows)
    found = aggregate.estimate(made, tmp_path)
    assert (found.n_errors, found.n_skipped) == (0, made.n_trials // 2)
