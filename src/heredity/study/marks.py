"""A transcript's text in parts: the evidence of the judge, and the tokens of a chat template.

Promises: the parts joined are the text. A mark is at the end of the evidence, compared by letters and digits
only, or at a call that the evidence names.
Leaves to others: the evidence (redteam/), and escaping each part (the template).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_TOKEN = re.compile(r"<\|[^<>|\n]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>")
_WORD_END = re.compile(r"\w{1,30}")
_FEW = 6  # letters of an end of the evidence; a shorter one is in many a text by chance


class Piece(NamedTuple):
    """A part of a text; `kind` is "" for plain text, "found" for evidence, "token" for a template's."""

    text: str
    kind: str = ""


def with_evidence(text: str, evidence: str, calls: Sequence[str] = ()) -> list[Piece]:
    """The text with the evidence marked. `calls` are the names of tools that the reply called."""
    found = _call_span(text, evidence, calls) or _span(text, evidence)
    if found is None:
        return [Piece(text)]
    start, end = found
    pieces = (Piece(text[:start]), Piece(text[start:end], "found"), Piece(text[end:]))
    return [piece for piece in pieces if piece.text]


def with_tokens(text: str) -> list[Piece]:
    """A prompt with the tokens of its chat template set apart."""
    pieces, place = [], 0
    for match in _TOKEN.finditer(text):
        pieces += [Piece(text[place : match.start()]), Piece(match[0], "token")]
        place = match.end()
    return [piece for piece in [*pieces, Piece(text[place:])] if piece.text]


def _span(text: str, evidence: str) -> tuple[int, int] | None:
    """The place of the longest end of the evidence in the text, ignoring all but letters and digits."""
    places = [i for i, character in enumerate(text) if character.isalnum()]
    letters = "".join(text[i].casefold()[:1] for i in places)
    for wanted in _ends(evidence):
        at = letters.find(wanted)
        if at >= 0:
            end = places[at + len(wanted) - 1] + 1
            rest = _WORD_END.match(text, end)  # evidence is cut at a length, and may end within a word
            return places[at], rest.end() if rest else end
    return None


def _ends(evidence: str) -> Iterator[str]:
    """The part after the last colon, then each end that begins with a word, the longest first."""
    line = evidence.removesuffix("...").removesuffix("…")
    last = _letters(line.rpartition(": ")[2])
    if len(last) > 2:
        yield last
    for match in re.finditer(r"(?<!\S)\S", line):
        letters = _letters(line[match.start() :])
        if len(letters) >= _FEW:
            yield letters


def _letters(text: str) -> str:
    return "".join(character.casefold()[:1] for character in text if character.isalnum())


def _call_span(text: str, evidence: str, calls: Sequence[str]) -> tuple[int, int] | None:
    """The rest of the line at the first name of a called tool that the evidence has too."""
    for name in calls:
        at = text.find(name) if name and name in evidence else -1
        if at >= 0:
            end = text.find("\n", at)
            return at, len(text) if end < 0 else end
    return None
