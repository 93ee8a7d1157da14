"""An error without a file gets the file's name, and the line that its fields point at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from heredity.core.errors import BadArgument, BadInput, UnknownName, UsageError, code_of
from heredity.core.readers import in_words, naming, toml_line, toml_line_of

TEXT = 'size = "1M"\n\n[[source]]\nname = "letters"\n"batch" = 5\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "recipe.toml"
    made.write_text(TEXT)
    return made


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ({"key": "size"}, 1),
        ({"key": "batch"}, 5),
        ({"table": "letters"}, 4),
        ({"key": "none", "table": "letters"}, 4),
        ({"key": "none"}, 0),
        ({}, 0),
    ],
)
def test_the_line_is_that_of_the_key_or_of_the_named_table(
    path: Path, place: dict[str, str], line: int
) -> None:
    with pytest.raises(BadInput) as caught, naming(path):
        raise UsageError("size and 'letters' are only words here", **place)
    assert (caught.value.line, caught.value.path, caught.value.code) == (line, str(path), "bad-input")


TABLES = """
name = "top"  # 2
limit = 3
decoding.seed = 4

[decoding]
seed = 7
"max_tokens" = 8

[[tools]]
name = "look"
[tools.parameters]
limit = "of the look"

[[tools]]
name = "pay"
[[tools.effects]]
limit = "of the pay"

[gate]
limit = 21
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ({"key": "limit"}, 3),
        ({"key": "decoding"}, 4),
        ({"key": "decoding.max_tokens"}, 8),
        ({"key": "decoding.seed"}, 4),
        ({"key": "gate.limit"}, 21),
        ({"key": "gate"}, 20),
        ({"table": "pay"}, 16),
        ({"head": "tools", "index": 1}, 15),
        ({"head": "tools", "index": 1, "key": "name"}, 16),
        ({"head": "tools", "key": "limit"}, 13),
        ({"head": "tools", "index": 1, "key": "limit"}, 18),
        ({"head": "tools", "index": 1, "key": "nowhere"}, 15),
        ({"head": "tools", "index": 9}, 0),
        ({"key": "nowhere"}, 0),
        ({"table": "nowhere"}, 0),
    ],
)
def test_a_line_is_found_in_its_own_table(tmp_path: Path, place: dict[str, Any], line: int) -> None:
    path = tmp_path / "a.toml"
    path.write_text(TABLES)
    assert toml_line(path, **place) == line
    assert toml_line(tmp_path / "missing.toml", **place) == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BadArgument("x", code="c", key="decoding.max_tokens"), 8),
        (BadArgument("x", code="c", table="look"), 11),
        (ValueError("Object contains unknown field `limit` - at `$.tools[1].effects`"), 18),
        (ValueError("Expected `int`, got `str` - at `$.decoding.max_tokens`"), 8),
        (ValueError("Expected `str`, got `int` - at `$.decoding.max_tokens[2]`"), 8),
        (ValueError("Object missing required field `description` - at `$.tools[1]`"), 15),
        (ValueError("words alone"), 0),
    ],
)
def test_the_place_that_an_error_names_has_a_line(tmp_path: Path, error: Exception, line: int) -> None:
    path = tmp_path / "a.toml"
    path.write_text(TABLES)
    assert toml_line_of(path, error) == line


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "Expected `array`, got `str` - at `$.probe[0].turns`",
            "`turns` in probe[0] must be a list, not a text (str)",
        ),
        (
            "Expected `bool`, got `int` - at `$.x`",
            "`x` must be true or false (bool), not a whole number (int)",
        ),
        (
            "Expected `str | object`, got `array` - at `$.x`",
            "`x` must be a text (str) or a table, not a list",
        ),
        ("Object missing required field `name` - at `$.tools[1]`", "`name` is missing in tools[1]"),
        ("Object missing required field `name`", "`name` is missing"),
        ("Invalid enum value 'x' - at `$.suite`", "Invalid enum value 'x' - at `$.suite`"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_in_plain_words(message: str, words: str) -> None:
    assert in_words(message) == words


def test_the_code_of_the_error_stays(path: Path) -> None:
    with pytest.raises(BadInput) as caught, naming(path):
        raise UsageError("words", code="bad-setting", key="size")
    assert (caught.value.code, caught.value.line) == ("bad-setting", 1)


@pytest.mark.parametrize("error", [BadInput("other.toml", "words", 7), UnknownName("model", "a", ["b"])])
def test_an_error_that_says_more_stays_as_it_is(path: Path, error: UsageError) -> None:
    with pytest.raises(UsageError) as caught, naming(path):
        raise error
    assert caught.value is error


def test_without_a_file_an_error_stays_as_it_is() -> None:
    error = UsageError("words")
    with pytest.raises(UsageError) as caught, naming(None):
        raise error
    assert caught.value is error


def test_the_code_of_an_error_is_its_own_or_that_of_its_cause() -> None:
    outer = ValueError("size must be smaller")
    outer.__cause__ = BadArgument("words", key="size", code="unknown-name")
    assert code_of(outer) == code_of(outer.__cause__) == "unknown-name"
    assert code_of(ValueError("size must be smaller")) == "bad-setting"
