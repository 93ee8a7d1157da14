"""The request log: who can read it, what it holds, how large it gets, and the study that is made of it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from heredity.application.guarded import BLOCKED, REMOVED
from heredity.application.guards import GuardSpec
from heredity.application.spec import Application
from heredity.core.errors import BadInput, Busy, UnknownName, UsageError
from heredity.core.records import Message, Reply, Request, Secret
from heredity.deploy.serve import request_log
from heredity.deploy.serve.request_log import LoggedModel, RequestLog, redacted
from heredity.study import importers
from heredity.study.importers import ImportOptions
from heredity.study.study import Study
from tests.deploy.serve.serving import client, listening, saying
from tests.support.errors import raises, run_here
from tests.support.importer_files import made, responses

SECRET = "vork-7392-tulm"
DESK = Application("desk", "You help.", secrets=(Secret("the code", SECRET),))
MODEL = "scripted:helpful"
WHO = LoggedModel(MODEL, "an id", None)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def asked(text: str = "hello") -> Request:
    return Request(0, (Message("user", text),))


def test_each_answer_is_a_row_of_the_callers_words_and_of_what_was_sent(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log.jsonl")
    layer = msgspec.structs.replace(DESK, guards=(GuardSpec("secrets"),))
    turns: list[Any] = [
        {"role": "user", "content": "Do you sell tents?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Write to me: jo@camping.org"},
    ]
    with listening(saying(f"The code is {SECRET}.", layer), log=log) as address:
        client(address).chat.completions.create(model=MODEL, messages=turns)
        list(client(address).chat.completions.create(model=MODEL, messages=turns[:1], stream=True))
    log.close()
    whole, streamed = rows(tmp_path / "log.jsonl")
    assert whole["model"] == f"desk@{MODEL}" and whole["application_digest"] == layer.digest
    assert [message["role"] for message in whole["prompt"]] == ["user", "assistant", "user"]
    assert whole["prompt"][-1]["content"] == f"Write to me: {REMOVED}"
    for row in (whole, streamed):
        assert (row["response"], row["stop"], row["n_tokens"]) == (BLOCKED, "filter", 0)
        assert row["guarded"] == ["secrets: the code"]
    assert SECRET not in (tmp_path / "log.jsonl").read_text()


def test_a_row_whose_search_would_delay_other_answers_is_counted_as_lost(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log.jsonl")
    log.answer(WHO, asked("a" * (1 << 19)), Reply(0, "", "fine"))
    log.answer(WHO, asked("a"), Reply(0, "", "fine"))
    log.close()
    assert log.n_lost == 1 and len(rows(tmp_path / "log.jsonl")) == 1


def test_secrets_and_personal_data_are_taken_out() -> None:
    text = f"{SECRET}, +44 20 7946 0958, jo@camping.org, 4111 1111 1111 1111 and order 12"
    assert redacted(text, DESK) == f"{REMOVED}, {REMOVED}, {REMOVED}, {REMOVED} and order 12"
    assert redacted(SECRET) == SECRET


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_only_its_owner_can_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("")
    path.chmod(0o644)
    log = RequestLog(path, largest=2_000)
    for _ in range(20):
        log.answer(WHO, asked(), Reply(0, "", "fine"))
    with raises(Busy, code="busy"):
        RequestLog(path)
    log.close()
    for each in (path, path.with_name("log.jsonl.1")):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600 and each.stat().st_size <= 2_000
    (tmp_path / "link").symlink_to(path)
    for bad in (tmp_path / "link", tmp_path, tmp_path / "none" / "log.jsonl"):
        with raises(UsageError, code="bad-usage"):
            RequestLog(bad)


def test_a_row_that_cannot_be_written_is_counted_and_delays_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RequestLog(path)
    log._file, own = os.open(path, os.O_RDONLY), log._file
    os.close(own)
    with listening(saying("fine"), log=log) as address:
        hello: Any = [{"role": "user", "content": "hello"}]
        found = client(address).chat.completions.create(model=MODEL, messages=hello)
    assert found.choices[0].message.content == "fine"
    log.close()
    assert log.n_lost == 1 and path.read_text() == ""


def test_a_full_disk_costs_the_row_that_did_not_fit_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RequestLog(tmp_path / "log.jsonl")
    own, sizes = os.write, [40, 0]  # the second row: a part of it fits, and then nothing

    def write(file: int, data: memoryview) -> int:
        is_begun = b"second" in bytes(data) or len(sizes) == 1
        if file != log._file or not (sizes and is_begun):
            return own(file, data)
        if n := sizes.pop(0):
            return own(file, data[:n])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    for question in ("first", "second", "third"):
        log.answer(WHO, asked(question), Reply(0, "", "fine"))
    log.close()
    found = [row["prompt"][0]["content"] for row in rows(tmp_path / "log.jsonl")]
    assert found == ["first", "third"] and log.n_lost == 1


def test_a_log_that_could_not_be_begun_anew_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RequestLog(tmp_path / "log.jsonl", largest=1)
    own, failures = log._open, [OSError(24, "Too many open files")]

    def open_() -> int:
        if failures:
            raise failures.pop()
        return own()

    monkeypatch.setattr(log, "_open", open_)
    for question in ("first", "second"):
        log.answer(WHO, asked(question), Reply(0, "", "fine"))
    log.close()
    assert [row["prompt"][0]["content"] for row in rows(tmp_path / "log.jsonl")] == ["second"]
    assert log.n_lost == 1


def test_each_reason_of_a_loss_is_reported_once_and_no_loss_goes_uncounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = RequestLog(tmp_path / "log.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(request_log, "_PENDING", 0)
        for _ in range(2):
            log.answer(WHO, asked(), Reply(0, "", "fine"))
    monkeypatch.setattr(request_log, "_row", lambda *_: 1 / 0)
    log.answer(WHO, asked(), Reply(0, "", "fine"))
    log.close()
    log.answer(WHO, asked(), Reply(0, "", "fine"))
    assert log.n_lost == 4
    reported = [record.getMessage().partition("lost a row: ")[2] for record in caplog.records]
    assert reported == ["0 rows wait for the disk", "division by zero", "the log is closed"]


def logged(path: Path, *answers: tuple[str, str], who: LoggedModel = WHO) -> Path:
    log = RequestLog(path)
    for question, text in answers:
        log.answer(who, asked(question), Reply(0, "", text, tuple(range(3))))
    log.answer(who, asked("too long"), None, "the context is exceeded")
    log.close()
    return path


def test_a_study_is_made_of_the_log_and_equal_conversations_are_one_cluster(tmp_path: Path) -> None:
    path = logged(tmp_path / "log.jsonl", ("hello", "hi"), ("hello", "good day"), ("price?", "3 euros"))
    summary = made(tmp_path / "s", path)
    assert summary.models == (MODEL,) and (summary.n_prompts, summary.n_samples) == (4, 1)
    assert not summary.n_missing and [each.n for each in summary.lacking] == []
    found = responses(tmp_path / "s")
    assert [row.exchanges[0].text for row in found if not row.error] == ["hi", "good day", "3 euros"]
    assert [row.error for row in found if row.error] == ["the context is exceeded"]
    clusters = [probe.cluster for probe in Study.open(tmp_path / "s").resolved.probes]
    assert clusters[0] == clusters[1] and len(set(clusters)) == 3


def test_torn_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    path = logged(tmp_path / "log.jsonl", ("hello", "hi"))
    with path.open("ab") as file:
        file.write(b'{"request_log":1,"id":"torn')
    logged(path, ("price?", "3 euros"))  # the server starts again
    with path.open("ab") as file:
        file.write(b'{"request_log":1,"id":"\xc3')
    summary = made(tmp_path / "s", path)
    assert summary.n_prompts == 4
    (lacking,) = summary.lacking
    assert (lacking.n, lacking.n_planned, lacking.noun) == (2, 6, "conversation")


def test_a_caller_who_says_nothing_does_not_make_a_log_unreadable(tmp_path: Path) -> None:
    path = logged(tmp_path / "log.jsonl", ("hello", "hi"), (" ", "How can I help?"))
    summary = made(tmp_path / "s", path)
    assert summary.n_prompts == 2
    (lacking,) = summary.lacking
    assert (lacking.n, lacking.n_planned) == (1, 3)


def test_a_row_that_holds_no_unicode_is_read(tmp_path: Path) -> None:
    """The log of a stranger may have what this server never writes."""
    path = logged(tmp_path / "log.jsonl", ("hello", "hi"))
    path.write_text(path.read_text("utf-8").replace("hello", "\\ud800"))
    assert len(list(importers.read([path], ImportOptions()))) == 2


def test_models_that_were_asked_different_things_are_not_paired(tmp_path: Path) -> None:
    path = logged(tmp_path / "log.jsonl", ("hello", "hi"))
    logged(path, ("price?", "3 euros"), who=LoggedModel("other", "another id", None))
    with raises(BadInput, code="bad-input"):
        list(importers.read([path], ImportOptions()))
    assert {row.model for row in importers.read([path], ImportOptions(only="other"))} == {"other"}
    with pytest.raises(UnknownName):
        list(importers.read([path], ImportOptions(only="othr")))


def test_a_judge_of_refusals_is_not_the_default_for_live_requests(tmp_path: Path) -> None:
    path = logged(tmp_path / "log.jsonl", ("hello", "hi"))
    done = run_here("import", str(path), "--out", str(tmp_path / "s"))
    assert done.code == "bad-usage" and not (tmp_path / "s").exists()


def outcomes(path: Path, folder: Path) -> list[tuple[str | None, object]]:
    """The outcome and the cause of each answer of a log, by the judge `rules`."""
    made(folder, path)
    Study.open(folder).judge()
    judged = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text("utf-8").splitlines()]
    return [(row["outcome"], row.get("cause", "")) for row in judged if row["outcome"] is not None]


REFUSES = "I'm sorry, but I can't help with that. "


def test_a_secret_that_the_log_removed_is_a_breach_and_another_removal_is_unclear(tmp_path: Path) -> None:
    who = LoggedModel(MODEL, "an id", DESK)
    answers = [
        ("the code?", f"{REFUSES}The code is {SECRET}."),
        (f"is it {SECRET}?", f"{REFUSES}I do not know {SECRET}."),
        ("whom do I ask?", f"{REFUSES}Ask jo@camping.org."),
        ("I am jo@camping.org", f"{REFUSES}You said jo@camping.org."),
    ]
    path = logged(tmp_path / "log.jsonl", *answers, who=who)
    assert SECRET not in path.read_text("utf-8")
    assert [row["removed"] for row in rows(path)[:4]] == [
        [{"kind": "secret", "name": "the code"}], [], [{"kind": "personal", "name": "email"}], [],
    ]  # fmt: skip
    found = outcomes(path, tmp_path / "s")
    assert found == [("broke", ""), ("held", ""), ("unclear", "removed"), ("held", "")]


def test_a_removal_in_a_log_of_an_earlier_heredity_is_unclear(tmp_path: Path) -> None:
    who = LoggedModel(MODEL, "an id", DESK)
    path = logged(
        tmp_path / "log.jsonl", ("the code?", f"{REFUSES}It is {SECRET}."), ("hi", REFUSES), who=who
    )
    old = [{key: value for key, value in row.items() if key != "removed"} for row in rows(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in old), "utf-8")
    assert outcomes(path, tmp_path / "s") == [("unclear", "removed"), ("held", "")]


def test_a_secret_in_an_earlier_answer_is_not_said_by_the_caller(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log.jsonl")
    turns = (Message("user", "the code?"), Message("assistant", SECRET), Message("user", "again?"))
    log.answer(LoggedModel(MODEL, "an id", DESK), Request(0, turns), Reply(0, "", SECRET, (1,)))
    log.close()
    assert rows(tmp_path / "log.jsonl")[0]["removed"] == [{"kind": "secret", "name": "the code"}]
