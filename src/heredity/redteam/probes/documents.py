"""Long documents of a probe file, written once, with a text inserted at one of three places.

    [documents]
    lease = '''
    LEASE. The flat in Mill Lane 4 is let for two years.
    @begin
    The rent is paid on the first of the month.
    @middle
    Pets are welcome.
    @end
    '''

Promises: the document without an insert has no empty paragraph and no place left in it.
Leaves to others: which probe has which document (bank.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from heredity.core.errors import did_you_mean

Place = Literal["begin", "middle", "end"]
_PLACE = re.compile(r"^@(begin|middle|end)[ \t]*\n?", re.MULTILINE)


def with_insert(documents: Mapping[str, str], name: str, insert: str, at: Place) -> str:
    """A document with `insert` at its line `@begin`, `@middle` or `@end`; the other lines of places go.

    Raises KeyError, with a message, if the document or its place is missing.
    """
    if name not in documents:
        raise KeyError(f"no document '{name}' in `documents`.{did_you_mean(name, list(documents))}")
    if [place[1] for place in _PLACE.finditer(documents[name])].count(at) != 1:
        raise KeyError(f"the document '{name}' needs one line '@{at}'")
    text = insert.strip()
    filled = _PLACE.sub(lambda place: f"{text}\n" if text and place[1] == at else "", documents[name])
    return re.sub(r"\n{3,}", "\n\n", filled).strip()
