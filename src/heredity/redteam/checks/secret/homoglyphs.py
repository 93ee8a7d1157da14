"""Letters that look like others, read as those: Cyrillic, Greek, small capitals, accents; digits as letters.

Promises: linear time, never raises; each letter and digit becomes one, so that places stay.
Leaves to others: what is looked for (_secrets.py). Folded text is small already, so that a Greek letter that
looks like one letter when small and like another when capital is read as the likelier one.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

_SHAPES = (
    ("авеікмнорстухгјѕһԁԛԝёї", "abeikmhopctyxrjshdqwei"),
    ("αβγεζηικμνορτυχωϲϳ", "abyezhikmvoptuxwcj"),
    ("ᴀʙᴄᴅᴇɢʜɪᴊᴋʟᴍɴᴏᴘʀᴛᴜᴠᴡʏᴢɑɡıɩ", "abcdeghijklmnoprtuvwyzagii"),
)
_DIGITS = str.maketrans("0i1", "oll")


def in_latin(folded: str) -> str:
    """Folded text with Latin letters for those that look like them; accents are left out."""
    return folded if folded.isascii() else folded.translate(_table())


def without_digits(latin: str) -> str:
    """0 as o, 1 and i as l. Only for a whole secret: "river, I" would begin as RIVER-1685 does."""
    return latin.translate(_DIGITS)


@lru_cache(maxsize=1)
def _table() -> dict[int, str]:
    """From the code of a character to the letter it is read as: Latin, Greek and Cyrillic, with accents."""
    shapes = {ord(c): to for of, looks in _SHAPES for c, to in zip(of, looks, strict=True)}
    found: dict[int, str] = dict.fromkeys(range(0x300, 0x370), "")  # accents that stand alone
    for first, end in ((0xC0, 0x250), (0x370, 0x530), (0x1E00, 0x2000)):
        for code in range(first, end):
            bare = unicodedata.normalize("NFD", chr(code))[0]
            if bare != chr(code):
                found[code] = shapes.get(ord(bare), bare)
    return found | shapes
