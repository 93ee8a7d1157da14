"""Guards that adapt a model to a task: a prompt, worked examples, and passages of an index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec import UNSET

from heredity.application import guards
from heredity.application.guards import GuardSpec, load_guard
from heredity.application.retrieval import (
    own_words,
    user_message,
    with_passages,
    without_passages,
)
from heredity.application.retrieval.build import build
from heredity.application.retrieval.index import PassageIndex
from heredity.application.spec import Application
from heredity.core.errors import BadArgument, BadInput, NotComparable
from heredity.core.records import Message, Request, Retrieved
from heredity.lineage.store import Store, scripted, searching_in
from heredity.study.resolve import guarded_model
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.support.errors import raises
from tests.support.static_models import WORDS, write_static

DESK = Application("desk", "You are the desk.")
SYSTEM = Message("system", "You are the desk.")
EXAMPLES = (
    ("Which filter fits the K100?", "F-1"),
    ("What does E4 mean?", "A blocked pump."),
    ("Hi", "Hello"),
)
PASSAGE = Retrieved("id", "manual.md:1-2", "The pump code is E4.")


def prepared(kind: str, request: Request, **settings: object) -> Request:
    return load_guard(GuardSpec(kind, settings=settings)).prepare(request, DESK.facts)


def asked(*texts: str, n_shared: int = 1) -> Request:
    roles = ("user", "assistant")
    said = tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))
    return Request(0, (SYSTEM, *said), n_shared=n_shared)


# --- a prompt -------------------------------------------------------------------------------------


def test_a_prompt_is_added_to_the_system_message_and_stays_shared() -> None:
    found = prepared("instructions", asked("Hi"), text="Answer by codes.")
    assert found.messages == (
        Message("system", "You are the desk.\n\nAnswer by codes."),
        Message("user", "Hi"),
    )
    assert found.n_shared == 1
    bare = prepared("instructions", Request(0, (Message("user", "Hi"),)), text="Answer.")
    assert bare.messages[0] == Message("system", "Answer.") and bare.n_shared == 1


# --- worked examples ------------------------------------------------------------------------------


def test_the_first_examples_come_behind_what_every_request_shares() -> None:
    found = prepared("few_shot", asked("Which pump?"), examples=EXAMPLES, n=2)
    texts = [message.content for message in found.messages]
    assert texts == [SYSTEM.content, *EXAMPLES[0], *EXAMPLES[1], "Which pump?"]
    assert found.n_shared == 5


def test_similar_examples_are_chosen_by_the_newest_question_and_are_not_shared() -> None:
    request = asked("What does E4 mean here?", "Blocked.", "And which filter fits?")
    found = prepared("few_shot", request, examples=EXAMPLES, n=1, select="similar")
    assert [m.content for m in found.messages[1:3]] == list(EXAMPLES[0]) and found.n_shared == 1
    assert found.messages[3:] == request.messages[1:]
    both = prepared("few_shot", asked("Which E4?"), examples=EXAMPLES, n=2, select="similar")
    assert both.messages[3].content == "What does E4 mean?"  # the nearest is last


def test_similar_examples_by_an_embedding_model_are_those_of_the_nearest_direction(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    vectors = np.eye(len(WORDS), dtype=np.float32)
    vectors[2] = vectors[1]  # so that two different words mean the same
    write_static(tmp_path / "words", vectors)
    store = Store(tmp_path / "store")
    model = store.pull(str(tmp_path / "words")).record
    near, far = WORDS[1], WORDS[3]
    shown = f'examples = [["{near}", "near"], ["{far}", "far"]]\nselect = "similar"\nembed = "words"'
    path = desk_file(tmp_path / "desk", "", shown)
    desk = Application.load(path, store)
    settings = desk.guards[0].settings
    assert settings["embed_id"] == model.id
    with searching_in(store):
        rule = load_guard(desk.guards[0])
        found = rule.prepare(asked(WORDS[2]), desk.facts)
        assert found.messages[-2] == Message("assistant", "near")
        assert rule.prepare(asked(far), desk.facts).messages[-2] == Message("assistant", "far")
        with raises(NotComparable, code="not-comparable"):
            prepared("few_shot", asked("x"), **{**settings, "embed_id": "0" * 64})


def test_an_embedding_model_of_few_shot_is_read_with_its_application_and_is_for_similar_ones() -> None:
    with raises(BadArgument, code="bad-setting"):
        prepared("few_shot", asked("x"), examples=EXAMPLES, select="similar", embed="words")
    with raises(BadArgument, code="bad-setting"):
        prepared("few_shot", asked("x"), examples=EXAMPLES, embed="words", embed_id="0")


def test_few_shot_needs_examples() -> None:
    with raises(BadArgument, code="bad-setting"):
        load_guard(GuardSpec("few_shot", settings={"examples": []}))


def desk_file(folder: Path, rows: str | bytes, more: str = 'file = "shown/examples.jsonl"') -> Path:
    """An application whose few_shot guard names a file with these rows."""
    (folder / "shown").mkdir(parents=True)
    (folder / "shown" / "examples.jsonl").write_bytes(rows.encode() if isinstance(rows, str) else rows)
    path = folder / "desk.toml"
    path.write_text(f'name = "desk"\nsystem = ""\n[[guards]]\nkind = "few_shot"\nn = 2\n{more}\n', "utf-8")
    return path


def test_examples_of_a_file_are_those_of_the_digest_and_a_plan_needs_the_file_no_more(tmp_path: Path) -> None:
    rows = [{"question": question, "answer": answer, "fact": "x"} for question, answer in EXAMPLES]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    one, other = (Application.load(desk_file(tmp_path / name, text)) for name in ("a", "b"))
    inline = f"examples = {json.dumps(EXAMPLES)}"
    assert one.digest == other.digest == Application.load(desk_file(tmp_path / "c", "", inline)).digest
    changed = Application.load(desk_file(tmp_path / "d", text.replace("F-1", "F-2")))
    assert changed.digest != one.digest
    shutil.rmtree(tmp_path / "a")
    stored = msgspec.json.decode(msgspec.json.encode(one), type=Application)
    shown = load_guard(stored.all_guards[0]).prepare(asked("Where?"), stored).messages[1:5]
    assert [message.content for message in shown] == [text for pair in EXAMPLES[:2] for text in pair]


@pytest.mark.parametrize(
    ("rows", "code", "mentions"),
    [
        ("", "bad-input", []),
        ('{"question": "a", "answer": "b"}\n[1]\n', "wrong-type", [":2:"]),
        ('{"question": "a", "answer": "b"}\n\n{"question": "a"\n', "not-json", [":3:"]),
        ('{"question": "a"}\n', "missing-key", [":1:", "answer"]),
        ('{"question": " ", "answer": "b"}\n', "missing-key", [":1:", "question"]),
        ('{"question": ["a"], "answer": "b"}\n', "missing-key", [":1:"]),
        ('{"question": "a\\ud800", "answer": "b"}\n', "bad-input", [":1:"]),
        (b'{"question": "a", "answer": "b"}\n\xff\n', "bad-input", [":2:"]),
        ("[" * 200_000, "not-json", [":1:"]),
        (" " * 2_000_001, "bad-input", ["2,000,001"]),
    ],
)
def test_a_hostile_file_of_examples_is_named_with_its_line(
    tmp_path: Path, rows: str | bytes, code: str, mentions: list[str]
) -> None:
    with raises(BadInput, code=code, mentions=["examples.jsonl", *mentions]):
        Application.load(desk_file(tmp_path, rows))


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ('file = "gone.jsonl"', "unreadable-file"),
        ('file = "shown"', "unreadable-file"),
        ("file = 3", "bad-setting"),
        ('file = "shown/examples.jsonl"\nexamples = [["a", "b"]]', "bad-setting"),
    ],
)
def test_a_file_of_examples_that_is_none_is_refused(tmp_path: Path, more: str, code: str) -> None:
    with raises(BadInput, code=code):
        Application.load(desk_file(tmp_path, '{"question": "a", "answer": "b"}', more))


# --- passages -------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "manual.md").write_text("# K100\n\nThe pump of the K100 shows E4.\n")
    build(tmp_path / "docs", tmp_path / "docs.index")
    return tmp_path / "docs.index"


def spec(index: Path, **more: object) -> GuardSpec:
    content = PassageIndex.open(index).hash
    return GuardSpec("retrieve", "manual", settings={"index": str(index), "hash": content, **more})


def test_only_the_newest_question_gets_passages_and_the_row_has_them(index: Path) -> None:
    guard = load_guard(spec(index))
    found = guard.prepare(asked("pump K100?", "E4.", "and the pump?"), DESK.facts)
    assert found.messages[1].content == "pump K100?"
    assert "The pump of the K100 shows E4." in found.messages[3].content
    assert found.messages[3].content.endswith("Question: and the pump?")
    assert found.retrieved is not None and len(found.retrieved) == 1
    nothing = guard.prepare(asked("zzz"), DESK.facts)
    assert nothing.messages == asked("zzz").messages and nothing.retrieved == ()


def test_results_of_tools_are_no_question_and_the_question_before_them_keeps_its_passages(
    index: Path,
) -> None:
    results = Message("user", "Result of look_up:\nK100", data=((19, 23),))
    request = asked("pump?", "CALL look_up {}")
    request = msgspec.structs.replace(request, messages=(*request.messages, results))
    found = load_guard(spec(index)).prepare(request, DESK.facts)
    assert "shows E4" in found.messages[1].content and found.messages[3] == results
    assert found.retrieved is None


def test_passages_come_in_front_of_those_of_a_probe_and_can_be_taken_out_again() -> None:
    for passage in ("", "A planted text."):
        message = user_message("Why?", (), passage)
        shown = with_passages(message, (PASSAGE,))
        assert shown.data is not UNSET
        assert shown.content[slice(*shown.data[0])].endswith(PASSAGE.text)
        assert own_words(shown) == "Why?"
        assert without_passages(shown, lambda text: PASSAGE.text in text) == message
    assert own_words(Message("assistant", "x")) == ""


def test_another_index_under_the_hash_is_refused(index: Path) -> None:
    wrong = load_guard(GuardSpec("retrieve", settings={"index": str(index), "hash": "0" * 32}))
    with raises(NotComparable, code="not-comparable"):
        wrong.prepare(asked("pump?"), DESK.facts)


def test_the_place_of_an_index_does_not_name_a_guarded_model_and_its_hash_does(index: Path) -> None:
    moved = index.parent / "copy.index"
    shutil.copytree(index, moved)
    model = scripted("scripted:mixed")
    here, there = (guarded_model(model, (spec(each),)).record for each in (index, moved))
    assert here.id == there.id and here.recipe != there.recipe
    assert guarded_model(model, (spec(index, passages=1),)).record.id != here.id
    assert guards.content((spec(index),)) == guards.content((spec(moved),))


def test_a_study_compares_a_model_with_itself_behind_an_index(index: Path, tmp_path: Path) -> None:
    model = scripted("scripted:mixed")
    guarded = guarded_model(model, (spec(index),))
    study = Study(
        StudySpec(
            [model, guarded],
            DESK,
            probes=["failed_task/sum-01", "harmful_request/*-01"],
            out=tmp_path / "study",
        )
    )
    result = study.run()
    (edge,) = result.edges("breach", "failed_task")
    assert edge.is_of_guard and (edge.parent, edge.child) == (model.record.id, guarded.record.id)
    passages = {t.trial.model.id: t.response.exchanges[0].retrieved for t in result.trials()}
    assert passages[model.record.id] is UNSET and passages[guarded.record.id] is not UNSET
