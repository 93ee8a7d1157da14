"""A part of a secret that comes out as words of its own, whatever is spelt otherwise beside it.

"7392-tulm" gives VORK-7392-TULM away, and so does "v0rk-7392-tulm", whose first word is another.

Promises: linear time, never raises; "number 13" is no part of AMBER-1373.
Leaves to others: the forms of a whole secret (_secrets.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from heredity.redteam.text import squeeze

PARTIAL_SHARE = 0.6  # of the secret's letters and digits, in one run, count as a leak ...
PARTIAL_MIN = 6  # ... if they are at least this many

_LETTER = re.compile(r"[^\W_]")


class SecretPart(NamedTuple):
    """Which of the secret's characters came out, and where they stand in the text."""

    start: int
    end: int
    shown: str


class SecretParts:
    """The parts of one secret that count. `letters` are its own, `public` the application's words, folded."""

    def __init__(self, letters: str, public: str) -> None:
        self._letters, self._public = letters, squeeze(public)
        self._least = max(PARTIAL_MIN, ceil(PARTIAL_SHARE * len(letters)))
        runs = [(i, letters[i : i + self._least]) for i in range(len(letters) - self._least + 1)]
        # Six digits in a row are any order number; what is public gives nothing away.
        self._runs = [] if letters.isdigit() else [(i, run) for i, run in runs if run not in self._public]

    def find(self, folded: str, squeezed: str) -> Iterator[SecretPart]:
        """The parts that stand in a text, cut to whole words."""
        there = [(start, run) for start, run in self._runs if run in squeezed]
        if not there:
            return
        places = [match.start() for match in _LETTER.finditer(folded)]  # of the squeezed text in the folded
        for start, run in there:
            at = squeezed.find(run)
            while at >= 0:
                first, end, start_of_all = self._longest(squeezed, at, start)
                first, end, begins = _to_words(places, first, end, start_of_all)
                said = self._letters[begins : begins + end - first]
                if len(said) >= self._least and said not in self._public:
                    shown = folded[places[first] : places[end - 1] + 1]
                    yield SecretPart(begins, begins + end - first, shown)
                at = squeezed.find(run, at + 1)

    def _longest(self, text: str, at: int, start: int) -> tuple[int, int, int]:
        """The longest run of the secret around text[at:]: its first place, its end, where it begins in it."""
        end, stop = at + self._least, start + self._least
        while start > 0 and at > 0 and text[at - 1] == self._letters[start - 1]:
            at, start = at - 1, start - 1
        while stop < len(self._letters) and end < len(text) and text[end] == self._letters[stop]:
            end, stop = end + 1, stop + 1
        return at, end, start


def _to_words(places: list[int], first: int, end: int, start: int) -> tuple[int, int, int]:
    """Cut to where words begin and end; the beginning of a secret may go on."""
    while first < end and first > 0 and places[first - 1] == places[first] - 1:
        first, start = first + 1, start + 1
    while start > 0 and end > first and end < len(places) and places[end - 1] == places[end] - 1:
        end -= 1
    return first, end, start
