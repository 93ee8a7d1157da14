"""Arguments against a schema: what a tool gets, what the model is told, and schemas that mean harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from heredity.application import tools
from heredity.application.spec import Application
from heredity.application.tools import World, described, fit, plain_tools
from heredity.core.errors import BadArgument, BadInput
from heredity.core.records import Change, Check, Effect, Exchange, Probe, Response, Tool, ToolCall
from heredity.redteam.checks.state import StateCheck
from tests.application.test_spec import talk
from tests.support.clock import computing_within
from tests.support.errors import raises

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "where"},
        "days": {"type": "integer", "minimum": 1},
        "unit": {"enum": ["C", "F"]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]+$"}},
}
WEATHER = Tool("weather", "Tells the weather.", schema=SCHEMA)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"city": "Rome", "days": 2, "unit": "C", "tags": ["a"]}, ""),
        ({}, "the argument 'city' is missing"),
        ({"city": 7}, "the argument 'city' must be of type string"),
        ({"city": "Rome", "days": "two"}, "the argument 'days' must be of type integer"),
        ({"city": "Rome", "days": 0}, "the argument 'days' does not match the schema (minimum)"),
        ({"city": "Rome", "unit": "K"}, 'the argument \'unit\' must be one of ["C", "F"]'),
        ({"city": "Rome", "country": "Italy"}, "the tool has no 'country'"),
        ({"city": "Rome", "tags": ["a", "B"]}, "the argument 'tags.1' does not match the schema (pattern)"),
    ],
)
def test_the_first_thing_that_is_wrong_is_told(arguments: dict[str, Any], error: str) -> None:
    assert fit(WEATHER, arguments).error == error


def test_values_that_a_format_wrote_as_text_are_read() -> None:
    written = {"city": "7", "days": "2", "tags": '["a"]'}
    assert fit(WEATHER, written) == ({"city": "7", "days": 2, "tags": ["a"]}, "")
    assert fit(WEATHER, {"city": "Rome", "days": "NaN"}).error


def test_a_tool_without_a_schema_takes_what_it_is_given() -> None:
    assert fit(Tool("look", "Looks.", {"at": "what"}), {"else": 1}) == ({"else": 1}, "")


def test_a_call_that_does_not_match_changes_nothing_and_is_answered_so() -> None:
    pay = Tool(
        "pay", "Pays.", result="Paid.",
        effects=(Effect("append", "paid", "{amount}"),),
        schema={"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]},
    )  # fmt: skip
    desk = Application("desk", system="", tools=(pay,), state={"paid": []})
    probe = Probe("t/a", "t", "breach", ("Pay.",), Check("state"), "t")
    said = talk(desk, ['CALL pay {"amount": "much"}', 'CALL pay {"amount": 3}', "Done."], probe)
    assert said[1].messages[-1].content == (
        "Result of pay:\nerror: the argument 'amount' must be of type number"
    )
    assert said[2].messages[-1].content == "Result of pay:\nPaid."
    refused, paid = ToolCall("pay", {"amount": "much"}), ToolCall("pay", {"amount": 3})
    world = World(desk.state, desk.tools)
    assert [done.changes for call in (refused, paid) if (done := world.call(call))] == [
        (), (Change("paid", "3"),)
    ]  # fmt: skip
    # A judge replays the calls: one that was not done is no breach.
    for call, is_breach in ((refused, False), (paid, True)):
        exchange = Exchange("", "", "", "", (call,), "end", 1, 1)
        row = Response(0, "", "", "", "t/a", "direct", 0, 0, (exchange,), "")
        assert (StateCheck().find(probe, row, desk) is not None) is is_breach


def test_the_plain_format_describes_kinds_and_what_is_optional() -> None:
    assert described(WEATHER) == [
        ("city", "string: where"),
        ("days", "integer, optional"),
        ("unit", 'one of ["C", "F"], optional'),
        ("tags", "array, optional"),
    ]
    assert '"city" (string: where), "days" (integer, optional)' in plain_tools([WEATHER])


def test_a_schema_may_be_a_table_text_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "look.json").write_text('{"type": "object", "required": ["at"]}')
    text = '{"type": "object", "required": ["at"]}'
    given = ('{ type = "object", required = ["at"] }', f"'{text}'", '"look.json"')
    named = enumerate(given)
    tools = "".join(f'[[tools]]\nname = "look{n}"\ndescription = "x"\nschema = {each}\n' for n, each in named)
    (tmp_path / "desk.toml").write_text(f'name = "desk"\nsystem = ""\n{tools}')
    found = [tool.schema for tool in Application.load(tmp_path / "desk.toml").tools]
    assert found == 3 * [{"type": "object", "required": ["at"]}]


def test_a_schema_belongs_to_the_digest_and_none_leaves_it_as_it_was() -> None:
    one = Application("desk", system="", tools=(Tool("look", "Looks."),))
    two = msgspec.structs.replace(one, tools=(Tool("look", "Looks.", schema={"type": "object"}),))
    assert one.digest != two.digest
    assert b"schema" not in msgspec.json.encode(one)


@pytest.mark.parametrize(
    ("schema", "code"),
    [
        ({"type": "banana"}, "bad-setting"),
        ({"$ref": "#"}, "bad-setting"),
        ({"$ref": "https://schemas.example/x.json"}, "bad-setting"),
        ({"patternProperties": {"a": {}}, "unevaluatedProperties": False}, "bad-setting"),
        ({"description": "x" * 200_000}, "bad-setting"),
        ({"allOf": [{}] * 1_000}, "bad-setting"),
        ({"properties": {f"p{i}": {"type": "string"} for i in range(999)}}, "bad-setting"),
    ],
)
def test_a_schema_that_is_none_is_refused(schema: dict[str, Any], code: str) -> None:
    with raises(BadArgument, code):
        Application("desk", system="", tools=(Tool("look", "Looks.", schema=schema),))


def test_a_file_with_such_a_schema_names_it(tmp_path: Path) -> None:
    (tmp_path / "desk.toml").write_text(
        'name = "desk"\nsystem = ""\n'
        '[[tools]]\nname = "look"\ndescription = "x"\nschema = { type = "banana" }\n'
    )
    with raises(BadInput, "bad-setting"):
        Application.load(tmp_path / "desk.toml")


def test_a_schema_built_to_keep_the_check_busy_ends_in_an_error() -> None:
    twice = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    slow = Tool(
        "slow", "x", schema={"$defs": {**twice, "d40": {}}, "properties": {"x": {"$ref": "#/$defs/d0"}}}
    )
    pattern = Tool("slow", "x", schema={"properties": {"x": {"pattern": "^(a|a|aa)*$"}}})
    with computing_within(60):  # of 2 ** 40 steps, and as many tries of the pattern
        assert "takes too long" in fit(slow, {"x": 1}).error
        assert "takes too long" in fit(pattern, {"x": "a" * 60 + "!"}).error


@pytest.mark.parametrize("keyword", ["type", "pattern"])
def test_a_check_has_a_limit_of_time_in_all(monkeypatch: pytest.MonkeyPatch, keyword: str) -> None:
    """Patterns of 0.2 s each took minutes, since only each by itself had a limit."""
    tool = Tool("look", "Looks.", schema={"properties": {"at": {keyword: "string"}}})
    assert fit(tool, {"at": "string"}).error == ""
    monkeypatch.setattr(tools, "_SECONDS_IN_ALL", 0.0)
    assert "takes too long" in fit(tool, {"at": "string"}).error


def test_a_schema_that_is_nested_too_deeply_is_refused_in_words() -> None:
    schema: dict[str, Any] = {}
    for _ in range(300):
        schema = {"properties": {"x": schema}}
    with raises(BadArgument, "bad-setting", mentions=["nested too deeply"]):
        Application("desk", system="", tools=(Tool("look", "Looks.", schema=schema),))


@pytest.mark.parametrize(
    ("schema", "arguments", "error"),
    [
        ({"patternProperties": {"(a|a|aa)*$": {"type": "string"}}}, {"a": 1}, "must be of type string"),
        ({"patternProperties": {"^(a|a|aa)*$": {}}}, {"a" * 60 + "!": 1}, "takes too long"),
        (
            {"patternProperties": {"^(a|a|aa)*$": {}}, "additionalProperties": False},
            {"a" * 60 + "!": 1},
            "takes too long",
        ),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, {"x1": 1, "y": 1}, "has no 'y'"),
        ({"properties": {"x": {}}, "additionalProperties": {"type": "string"}}, {"x": 1, "y": 2}, "'y' must"),
        ({"properties": {"x": {"multipleOf": 0.5}}}, {"x": 10**400}, "cannot be checked"),
        ({"properties": {"x": {"uniqueItems": True}}}, {"x": [[i] for i in range(3000)]}, ""),
        ({"properties": {"x": {"uniqueItems": True}}}, {"x": [1, True, "1", {"a": [1]}]}, ""),
        ({"properties": {"x": {"uniqueItems": True}}}, {"x": [{"a": 1}, {"a": 1.0}]}, "(uniqueItems)"),
    ],
)
def test_no_keyword_keeps_the_check_busy_or_ends_the_study(
    schema: dict[str, Any], arguments: dict[str, Any], error: str
) -> None:
    with computing_within(10):
        found = fit(Tool("slow", "x", schema=schema), arguments).error
        assert error in found and bool(found) is bool(error)


def test_a_reference_that_leads_nowhere_is_told_at_the_call() -> None:
    lost = Tool("lost", "x", schema={"properties": {"x": {"$ref": "https://schemas.example/x.json"}}})
    assert fit(lost, {"x": 1}).error.startswith("the arguments cannot be checked")
    assert fit(lost, {"y": 1}).error == ""


def test_a_pattern_that_takes_all_memory_is_not_compiled() -> None:
    tool = Tool("search", "x", schema={"properties": {"q": {"pattern": "((a{1000}){1000}){1000}"}}})
    assert "cannot be checked" in fit(tool, {"q": "a"}).error
