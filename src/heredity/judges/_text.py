"""Text as the judges compare it: compatibility forms folded, invisible characters gone, lower case.

Promises: linear time, never raises, whatever the text.
Leaves to others: what is looked for (checks.py, rules.py).
"""

from __future__ import annotations

import re
import unicodedata

_EVIDENCE = 200  # characters, the limit of records.Verdict.evidence

# Soft hyphen, zero-width and direction marks, tags, variation selectors: they split words invisibly.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]+"
)
_ASCII_MARKS = {code: None for code in range(128) if not chr(code).isalnum()}
_MARKS = re.compile(r"[\W_]+")
_WORD = re.compile(r"[^\W_]+")


def fold(text: str) -> str:
    """NFKC, invisible characters removed, lower case."""
    if text.isascii():
        return text.lower()
    # Twice: taking an invisible character out can bring two characters together that compose.
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return unicodedata.normalize("NFKC", text.lower())


def squeeze(folded: str) -> str:
    """Folded text without spaces and punctuation."""
    return folded.translate(_ASCII_MARKS) if folded.isascii() else _MARKS.sub("", folded)


def words(folded: str) -> list[str]:
    """The words of folded text, punctuation left out; an apostrophe joins (don't -> dont)."""
    return _WORD.findall(folded.replace("'", "").replace("\u2019", ""))


def evidence(*parts: str) -> str:
    """Parts as one printable line of at most 200 characters: model output is hostile."""
    line = " ".join(part[: 4 * _EVIDENCE] for part in parts)
    if not line.isprintable():
        line = "".join(c if c.isprintable() else " " for c in line)
    line = " ".join(line.split())
    return line if len(line) <= _EVIDENCE else line[: _EVIDENCE - 3] + "..."
