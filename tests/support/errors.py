"""Expect an error by its class, its code and the values that it names, whatever its wording."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

Error = TypeVar("Error", bound=BaseException)


@contextmanager
def raises(
    kind: type[Error], code: str = "", mentions: Iterable[object] = ()
) -> Iterator[pytest.ExceptionInfo[Error]]:
    """Expect an error of this class and code that names each of `mentions`.

    kind: the class, or a base of it. code: "" only for a class that has no codes, such as IndexError.
    mentions: values such as a file, a line, a number or the nearest known name. They stay in the message when
    its words change, so words of a sentence do not belong here.
    """
    with pytest.raises(kind) as caught:
        yield caught
    check(caught.value, code, mentions)


def check(error: BaseException, code: str = "", mentions: Iterable[object] = ()) -> None:
    """Check that an error has this code and that its message names each of `mentions`."""
    assert not isinstance(mentions, str), "mentions is a list: one value of it is not its letters"
    found = getattr(error, "code", "")
    assert found == code, f"code {found!r}, expected {code!r}: {error}"
    for value in mentions:
        assert names(str(error), value), f"{str(error)!r} does not name {value!r}"


def names(message: str, value: object) -> bool:
    """Whether a message names a value: as a whole word or number, so that 1 is not found in 10."""
    text = str(value)
    start = r"(?<![\w.])" if text[:1].isdigit() else r"(?<!\w)" if text[:1].isalpha() else ""
    end = r"(?![\w]|[.,]\d)" if text[-1:].isdigit() else r"(?!\w)" if text[-1:].isalpha() else ""
    return re.search(start + re.escape(text) + end, message) is not None
