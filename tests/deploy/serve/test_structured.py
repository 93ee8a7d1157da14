"""`response_format`: answers that match a JSON schema, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("torch")
pytest.importorskip("llguidance")

from heredity.application.spec import Application
from heredity.core.records import Decoding
from heredity.deploy.serve.answers import Served
from heredity.deploy.serve.worker import EngineWorker
from heredity.engines.torch.engine import open_folder
from heredity.lineage.store import Store
from tests.deploy.serve.serving import HELLO, client, listening, named
from tests.support.tiny_models import make_model

SCHEMA = {"type": "object", "properties": {"team": {"enum": ["sales", "support"]}}, "required": ["team"],
          "additionalProperties": False}  # fmt: skip
FORM = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA, "strict": True}}
TEXT = json.dumps({"type": "object", "properties": {"to": {"const": "desk"}}, "required": ["to"]})


def held(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


HELD = Application("held", decoding=Decoding(64, json_schema=TEXT))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tiny_llama = make_model(tmp_path_factory.mktemp("models") / "tiny", "llama")
    model = Store(tmp_path_factory.mktemp("store")).pull(str(tiny_llama)).record
    worker = EngineWorker(open_folder(tiny_llama, dtype="float32"))
    other = msgspec.structs.replace(model, name="other", id="f" * 32)
    served = [Served(model, worker), Served(other, worker, HELD), named("helpful")]
    with listening(*served) as address:
        yield address


def ask(server: str, model: str, **how: Any) -> str:
    found = client(server).chat.completions.create(model=model, messages=HELLO, max_tokens=60, **how)
    text: str = found.choices[0].message.content
    return text


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_matches_the_schema_of_the_caller(server: str, is_streamed: bool) -> None:
    how = {"model": "tiny", "messages": HELLO, "max_tokens": 60, "temperature": 1.2, "seed": 3}
    found = client(server).chat.completions.create(**how, response_format=FORM, stream=is_streamed)
    if is_streamed:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in found)
    else:
        text = found.choices[0].message.content
    assert json.loads(text)["team"] in ("sales", "support")


def test_json_without_a_schema_is_an_object(server: str) -> None:
    assert ask(server, "tiny", response_format={"type": "json_object"}).startswith("{")


def test_the_responses_api_takes_a_schema_too(server: str) -> None:
    form = {"format": {"type": "json_schema", "name": "ticket", "schema": SCHEMA}}
    found = client(server).responses.create(model="tiny", input="hello", text=form, max_output_tokens=60)
    assert json.loads(found.output_text)["team"] in ("sales", "support")


def test_the_messages_api_takes_a_schema_too(server: str) -> None:
    """As Anthropic's client sends it. How much effort is made is a hint."""
    config: dict[str, Any] = {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 60, "messages": HELLO, "output_config": config}
    found = httpx.post(f"{server}/v1/messages", json=body, timeout=30)
    assert json.loads(found.json()["content"][0]["text"])["team"] in ("sales", "support")
    assert found.headers["x-heredity-ignored"] == "output_config.effort"
    config["format"] = {"type": "xml"}
    assert httpx.post(f"{server}/v1/messages", json=body, timeout=30).status_code == 400


def test_an_application_holds_the_form_of_its_answers(server: str) -> None:
    assert json.loads(ask(server, "other"))["to"] == "desk"
    with pytest.raises(openai.BadRequestError, match="holds the form") as refused:
        ask(server, "other", response_format=FORM)
    assert refused.value.body["param"] == "response_format"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"type": "xml"}, "takes the types"),
        ({"type": "json_schema"}, "takes the types"),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "cat"}}}, "cannot be held"),
        ({"type": "json_schema", "json_schema": {"schema": {"const": "x" * 70_000}}}, "at most"),
        (
            held({"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}),
            "`oneOf` may overlap. Write `anyOf`",
        ),
        (held({"not": {"type": "string"}, "uniqueItems": True}), 'not supported: "not", "uniqueItems"'),
        (held({"$ref": "https://schemas.example/x"}), "nothing outside of it is read"),
        (held({"$ref": "#/$defs/x"}), "its part '/$defs/x', which it lacks"),
        (held({"type": "string", "pattern": "(?=a)"}), "may not look ahead"),
        (held({"minimum": 2**64}), "number 18446744073709551616 is"),
        (held({"type": "string", "pattern": "["}), "no regular expression: unclosed"),
    ],
)
def test_a_form_that_cannot_be_held_is_refused(server: str, form: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, "tiny", response_format=form)
    assert said in str(refused.value) and refused.value.param == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"enum": [[], [[]]]}}},
        {"type": "array", "maxItems": 1, "items": {"$ref": "#"}},
        {"oneOf": [{"type": "array", "maxItems": 0}, {"type": "null"}]},
    ],
)
def test_a_schema_may_refer_to_itself_and_have_alternatives(server: str, schema: dict[str, Any]) -> None:
    assert set(ask(server, "tiny", response_format=held(schema), temperature=1.2, seed=3)) <= set("[]nul")


def test_an_engine_without_schemas_and_tools_beside_one_are_refused(server: str) -> None:
    with pytest.raises(openai.BadRequestError, match="engine cannot hold"):
        ask(server, "scripted:helpful", response_format=FORM)
    tools: Any = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
    with pytest.raises(openai.BadRequestError, match=r"calls no tools|shows no tools"):
        ask(server, "tiny", response_format=FORM, tools=tools)
