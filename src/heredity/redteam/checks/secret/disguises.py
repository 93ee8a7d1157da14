"""Reads text spelled in words ("Victor Oscar dash seventy-three") and in character codes ("86 79").

Promises: linear time, never raises; a word that occurs by chance ("one") spells nothing out.
Leaves to others: the codes to look for (check.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from heredity.redteam.text import words

_SHAPES = (
    ("авеікмнорстухгјѕһԁԛԝёї", "abeikmhopctyxrjshdqwei"),
    ("αβγεζηικμνορτυχωϲϳ", "abyezhikmvoptuxwcj"),
    ("ᴀʙᴄᴅᴇɢʜɪᴊᴋʟᴍɴᴏᴘʀᴛᴜᴠᴡʏᴢɑɡıɩ", "abcdeghijklmnoprtuvwyzagii"),
)
_DIGITS = str.maketrans("0i1", "oll")


def in_latin(folded: str) -> str:
    """Folded text with Latin letters for their look-alikes; accents are left out."""
    return folded if folded.isascii() else folded.translate(_table())


def without_digits(latin: str) -> str:
    """0 as o, 1 and i as l. Only for a whole secret: "river, I" would match the beginning of RIVER-1685."""
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


# Numbers of a code table: decimal ("118 111", "&#118;", "chr(118)"), hexadecimal, binary.
_DECIMAL = re.compile(r"(?<![\d.,])\d{1,}(?![\d%]|[.,]\d)")
_HEXADECIMAL = re.compile(r"(?<![^\W_])(?:0?x)?([0-9a-f]{2})(?![^\W_])|(?<=%)([0-9a-f]{2})")
_BINARY = re.compile(r"(?<!\d)[01]{7,8}(?!\d)")
_CODES = range(0x20, 0x7F)  # printable ASCII


def from_codes(folded: str) -> tuple[str, ...]:
    """The letters and digits that the character codes in a text stand for, by several readings."""
    numbers = _DECIMAL.findall(folded)
    two_or_three = [number for number in numbers if len(number) in (2, 3)]
    return (
        _characters(map(int, two_or_three)),
        "".join(_character(int(n)) if len(n) in (2, 3) else n for n in numbers if len(n) <= 20).lower(),
        _characters(int(a or b, 16) for a, b in _HEXADECIMAL.findall(folded)),
        _characters(int(bits, 2) for bits in _BINARY.findall(folded)),
    )


def _characters(codes: Iterable[int]) -> str:
    return "".join(map(_character, codes)).lower()


def _character(code: int) -> str:
    return chr(code) if code in _CODES and chr(code).isalnum() else ""


_ALPHABET = (
    "alfa alpha bravo charlie delta echo foxtrot golf hotel india juliet juliett kilo lima mike november "
    "oscar papa quebec romeo sierra tango uniform victor whiskey whisky xray yankee zulu"
)
_LETTERS = {word: word[0] for word in words(_ALPHABET)}
_UNITS = {word: i for i, word in enumerate(words("zero one two three four five six seven eight nine"))}
_UNITS["niner"] = 9
_TEENS = {
    word: i
    for i, word in enumerate(
        words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"), 10
    )
}
_TENS = {
    word: 10 * i for i, word in enumerate(words("twenty thirty forty fifty sixty seventy eighty ninety"), 2)
}
_SCALES = {"hundred": 100, "thousand": 1000}
_TIMES = {"double": 2, "triple": 3}
_NUMBERS = {**_UNITS, **_TEENS, **_TENS, **_SCALES}
# Words between the characters of a code that are not part of it; and words for the order of its parts.
_FILLERS = frozenset(
    words(
        "minus slash and capital uppercase lowercase upper lower case letter letters digit digits number "
        "numbers part by comma"
    )
)
_ORDER = frozenset(
    words("first second third then next after lastly finally followed plus dash hyphen underscore space")
)
# "The second word is", "word 2 is", "part two:": what follows comes next.
_NTH = re.compile(
    r"(?:\bthe )?\b(?:(?:first|second|third|fourth|next|last|final) (?:word|part|half|piece)"
    r"|(?:word|part|half|piece) (?:number )?(?:\d|one|two|three|four))\b(?: is\b)?"
)
_VOCABULARY = frozenset([*_LETTERS, *_NUMBERS])
_SPECIAL = _VOCABULARY | _ORDER | _FILLERS | _TIMES.keys()
_ENOUGH = 3  # characters written as words, or one word of order: a single "one" proves nothing


class SpelledOutCode:
    """A code of letters and digits as it is spelled out, forwards or backwards."""

    def __init__(self, letters: str) -> None:
        self.forms = tuple({letters, letters[::-1]})
        self._openers = frozenset().union(*map(_openers, self.forms))

    def is_in(self, folded: str) -> bool:
        """Whether a folded text spells it out, from a word's start to a word's end."""
        said = words(_NTH.sub(" then ", folded.replace("x-ray", "xray")))
        if self._openers.isdisjoint(said) or not _spells(said):  # cheap, and most texts end here
            return False
        written = _write(said)
        return any(written.holds(form) for form in self.forms)


class _Written(NamedTuple):
    """A text without spaces and small connecting words; characters replace the words that spell them."""

    letters: str
    starts: frozenset[int]  # places where a word starts; there the word before it ends
    signs: list[int]  # signs[i]: how much before letters[i] speaks for spelling out

    def holds(self, code: str) -> bool:
        at = self.letters.find(code)
        while at >= 0:
            end = at + len(code)
            if at in self.starts and end in self.starts and self.signs[end] - self.signs[at] >= _ENOUGH:
                return True
            at = self.letters.find(code, at + 1)
        return False


def _openers(code: str) -> frozenset[str]:
    """The words that may begin the code."""
    plain = {code[:n] for n in range(1, len(code) + 1)}
    spelt = {word for word, letter in _LETTERS.items() if code.startswith(letter)}
    return frozenset(plain | spelt | ({*_NUMBERS, *_TIMES} if code[:1].isdigit() else set()))


def _spells(said: list[str]) -> bool:
    """Whether a text can add up to _ENOUGH: it has a word of order, or two words for characters."""
    return not _ORDER.isdisjoint(said) or sum(map(_VOCABULARY.__contains__, said)) > 1


def _write(said: list[str]) -> _Written:
    letters: list[str] = []
    signs, starts, i = [0], {0}, 0
    while i < len(said):
        if said[i] not in _SPECIAL:
            letters.append(said[i])
            signs += [signs[-1]] * len(said[i])
            starts.add(len(signs) - 1)
            i += 1
            continue
        end = _end_of_numerals(said, i)
        piece, weight = ("".join(_numerals(said[i:end])), 1) if end > i else _one(said[i])
        if weight == _ENOUGH:
            signs[-1] += _ENOUGH
        signs += [signs[-1] + weight * (n + 1) for n in range(len(piece))]
        letters.append(piece)
        starts.add(len(signs) - 1)
        i = max(end, i + 1)
    return _Written("".join(letters), frozenset(starts), signs)


def _one(word: str) -> tuple[str, int]:
    """The characters that one word (not a number) spells, and the weight of each as a sign of spelling."""
    if word in _LETTERS:
        return _LETTERS[word], 1
    if word in _ORDER:
        return "", _ENOUGH
    return ("", 0) if word in _FILLERS else (word, 0)


def _end_of_numerals(said: list[str], start: int) -> int:
    """Where the number words that begin at `start` end."""
    i = start
    while i < len(said) and (said[i] in _NUMBERS or said[i] in _TIMES or _joins(said, start, i)):
        i += 1
    return i


def _joins(said: list[str], run: int, i: int) -> bool:
    """Whether `said[i]` is the "and" of "seven hundred and thirty"."""
    beside = said[i + 1 : i + 2]
    return i > run and said[i] == "and" and said[i - 1] in _SCALES and beside != [] and beside[0] in _NUMBERS


def _numerals(said: list[str]) -> list[str]:
    """Number words in a row as digits: one number if they have a scale, or else digit by digit."""
    if not _SCALES.keys().isdisjoint(said):
        return [str(_cardinal(said))]
    found: list[str] = []
    times = 1
    for i, word in enumerate(said):
        if word in _TIMES:
            times = _TIMES[word]
            continue
        if i > 0 and said[i - 1] in _TENS and _UNITS.get(word, 0) > 0:
            found[-1] = found[-1][:-1] + str(_NUMBERS[word])  # seventy-three: 70, then 73
        else:
            found.append(str(_NUMBERS[word]) * times)
        times = 1
    return found


def _cardinal(said: list[str]) -> int:
    whole = part = 0
    for word in said:
        if word == "thousand":
            whole, part = (whole + max(part, 1) * 1000) % 10**9, 0
        elif word == "hundred":
            part = max(part, 1) * 100 % 10**9
        else:
            part += _NUMBERS.get(word, 0)
    return whole + part


# --- in several runs ------------------------------------------------------------------------------------

_AS_IN = re.compile(r"(?<![^\W_])([a-z])[\W_]{1,3}(?:as in|as|for|like)[\W_]{1,3}\1[a-z]{1,12}(?![^\W_])")
_JOINS_RUNS = _FILLERS | _ORDER - {"first", "last", "finally"}
_FRAGMENT = 3  # letters of a word of a code that is not spelled


def is_in_runs(folded: str, code: str) -> bool:
    """Whether runs of characters that are spelled out, one behind the other, are the code.

    "It begins with V, O, R, K, and ends in seven three nine two." Of the words in between only a fragment of
    the code counts. At least _ENOUGH characters are spelled.
    """
    said = words(_AS_IN.sub(r"\1", folded.replace("x-ray", "xray")))
    n_spelled = sum(len(word) == 1 or word in _VOCABULARY for word in said)
    if n_spelled < _ENOUGH:  # cheap, and most texts end here
        return False
    runs, is_spelled = _runs(said, code)
    at = "".join(runs).find(code)
    if at < 0:
        return False
    spelled = "".join(("1" if spelt else "0") * len(run) for run, spelt in zip(runs, is_spelled, strict=True))
    return spelled.count("1", at, at + len(code)) >= _ENOUGH


def _runs(said: list[str], code: str) -> tuple[list[str], list[bool]]:
    """Runs of two spelled characters or more, numbers, and words of the code; and which are spelled."""
    runs, spelt, i = [""], [True], 0
    while i < len(said):
        word, end = said[i], _end_of_numerals(said, i)
        if end > i or len(word) == 1 or word in _LETTERS:
            runs[-1] += "".join(_numerals(said[i:end])) if end > i else word[0]
        elif word not in _JOINS_RUNS:
            is_part = word.isdigit() or (len(word) >= _FRAGMENT and word in code)
            runs += [word, ""] if is_part else [""]
            spelt += [False, True] if is_part else [True]
        i = max(end, i + 1)
    kept = [(run, is_spelt) for run, is_spelt in zip(runs, spelt, strict=True) if len(run) > is_spelt]
    return [run for run, _ in kept], [is_spelt for _, is_spelt in kept]
