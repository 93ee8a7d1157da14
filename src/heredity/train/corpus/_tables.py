"""What is computed over the bytes of a batch: classes of characters, runs, hashes. Arrays in, arrays out.

Promises: no state but tables that are made once. Leaves to others: documents (batch.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Mask = NDArray[np.bool_]

SPACE, SYMBOL, WORD, IDEOGRAPH = 0, 1, 2, 6  # an ideograph is a word by itself: its bit of WORD is set
_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_BACK = np.uint64(pow(int(_STEP), -1, 1 << 64))
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_SHIFT = np.uint64(33)


def _table() -> Bytes:
    table = np.full(256, SYMBOL, np.uint8)
    table[[9, 10, 11, 12, 13, 32]] = SPACE
    for low, high in ((48, 58), (65, 91), (97, 123), (95, 96), (128, 256)):
        table[low:high] = WORD
    return table


_CLASS = _table()
IS_ALPHA = np.zeros(256, np.bool_)
IS_ALPHA[65:91] = IS_ALPHA[97:123] = IS_ALPHA[128:256] = True
_IS_DIGIT = np.zeros(256, np.bool_)
_IS_DIGIT[48:58] = True

_powers = [np.ones(1, np.uint64), np.ones(1, np.uint64)]


def _power(n: int) -> tuple[Hashes, Hashes]:
    """The first `n` powers of the step and of its inverse; made longer when a longer batch comes."""
    if len(_powers[0]) < n:
        size = 1 << (n - 1).bit_length()
        for place, base in enumerate((_STEP, _BACK)):
            steps = np.full(size, base, np.uint64)
            steps[0] = 1
            _powers[place] = np.cumprod(steps, dtype=np.uint64)
    return _powers[0], _powers[1]


def prefix(data: Bytes) -> Hashes:
    """(byte + 1,) Sums of byte x step^place modulo 2^64, from which any stretch's hash is a difference."""
    n = len(data)
    up, _ = _power(n + 1)
    sums = np.zeros(n + 1, np.uint64)
    np.multiply(data.astype(np.uint64), up[:n], out=sums[1:])
    np.cumsum(sums[1:], out=sums[1:])
    return sums


def span_hashes(sums: Hashes, start: Ints, end: Ints) -> Hashes:
    """The hash of each stretch; its length is mixed in, since zero bytes would add nothing."""
    _, back = _power(len(sums))
    found = (sums[end] - sums[start]) * back[start]
    return mix(found + (end - start).astype(np.uint64))


def mix(hashes: Hashes) -> Hashes:
    """Spread every bit over all (the finalizer of MurmurHash3)."""
    hashes = (hashes ^ (hashes >> _SHIFT)) * _MIX
    return hashes ^ (hashes >> _SHIFT)


def longer(grams: Hashes, hashes: Hashes) -> Hashes:
    """Hashes of n + 1 in a row, from those of n in a row and of each alone (which are mixed already)."""
    n = len(hashes) - len(grams) + 1
    return grams[:-1] * _STEP + hashes[n:]


def doubled(grams: Hashes, n: int) -> Hashes:
    """Hashes of 2 n in a row, from those of n. They are not those of n_grams."""
    return grams[: max(0, len(grams) - n)] * _MIX + grams[n:]


def n_grams(hashes: Hashes, n: int) -> Hashes:
    """Hashes of `n` in a row; none where there are fewer."""
    grams = hashes
    for _ in range(1, n):
        grams = longer(grams, hashes)
    return grams


def classes(data: Bytes, is_ascii: bool) -> Bytes:
    """The class of each byte."""
    found = np.take(_CLASS, data)
    if not is_ascii:
        _classify_unicode(data, found)
    _join(data, found)
    return found


def _classify_unicode(data: Bytes, found: Bytes) -> None:
    """Spaces, punctuation and ideographs beyond ASCII, by the first two bytes of a character."""
    lead = np.flatnonzero(data >= 0xC2)
    lead = lead[lead + 2 < len(data)]
    first, second = data[lead], data[lead + 1]
    _set(found, lead[(first == 0xC2) & (second != 0xAA) & (second != 0xB5) & (second != 0xBA)], 2, SYMBOL)
    _set(found, lead[(first == 0xC2) & (second == 0xA0)], 2, SPACE)
    # U+2000 to U+2BFF: punctuation, currency, arrows, mathematics, boxes, dingbats. U+3000 to U+303F and
    # U+FF00 to U+FF0F: the same of East Asia.
    _set(found, lead[(first == 0xE2) & (second <= 0xAF)], 3, SYMBOL)
    _set(found, lead[(first == 0xE3) & (second == 0x80)], 3, SYMBOL)
    _set(found, lead[(first == 0xEF) & (second == 0xBC) & (data[lead + 2] <= 0x8F)], 3, SYMBOL)
    _set(found, lead[(first == 0xE3) & (second == 0x80) & (data[lead + 2] == 0x80)], 3, SPACE)
    # U+3040 to U+9FFF without U+3000 to U+303F: kana and Chinese characters.
    _set(found, lead[((first == 0xE3) & (second > 0x80)) | ((first >= 0xE4) & (first <= 0xE9))], 3, IDEOGRAPH)


def _set(found: Bytes, lead: Ints, n_bytes: int, value: int) -> None:
    for k in range(n_bytes):
        found[lead + k] = value


def _join(data: Bytes, found: Bytes) -> None:
    """An apostrophe between letters and a point or comma between digits belong to the word."""
    at = np.flatnonzero((data == 39) | (data == 44) | (data == 46))
    at = at[(at > 0) & (at + 1 < len(data))]
    before, after = data[at - 1], data[at + 1]
    is_number = (data[at] != 39) & _IS_DIGIT[before] & _IS_DIGIT[after]
    is_inside = (data[at] == 39) & IS_ALPHA[before] & IS_ALPHA[after] & (found[at - 1] == WORD)
    found[at[is_number | (is_inside & (found[at + 1] == WORD))]] = WORD


def runs(found: Bytes, data: Bytes, is_ascii: bool) -> tuple[Ints, Ints]:
    """Start and end of each run of one class that is no space; an ideograph is a run by itself."""
    if not len(found):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    differs = found[1:] != found[:-1]
    if not is_ascii:
        differs |= (found[1:] == IDEOGRAPH) & ((data[1:] & 0xC0) != 0x80)
    cut = np.flatnonzero(differs) + 1
    start = np.concatenate(([0], cut))
    end = np.concatenate((cut, [len(found)]))
    chosen = found[start] != SPACE
    return start[chosen], end[chosen]


def ends_with(data: Bytes, start: Ints, end: Ints, texts: tuple[bytes, ...]) -> Mask:
    """(span,) Whether it ends with one of `texts` (UTF-8, so that bytes decide)."""
    hit = np.zeros(len(end), np.bool_)
    may = np.zeros(256, np.bool_)
    may[[text[-1] for text in texts]] = True
    candidates = np.flatnonzero(end > start)
    candidates = candidates[may[data[end[candidates] - 1]]]
    for n in sorted({len(text) for text in texts}):
        wanted = np.array([int.from_bytes(t, "big") for t in texts if len(t) == n], np.uint32)
        at = candidates[end[candidates] - start[candidates] >= n]
        key = np.zeros(len(at), np.uint32)
        for k in range(n):
            key = (key << np.uint32(8)) | data[end[at] - n + k]
        hit[at] |= np.isin(key, wanted)
    return hit


def repeated(keys: Hashes) -> Mask:
    """(key,) Whether an equal one stands before it."""
    found = np.zeros(len(keys), np.bool_)
    if len(keys) > 1:
        order = np.argsort(keys, kind="stable")
        held = keys[order]
        found[order[1:]] = held[1:] == held[:-1]
    return found
