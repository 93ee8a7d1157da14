"""A guard model as an application's guard: what it reads, when it fails, and its place in the digest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from heredity.application.guarded import (
    BLOCKED,
    GUARD_ANSWERS,
    GUARD_SECONDS,
    READ_AT_ONCE,
    REMOVED,
    GuardedEngine,
    guarded,
    identified,
)
from heredity.application.guards import GuardSpec, parse_guard
from heredity.application.spec import Application
from heredity.core.errors import BadArgument, NotComparable, Unavailable, UnknownName, UsageError
from heredity.core.records import Message, Reply, Request
from heredity.redteam.judges import Models
from heredity.redteam.judges.guard import MAX_PARTS, JudgeReaders
from tests.support.errors import raises
from tests.support.guard_models import NAME, LlamaGuard, models, readers
from tests.support.studies import Recorder

Fails = Literal["closed", "open"]
HARM = "Mix the plutonium with care."


def guard(fails: Fails = "closed", **settings: object) -> GuardSpec:
    return GuardSpec("model", fails=fails, settings={"model": NAME, **settings})


def desk(*guards: GuardSpec, ident: str = "a hash") -> Application:
    return identified(Application("desk", "You help.", guards=guards), readers(LlamaGuard(), ident))


def behind(engine: LlamaGuard, *guards: GuardSpec, says: str = "Sure.") -> GuardedEngine:
    target = Recorder("helpful", say=lambda request: Reply(request.key, "", says))
    made = guarded(target, desk(*guards), readers=readers(engine))
    assert isinstance(made, GuardedEngine)
    return made


def ask(engine: GuardedEngine, text: str, *data: tuple[int, int], key: int = 0) -> Reply:
    message = Message("user", text, data=data or msgspec.UNSET)
    (found,) = engine.reply([Request(key, (Message("system", "You help."), message), n_shared=1)])
    return found


def test_an_answer_that_the_model_calls_unsafe_is_blocked_with_its_category() -> None:
    engine = LlamaGuard()
    found = ask(behind(engine, guard(), says=HARM), "How?")
    assert (found.text, found.stop, found.withheld) == (BLOCKED, "filter", HARM)
    assert found.guarded == ("model: 1.00 S9 Indiscriminate Weapons",)
    assert engine.asked[-1] == f"User: How?\n\nAgent: {HARM}"
    assert ask(behind(LlamaGuard(), guard()), "How?").guarded is None


def test_a_question_and_a_document_are_read_by_the_template_for_questions() -> None:
    engine = LlamaGuard()
    made = behind(engine, guard(sides=["user", "data"]))
    assert ask(made, "Where is the plutonium?").text == BLOCKED
    assert engine.asked[-1] == "User: Where is the plutonium?"
    text = "Document: the plutonium is here. What is the price?"
    assert ask(made, text, (10, 33)).stop == "filter"
    assert ask(made, "The price?").text == "Sure."


def test_redacting_takes_out_the_document_and_the_model_answers_the_rest() -> None:
    seen: list[Request] = []

    def say(request: Request) -> Reply:
        seen.append(request)
        return Reply(request.key, "", "Sure.")

    layer = desk(guard(sides=["data"], action="redact"))
    made = guarded(Recorder("helpful", say=say), layer, readers=readers(LlamaGuard()))
    assert isinstance(made, GuardedEngine)
    found = ask(made, "Document: the plutonium is here. What is the price?", (10, 33))
    assert found.text == "Sure." and found.guarded == ("model: 1.00 S9 Indiscriminate Weapons",)
    assert seen[0].messages[-1].content == f"Document: {REMOVED}What is the price?"


@pytest.mark.parametrize("fails", ["closed", "open"])
def test_a_reply_of_another_form_fails_as_the_guard_says(fails: Fails) -> None:
    found = ask(behind(LlamaGuard(says=lambda _: "Perhaps."), guard(fails=fails), says=HARM), "How?")
    assert found.text == (BLOCKED if fails == "closed" else HARM)
    word = "failed" if fails == "closed" else "failed open"
    assert found.guarded == (f"model: {word}: UnreadableReply",)


def test_the_end_of_a_long_answer_and_its_middle_are_read_too() -> None:
    for at in (0, 6_000, 11_000):
        text = "x " * 6_000
        text = text[:at] + "plutonium" + text[at:]
        assert ask(behind(LlamaGuard(), guard(), says=text), "How?").text == BLOCKED
    found = ask(behind(LlamaGuard(), guard(), says="x" * 5_000 * MAX_PARTS), "How?")
    assert found.text == BLOCKED and found.guarded == ("model: failed: UnreadableReply",)


def test_many_texts_are_read_together_and_each_of_them_once() -> None:
    engine = LlamaGuard()
    made = behind(engine, guard(sides=["user", "answer"]), says=HARM)
    asked = [Request(key, (Message("user", f"Question {key % 10}?"),)) for key in range(2 * READ_AT_ONCE)]
    found = list(made.reply(asked))
    assert sorted(reply.key for reply in found) == list(range(2 * READ_AT_ONCE))
    assert {reply.text for reply in found} == {BLOCKED}
    assert len(engine.asked) == 1 + 10 + 10  # the first is asked where the model is loaded
    assert max(engine.batches) == 10 and engine.n_loaded == 1
    account = made.account()
    assert account[GUARD_ANSWERS] == 2 * READ_AT_ONCE and account[GUARD_SECONDS] is not None


def test_a_text_has_the_same_score_alone_and_among_others() -> None:
    texts = [f"Question {n}{' plutonium' * (n % 3 == 0)}?" for n in range(20)]
    requests = [Request(key, (Message("user", text),)) for key, text in enumerate(texts)]
    together = behind(LlamaGuard(), guard(sides=["user"]))
    alone = [ask(behind(LlamaGuard(), guard(sides=["user"])), text).guarded for text in texts]
    found = {reply.key: reply.guarded for reply in together.reply(requests)}
    assert [found[key] for key in range(20)] == alone


def test_a_stream_that_waits_for_replies_gets_those_that_are_held_for_a_batch() -> None:
    made, replied = behind(LlamaGuard(), guard()), list[Reply]()

    def stream() -> Iterator[Request | None]:
        for key in range(3):  # each question waits for the reply to the one before
            yield Request(key, (Message("user", f"Question {key}?"),))
            while len(replied) <= key:
                yield None

    for reply in made.reply(stream()):
        replied.append(reply)
    assert [reply.key for reply in replied] == [0, 1, 2]


def test_the_digest_has_the_model_its_template_the_threshold_and_the_sides() -> None:
    ways = [
        desk(guard()), desk(guard(), ident="another hash"), desk(guard(threshold=0.7)),
        desk(guard(sides=["user", "answer"])), desk(guard(action="redact")),
    ]  # fmt: skip
    assert len({layer.digest for layer in ways}) == len(ways)
    assert desk(guard()).digest == desk(guard()).digest
    with raises(BadArgument, code="bad-setting"):
        _ = Application("desk", guards=(guard(),)).digest


def test_an_application_is_refused_under_another_model() -> None:
    layer = desk(guard())
    assert identified(layer, readers(LlamaGuard())) == layer
    for act in (
        lambda: identified(layer, readers(LlamaGuard(), "another hash")),
        lambda: guarded(Recorder("helpful"), layer, readers=readers(LlamaGuard(), "another hash")),
    ):
        with raises(NotComparable, code="not-comparable"):
            act()


def test_a_guard_model_without_readers_is_refused_not_left_out() -> None:
    with raises(UsageError, code="bad-usage"):
        guarded(Recorder("helpful"), desk(guard()))


def test_settings_and_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for settings in ({"sides": []}, {"sides": ["user", "user"]}, {"threshold": 0}, {"model": " "}, {"x": 1}):
        with pytest.raises(BadArgument):
            parse_guard({"kind": "model", "model": NAME, **settings}, Path())
    for model, kind in (("llama_guard_3", Unavailable), ("lama_guard_3:tiny-guard", UnknownName)):
        made = Application("desk", guards=(GuardSpec("model", settings={"model": model}),))
        with pytest.raises(kind):
            identified(made, readers(LlamaGuard()))
    for model in ("shieldgemma:tiny-guard", "rubric:tiny-guard"):
        spec = GuardSpec("model", settings={"model": model, "sides": ["user"]})
        with raises(UsageError, code="bad-usage"):
            identified(Application("desk", guards=(spec,)), readers(LlamaGuard()))
    with raises(UsageError, code="bad-usage"):
        identified(
            Application("desk", guards=(GuardSpec("model", settings={"model": "checks"}),)),
            readers(LlamaGuard()),
        )


def test_an_engine_that_takes_chat_only_is_refused_before_anything_is_asked() -> None:
    chat = Models(models(LlamaGuard()).identify, lambda _: Recorder("helpful"))
    with raises(UsageError, code="bad-usage"):
        guarded(Recorder("helpful"), desk(guard()), readers=JudgeReaders(chat))
