"""`tool_choice` that demands a call: agents and structured outputs of many frameworks send it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("torch")
pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

from heredity.application.spec import Application
from heredity.core.records import Tool
from heredity.deploy.serve.answers import Served
from heredity.deploy.serve.chat import demanded_call
from heredity.deploy.serve.schema import Rules
from heredity.deploy.serve.worker import EngineWorker
from heredity.engines._json_schemas import grammar_of
from heredity.engines.torch.engine import open_folder
from heredity.lineage.store import Store
from tests.deploy.serve.serving import HELLO, client, listening, named, saying
from tests.support.tiny_models import CHATML, make_model

PLACES = {"enum": ["Bern", "Rome"]}
CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/place"}}, "required": ["city"],
        "additionalProperties": False, "$defs": {"place": PLACES}}  # fmt: skip
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
COUNT = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
TIME = {"type": "function", "function": {"name": "time", "parameters": COUNT}}
NAMED = {"type": "function", "function": {"name": "weather"}}
DESK = Application("desk", "You help.", tools=(Tool("weather", "Looks."),))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A random model, whose template shows tools. It would never call one by itself."""
    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML
    folder = make_model(tmp_path_factory.mktemp("models") / "tiny", "llama", template)
    model = Store(tmp_path_factory.mktemp("store")).pull(str(folder)).record
    worker = EngineWorker(open_folder(folder, dtype="float32"))
    with listening(Served(model, worker), saying("{}"), named("leaky", DESK)) as address:
        yield address


def asked(server: str, model: str = "tiny", **how: Any) -> Any:
    body: dict[str, Any] = {"model": model, "messages": HELLO, "max_tokens": 60} | how
    return client(server).chat.completions.create(**body)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_a_demanded_call_is_made_and_fits_its_tool(server: str, choice: Any, is_streamed: bool) -> None:
    how = {"temperature": 1.2, "seed": 3, "stream": is_streamed}
    found = asked(server, tools=[TIME, WEATHER], tool_choice=choice, **how)
    if is_streamed:
        (choice_,) = list(found)[-1].choices
        calls = choice_.delta.tool_calls
    else:
        (choice_,) = found.choices
        calls = choice_.message.tool_calls
        assert choice_.message.content is None
    (call,) = calls
    given = json.loads(call.function.arguments)
    assert choice_.finish_reason == "tool_calls"
    if choice == NAMED or call.function.name == "weather":
        assert call.function.name == "weather" and given["city"] in ("Bern", "Rome")
    else:
        assert call.function.name == "time" and given["n"] in (1, 2)


def test_the_other_forms_of_the_api_demand_calls_too(server: str) -> None:
    tool = {"name": "weather", "input_schema": CITY}
    body = {"model": "tiny", "max_tokens": 60, "messages": HELLO, "tools": [tool]}
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        found = httpx.post(f"{server}/v1/messages", json=body | {"tool_choice": choice}, timeout=30).json()
        assert found["stop_reason"] == "tool_use" and found["content"][0]["input"]["city"] in ("Bern", "Rome")
    item = {"type": "function", "name": "weather", "parameters": CITY}
    choice = {"type": "function", "name": "weather"}
    said = client(server).responses.create(
        model="tiny", input="hello", max_output_tokens=60, tools=[item], tool_choice=choice
    )
    assert json.loads(said.output[0].arguments)["city"] in ("Bern", "Rome")


PLACE = {"type": "object", "properties": {"n": {"$ref": "#/definitions/place"}}, "required": ["n"],
         "additionalProperties": False, "definitions": {"place": {"enum": [7]}}}  # fmt: skip
LEFT = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
TREE = {"type": "object", "properties": {"left": LEFT, "n": {"const": {"$ref": "#"}}}, "required": ["left"],
        "additionalProperties": False, "$id": "https://schemas.example/tree"}  # fmt: skip
TWICE = {"type": "object", "properties": {"a": {"enum": [3]}, "b": {"$ref": "#/properties/a"}}}
LEAF = {"left": None, "n": {"$ref": "#"}}


@pytest.mark.parametrize("n_tools", [1, 4])
@pytest.mark.parametrize(
    ("name", "schema", "right", "wrong"),
    [
        ("place", PLACE, {"n": 7}, {"n": 1}),
        ("tree", TREE, {"left": {"left": LEAF}}, {"left": {"left": 1}}),
        ("a/b~c", TWICE, {"b": 3}, {"b": 4}),
    ],
)
def test_a_schema_may_refer_to_any_part_of_itself_beside_those_of_other_tools(
    name: str, schema: dict[str, Any], right: object, wrong: object, n_tools: int
) -> None:
    others = [Tool("weather", "Looks.", schema=CITY), Tool("time", "Tells.", schema=COUNT)]
    tools = [*others, Tool("where", "Looks.", schema={"$defs": {"place": {"type": "integer"}}})][
        : n_tools - 1
    ]
    tools.append(Tool(name, "Looks.", schema=schema))
    found = demanded_call("required", tools, Rules(check_schema=grammar_of))
    assert isinstance(found, str)
    validator = jsonschema.Draft202012Validator(json.loads(found))
    assert validator.is_valid({"name": name, "arguments": right})
    assert not validator.is_valid({"name": name, "arguments": wrong})
    assert not validator.is_valid({"name": "weather", "arguments": right})


@pytest.mark.parametrize(
    ("model", "tools", "choice"),
    [
        ("tiny", [], "required"),
        ("tiny", [WEATHER], {"type": "function", "function": {"name": "time"}}),
        ("tiny", [WEATHER], {"type": "allowed_tools"}),
        ("scripted:helpful", [WEATHER], NAMED),
        ("scripted:leaky", [WEATHER], NAMED),
    ],
)
def test_a_call_that_cannot_be_held_is_refused(server: str, model: str, tools: Any, choice: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        asked(server, model, tools=tools, tool_choice=choice)
    assert (refused.value.param, refused.value.body["reason"]) == ("tool_choice", "bad-usage")
