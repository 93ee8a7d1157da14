"""Answers of random models that match a JSON schema, which no random model would write by itself."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llguidance")

from heredity.application.spec import Application
from heredity.core.errors import BadArgument, BadInput, Unavailable
from heredity.core.records import Decoding, Message, Reply, Request
from heredity.engines import check_schema
from heredity.engines._json_schemas import grammar_of
from heredity.engines.scripted import ScriptedEngine
from heredity.engines.torch.engine import TorchEngine, open_folder
from heredity.engines.torch.sampling import Constraints
from heredity.lineage.store import Store
from heredity.study.plan import read_plan
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.support.errors import raises
from tests.support.recording_listener import RecordingListener
from tests.support.studies import by_index, probes

FIELDS: dict[str, object] = {
    "urgent": {"type": "boolean"},
    "team": {"enum": ["sales", "support", "returns"]},
    "number": {"type": "integer", "minimum": 1, "maximum": 999},
    "words": {"type": "string", "maxLength": 6},
}
TICKET = {"type": "object", "properties": FIELDS, "required": list(FIELDS), "additionalProperties": False}
SCHEMA = json.dumps(TICKET)


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> TorchEngine:
    return open_folder(tiny_llama, dtype="float32")


def question(key: int, schema: str | None = SCHEMA, temperature: float = 1.5, n_tokens: int = 150) -> Request:
    decoding = Decoding(n_tokens, temperature)
    if schema is not None:
        decoding = Decoding(n_tokens, temperature, json_schema=schema)
    return Request(key, (Message("user", f"the fox {key}"),), decoding, seed=key)


def answered(engine: TorchEngine, requests: list[Request]) -> dict[int, Reply]:
    return {reply.key: reply for reply in engine.reply(requests)}


def check(reply: Reply) -> dict[str, Any]:
    assert reply.stop == "end", reply.text
    found: dict[str, Any] = json.loads(reply.text)
    assert list(found) == list(FIELDS)
    assert isinstance(found["urgent"], bool) and found["team"] in ("sales", "support", "returns")
    assert 1 <= found["number"] <= 999 and len(found["words"]) <= 6
    return found


def test_every_answer_matches_the_schema_and_they_differ(engine: TorchEngine) -> None:
    found = [check(reply) for reply in answered(engine, [question(key) for key in range(12)]).values()]
    assert len({json.dumps(each) for each in found}) > 6
    greedy = [check(reply) for reply in answered(engine, [question(0, temperature=0.0)]).values()]
    assert len(greedy) == 1


def test_an_answer_does_not_depend_on_the_rows_beside_it(engine: TorchEngine) -> None:
    asked = [question(key, SCHEMA if key % 2 else None, 0.0 if key % 3 else 1.2) for key in range(9)]
    together = answered(engine, asked)
    for request in asked:
        assert answered(engine, [request])[request.key] == together[request.key]


def test_rows_without_a_schema_are_as_before(engine: TorchEngine) -> None:
    plain = [question(key, None) for key in range(4)]
    before = answered(engine, plain)
    with_others = answered(engine, [*plain, *(question(10 + key) for key in range(4))])
    assert {key: with_others[key] for key in before} == before


def test_an_answer_that_is_cut_says_so(engine: TorchEngine) -> None:
    (reply,) = answered(engine, [question(0, n_tokens=5)]).values()
    assert reply.stop == "length" and '{"urgent": '.startswith(reply.text)


def test_a_stream_is_the_same_answer(engine: TorchEngine) -> None:
    listener = RecordingListener()
    (reply,) = engine.stream([question(3)], listener)
    assert "".join(listener.heard[3]) == reply.text == answered(engine, [question(3)])[3].text


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("[1", "cannot be held"),
        ('{"type": "number", "minimum": 3, "maximum": 2}', "cannot be held"),
        ('{"not": {"type": "string"}}', "cannot be held"),
        ('{"$ref": "#"}', "cannot be held"),
    ],
)
def test_a_schema_that_cannot_be_held_is_refused(engine: TorchEngine, schema: str, said: str) -> None:
    with pytest.raises(BadArgument, match=said) as refused:
        engine.capabilities.check_schema(schema)
    assert refused.value.code == "bad-setting"


def test_an_answer_that_the_schema_lost_is_cut_and_not_ended(engine: TorchEngine) -> None:
    wide = json.dumps({"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(600)}})
    (reply,) = answered(engine, [question(0, wide)]).values()
    assert reply.stop == "length" and reply.text == "{"


def test_an_answer_does_not_wait_for_the_schema_of_another(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.capabilities.check_schema(SCHEMA)
    compiling, done = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        compiling.set()
        assert done.wait(600)
        raise BadArgument("too slow", code="bad-setting")

    monkeypatch.setattr(Constraints, "_compile", slow)
    with ThreadPoolExecutor() as pool:
        other = pool.submit(engine.capabilities.check_schema, '{"const": 7}')
        assert compiling.wait(60)
        try:
            check(pool.submit(answered, engine, [question(1)]).result(timeout=60)[1])
        finally:
            done.set()
        with pytest.raises(BadArgument):
            other.result()


def test_an_engine_that_cannot_hold_a_schema_is_refused() -> None:
    check_schema(ScriptedEngine("careful"), Decoding())
    with raises(Unavailable, "unavailable", ["torch"]):
        check_schema(ScriptedEngine("careful"), Decoding(json_schema="{}"))


def desk(folder: Path, decoding: str, more: str = "") -> Application:
    (folder / "desk.toml").write_text(f'name = "desk"\n[decoding]\nmax_tokens = 150\n{decoding}\n{more}')
    return Application.load(folder / "desk.toml")


def test_an_application_takes_a_schema_as_text_as_a_file_and_as_a_table(tmp_path: Path) -> None:
    (tmp_path / "ticket.json").write_text('{"type": "object"}')
    as_text = desk(tmp_path, """json_schema = '{"type": "object"}'""")
    as_file = desk(tmp_path, 'json_schema = "ticket.json"')
    as_table = desk(tmp_path, '[decoding.json_schema]\ntype = "object"')
    assert as_text.digest == as_file.digest
    assert json.loads(str(as_table.decoding.json_schema)) == {"type": "object"}
    assert desk(tmp_path, "").decoding == Decoding(150), "without one, nothing is recorded"


@pytest.mark.parametrize(
    ("decoding", "more", "code"),
    [
        ('json_schema = "missing.json"', "", "unreadable-file"),
        ("json_schema = '{\"type\":'", "", "not-json"),
        ("json_schema = '{}'", '[[tools]]\nname = "look_up"\ndescription = "Looks up."', "bad-setting"),
    ],
)
def test_a_bad_schema_of_an_application_is_refused(
    tmp_path: Path, decoding: str, more: str, code: str
) -> None:
    with raises(BadInput, code, ["json_schema"]):
        desk(tmp_path, decoding, more)


def test_a_study_has_the_schema_in_its_plan_and_only_such_answers(tiny_llama: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    model, layer = store.pull(str(tiny_llama)), desk(tmp_path, f"json_schema = '{SCHEMA}'")
    Study(StudySpec([model], layer, probes=probes(1), out=tmp_path / "study"), store=store).run()
    assert read_plan(tmp_path / "study").application.decoding.json_schema == SCHEMA
    texts = [e.text for row in by_index(tmp_path / "study").values() for e in row.exchanges]
    assert texts and all(json.loads(text)["team"] in ("sales", "support", "returns") for text in texts)
    with raises(Unavailable, "unavailable", ["scripted:careful"]):
        Study(
            StudySpec(["scripted:careful"], layer, probes=probes(1), out=tmp_path / "other"), store=store
        ).run()


def _pattern(n: int) -> dict[str, Any]:
    return {"type": "string", "pattern": f".*a.{{{n}}}b.*"}


def _objects(n: int) -> list[dict[str, Any]]:
    return [{"type": "object", "properties": {"x": _pattern(i)}} for i in range(n)]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"x": {"allOf": [_pattern(i) for i in range(15)]}}},
        {"type": "array", "items": {"allOf": [_pattern(i) for i in range(15)]}},
        {"allOf": _objects(15)},
        {"allOf": [{"allOf": _objects(3)}, {"anyOf": _objects(1)}, *_objects(1)]},
        {"$defs": {f"p{i}": _pattern(i) for i in range(5)},
         "type": "object", "properties": {"x": {"allOf": [{"$ref": f"#/$defs/p{i}"} for i in range(5)]}}},
    ],
)  # fmt: skip
def test_many_patterns_of_one_text_are_refused_before_they_are_compiled(
    schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifteen of them, 692 bytes, were compiled for half a minute."""
    import llguidance

    monkeypatch.setattr(llguidance.LLMatcher, "grammar_from_json_schema", pytest.fail)
    with pytest.raises(BadArgument, match=r"one text must match (5|15) patterns, and 4 is the most"):
        grammar_of(json.dumps(schema))


def test_patterns_of_different_texts_are_as_many_as_one_likes() -> None:
    schema = {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", "pattern": "[a-z]+"} for i in range(9)},
    }
    assert grammar_of(json.dumps({"allOf": [schema, {"type": "object"}]}))
