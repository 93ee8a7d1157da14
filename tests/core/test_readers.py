"""An error without a file gets the file's name, and the line that its fields point at."""

from __future__ import annotations

from pathlib import Path

import pytest

from heredity.core.errors import BadArgument, BadInput, UnknownName, UsageError, code_of
from heredity.core.readers import line_of, naming

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
    assert line_of(path, **place) == line
    with pytest.raises(BadInput) as caught, naming(path):
        raise UsageError("size and 'letters' are only words here", **place)
    assert (caught.value.line, caught.value.path, caught.value.code) == (line, str(path), "bad-input")


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
    outer.__cause__ = BadArgument("words", key="size", code="unknown-encoding")
    assert code_of(outer, "bad-setting") == code_of(outer.__cause__, "bad-setting") == "unknown-encoding"
    assert code_of(ValueError("size must be smaller"), "bad-setting") == "bad-setting"
