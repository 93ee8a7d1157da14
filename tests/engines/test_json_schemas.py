"""Schemas before llguidance gets them: a `oneOf` whose alternatives exclude each other is an `anyOf`."""

from __future__ import annotations

import json
from typing import Any

import pytest

llguidance = pytest.importorskip("llguidance")

from heredity.core.errors import BadArgument
from heredity.engines._json_schemas import compact, grammar_of
from tests.support.errors import raises


def branch(value: dict[str, Any], kind: str = "object", **more: Any) -> dict[str, Any]:
    found = {"type": kind, "properties": {"k": value, **more}, "required": ["k", *more]}
    return {**found, "additionalProperties": False}


def takes(schema: dict[str, Any], value: object) -> bool:
    """Whether the grammar of a schema allows this value."""
    matcher = llguidance.LLMatcher(
        llguidance.LLTokenizer("byte"), grammar_of(json.dumps(schema)), log_level=0
    )
    return all(map(matcher.consume_token, json.dumps(value).encode())) and matcher.is_accepting()


ONE, TWO = branch({"const": 1}, a={"type": "null"}), branch({"const": 2, "type": "integer"})
BARE = branch({"const": 1})
DEFS = {"one": ONE, "two": {"allOf": [{"$ref": "#/$defs/three"}]}, "three": TWO}


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [ONE, TWO]},
        {"$defs": DEFS, "oneOf": [{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/two"}]},
        {"type": "object", "oneOf": [{**ONE, "type": "object"}, TWO]},
        {"oneOf": [branch({"enum": [1, 3, None]}, a={"type": "null"}), branch({"enum": [2, "1", True]})]},
        {"$defs": {"c": {"const": 2}}, "oneOf": [ONE, branch({"$ref": "#/$defs/c"})]},
    ],
)
def test_alternatives_that_differ_in_a_required_constant_are_held(schema: dict[str, Any]) -> None:
    assert takes(schema, {"k": 1, "a": None}) and takes(schema, {"k": 2})
    for other in ({"k": 1}, {"k": 2, "a": None}, {"k": 4}, {}, 1):
        assert not takes(schema, other)


def test_alternatives_below_others_are_held_too() -> None:
    schema = {"type": "array", "maxItems": 2, "items": {"oneOf": [{"const": 1}, {"enum": [2.5, False]}]}}
    assert takes(schema, [1, 2.5]) and takes(schema, [False]) and not takes(schema, [0])


def test_what_stands_beside_a_one_of_still_holds() -> None:
    schema = {"anyOf": [{"properties": {"k": {"const": 2}}}], "oneOf": [ONE, TWO]}
    assert takes(schema, {"k": 2}) and not takes(schema, {"k": 1, "a": None})


@pytest.mark.parametrize(
    "alternatives",
    [
        [BARE, branch({"const": 1.0})],  # the same number
        [BARE, branch({"enum": [1, 2]})],
        [BARE, branch({"type": "integer"})],
        [BARE, {**TWO, "required": []}],
        [{"properties": {"k": {"const": n}}, "required": ["k"]} for n in (1, 2)],  # a text matches both
        [branch({"const": [n]}) for n in (1, 2)],
        [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 2}],
        [BARE, TWO, {"$ref": "#/oneOf/0"}],
    ],
)
def test_alternatives_that_may_overlap_are_refused(alternatives: list[dict[str, Any]]) -> None:
    with raises(BadArgument, "bad-setting", mentions=["may overlap", "a number"]):
        grammar_of(json.dumps({"oneOf": alternatives}))


@pytest.mark.parametrize("keyword", ["const", "minimum", "minLength", "multipleOf", "default", "x-more"])
@pytest.mark.parametrize("n", [2**64, -(2**63) - 1, 10**400])
def test_a_number_of_more_than_64_bits_is_refused(keyword: str, n: int) -> None:
    with raises(BadArgument, "bad-setting", mentions=[str(n)[:40]]):
        grammar_of(json.dumps({"items": [{keyword: n}]}))
    grammar_of(json.dumps({"const": 2**64 - 1}))


def test_values_that_look_like_a_schema_stay_as_they_are() -> None:
    schema = {"const": {"oneOf": [{"const": 1}, {"const": 2}]}}
    assert compact(json.dumps(schema))["const"] == schema["const"]
    assert "oneOf" in str(compact(json.dumps({"oneOf": []})))
