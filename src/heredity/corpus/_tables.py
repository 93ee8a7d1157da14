"""Arrays computed over the bytes of a batch: character classes, runs, hashes. Arrays in, arrays out.

Promises: no state except tables that are computed once.
"""

from __future__ import annotations

import hashlib

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


_CLASS = _table().tobytes()
IS_ALPHA = np.zeros(256, np.bool_)
IS_ALPHA[65:91] = IS_ALPHA[97:123] = IS_ALPHA[128:256] = True
_ALPHA = IS_ALPHA.tobytes()

_powers = [np.ones(1, np.uint64), np.ones(1, np.uint64)]


def _power(n: int) -> tuple[Hashes, Hashes]:
    """The first `n` powers of the step and of its inverse; extended for a longer batch."""
    if len(_powers[0]) < n:
        size = 1 << (n - 1).bit_length()
        for place, base in enumerate((_STEP, _BACK)):
            steps = np.full(size, base, np.uint64)
            steps[0] = 1
            _powers[place] = np.cumprod(steps, dtype=np.uint64)
    return _powers[0], _powers[1]


def prefix(data: Bytes) -> Hashes:
    """(byte + 1,) Prefix sums of byte x step^place modulo 2^64; the hash of a span is a difference of two."""
    n = len(data)
    up, _ = _power(n + 1)
    sums = np.zeros(n + 1, np.uint64)
    np.multiply(data.astype(np.uint64), up[:n], out=sums[1:])
    np.cumsum(sums[1:], out=sums[1:])
    return sums


def span_hashes(sums: Hashes, start: Ints, end: Ints) -> Hashes:
    """(span,) The hash of each span. The length is mixed in, because zero bytes add nothing."""
    _, back = _power(len(sums))
    hashes = (sums[end] - sums[start]) * back[start]
    return mix(hashes + (end - start).astype(np.uint64))


def mix(hashes: Hashes) -> Hashes:
    """Mix every bit into all others (the finalizer of MurmurHash3)."""
    hashes = (hashes ^ (hashes >> _SHIFT)) * _MIX
    return hashes ^ (hashes >> _SHIFT)


def followed(grams: Hashes, hashes: Hashes) -> Hashes:
    """Hashes of each of `grams` followed by one of `hashes`."""
    return grams * _STEP + hashes


def longer(grams: Hashes, hashes: Hashes) -> Hashes:
    """Hashes of n + 1 consecutive items, from those of n items and of single items (already mixed)."""
    n = len(hashes) - len(grams) + 1
    return followed(grams[:-1], hashes[n:])


def doubled(grams: Hashes, n: int) -> Hashes:
    """Hashes of 2 n consecutive items, from those of n. They differ from those of n_grams."""
    return grams[: max(0, len(grams) - n)] * _MIX + grams[n:]


def n_grams(hashes: Hashes, n: int) -> Hashes:
    """Hashes of `n` consecutive items; empty if there are fewer."""
    grams = hashes
    for _ in range(1, n):
        grams = longer(grams, hashes)
    return grams


_LOW = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # a mask of the first n of eight bytes
_SHORT = 64  # bytes; longer words are hashed one by one


def windows(raw: bytes) -> Hashes:
    """(byte,) The eight bytes that begin at each byte."""
    return np.ndarray((len(raw),), "<u8", raw + bytes(8), strides=(1,))


def word_hashes(raw: bytes, start: Ints, end: Ints) -> Hashes:
    """The hash of each span, fast for spans as short as words; its values differ from span_hashes."""
    eight, n = windows(raw), end - start
    hashes = mix((eight[start] & _LOW[np.minimum(n, 8)]) + n.astype(np.uint64) * _STEP)
    at, k = np.flatnonzero(n > 8), 8
    while len(at) and k < _SHORT:
        more = eight[start[at] + k] & _LOW[np.minimum(n[at] - k, 8)]
        hashes[at] = mix(hashes[at] * _STEP + more)
        k += 8
        at = at[n[at] > k]
    for i in at.tolist():
        digest = hashlib.blake2b(raw[start[i] : end[i]], digest_size=8).digest()
        hashes[i] = int.from_bytes(digest, "little")
    return hashes


def edge_hashes(raw: bytes, start: Ints, end: Ints) -> Hashes:
    """(span,) A hash of the length, the first eight bytes and the last eight."""
    eight, n = windows(raw), end - start
    low = _LOW[np.minimum(n, 8)]
    hashes = mix((eight[start] & low) + n.astype(np.uint64) * _STEP)
    return mix(hashes + (eight[np.maximum(end - 8, start)] & low))


def is_alpha(raw: bytes) -> Mask:
    """(byte,) Whether it belongs to a letter; every byte beyond ASCII does."""
    return np.frombuffer(raw.translate(_ALPHA), np.bool_)


def classes(raw: bytes, data: Bytes, is_ascii: bool) -> Bytes:
    """(byte,) The class of each."""
    byte_classes: Bytes = np.frombuffer(bytearray(raw).translate(_CLASS), np.uint8)
    if not is_ascii:
        _classify_unicode(data, byte_classes)
    is_digit = (data - np.uint8(48)) < 10
    is_point = ((data == 44) | (data == 46))[1:-1] & is_digit[:-2] & is_digit[2:]
    at = np.flatnonzero(data[1:-1] == 39) + 1
    is_inside = IS_ALPHA[data[at - 1]] & IS_ALPHA[data[at + 1]]
    at = at[is_inside & (byte_classes[at - 1] == WORD) & (byte_classes[at + 1] == WORD)]
    byte_classes[1:-1][is_point] = WORD
    byte_classes[at] = WORD
    return byte_classes


def _classify_unicode(data: Bytes, byte_classes: Bytes) -> None:
    """Spaces, punctuation and ideographs beyond ASCII, by the first two bytes of a character."""
    lead = np.flatnonzero(data >= 0xC2)
    lead = lead[lead + 2 < len(data)]
    first, second = data[lead], data[lead + 1]
    _set(
        byte_classes,
        lead[(first == 0xC2) & (second != 0xAA) & (second != 0xB5) & (second != 0xBA)],
        2,
        SYMBOL,
    )
    _set(byte_classes, lead[(first == 0xC2) & (second == 0xA0)], 2, SPACE)
    # U+2000 to U+2BFF: punctuation, currency, arrows, mathematics, boxes, dingbats. U+3000 to U+303F and
    # U+FF00 to U+FF0F: the same of East Asia.
    _set(byte_classes, lead[(first == 0xE2) & (second <= 0xAF)], 3, SYMBOL)
    _set(byte_classes, lead[(first == 0xE3) & (second == 0x80)], 3, SYMBOL)
    _set(byte_classes, lead[(first == 0xEF) & (second == 0xBC) & (data[lead + 2] <= 0x8F)], 3, SYMBOL)
    _set(byte_classes, lead[(first == 0xE3) & (second == 0x80) & (data[lead + 2] == 0x80)], 3, SPACE)
    # U+3040 to U+9FFF without U+3000 to U+303F: kana and Chinese characters.
    _set(
        byte_classes,
        lead[((first == 0xE3) & (second > 0x80)) | ((first >= 0xE4) & (first <= 0xE9))],
        3,
        IDEOGRAPH,
    )


def _set(byte_classes: Bytes, lead: Ints, n_bytes: int, value: int) -> None:
    for k in range(n_bytes):
        byte_classes[lead + k] = value


def runs(byte_classes: Bytes, data: Bytes, is_ascii: bool) -> tuple[Ints, Ints]:
    """Start and end of each run of one non-space class; an ideograph is a run by itself.

    The last byte is a space, as a line feed is.
    """
    differs = np.empty(len(byte_classes) + 1, np.bool_)
    differs[:1] = differs[-1:] = True
    np.not_equal(byte_classes[1:], byte_classes[:-1], out=differs[1:-1])
    if not is_ascii and (is_ideograph := byte_classes == IDEOGRAPH).any():
        differs[:-1] |= is_ideograph & ((data & 0xC0) != 0x80)
    is_text = byte_classes != SPACE
    return np.flatnonzero(differs[:-1] & is_text), np.flatnonzero(differs[1:] & is_text) + 1


def ends_with(data: Bytes, start: Ints, end: Ints, texts: tuple[bytes, ...]) -> Mask:
    """(span,) Whether it ends with one of `texts` (UTF-8, so that bytes decide)."""
    hit = np.zeros(len(end), np.bool_)
    may = np.zeros(256, np.bool_)
    may[[text[-1] for text in texts]] = True
    candidates = np.flatnonzero(end > start)
    candidates = candidates[may[data[end[candidates] - 1]]]
    for n in sorted({len(text) for text in texts}):
        at = candidates[end[candidates] - start[candidates] >= n]
        key = np.zeros(len(at), np.uint32)
        for k in range(n):
            key = (key << np.uint32(8)) | data[end[at] - n + k]
        for text in texts:
            if len(text) == n:
                hit[at] |= key == int.from_bytes(text, "big")
    return hit
