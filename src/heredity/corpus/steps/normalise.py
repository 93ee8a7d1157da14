"""Normalise text: NFC, line feeds for every line end, no control characters, no spaces around it.

Line ends of every kind (Unicode's line separators, NEL, form feed) become a line feed; other control
characters, byte order marks and non-characters go. Tabs stay. A document of which nothing is left is dropped.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np

from heredity.corpus.steps import DocumentTransform, TransformedBatch
from heredity.corpus.text import Mask, TextBatch

_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufdd0-\ufdef\ufffe\uffff]")


class Normalise(DocumentTransform, frozen=True, kw_only=True):
    """It has no settings."""

    def write(self, batch: TextBatch, alive: Mask) -> TransformedBatch:
        changed = {}
        for i in batch.documents_with(batch.data == 13):
            changed[i] = batch[i].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        data = batch.data
        odd: Mask = ((data < 32) & (data != 9) & (data != 10) & (data != 13)) | (data == 127)
        if not batch.is_ascii:
            first, second = data[:-1], data[1:]
            odd[:-1] |= (first == 0xC2) & (second < 0xA0)
            odd[:-1] |= (first == 0xEF) & ((second == 0xBB) | (second == 0xB7) | (second == 0xBF))
            odd[:-2] |= (
                (first[:-1] == 0xE2) & (second[:-1] == 0x80) & ((data[2:] == 0xA8) | (data[2:] == 0xA9))
            )
        for i in batch.documents_with(odd):
            before = changed.get(i, batch[i])
            if (after := normalised(before.decode()).encode()) != before:
                changed[i] = after
        batch = batch.replace(changed)
        again = {}
        for i in _uncertain(batch):
            text = batch[i].decode()
            if (composed := _composed(text)) != text:
                again[i] = composed.encode()
        edges = batch.data[batch.start], batch.data[np.maximum(batch.end - 1, 0)]
        for i in np.flatnonzero(((edges[0] <= 32) | (edges[1] <= 32)) & (batch.lengths > 0)).tolist():
            again[i] = again.get(i, batch[i]).strip()
        return TransformedBatch(batch.replace(again), sum(bool(alive[i]) for i in changed | again))


def normalised(text: str) -> str:
    """A text, normalised."""
    text = _CONTROL.sub("", _ENDS.sub("\n", text))
    return _composed(text)


def _composed(text: str) -> str:
    """NFC, without spaces around it, including those beyond ASCII."""
    return (text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)).strip()


def _uncertain(batch: TextBatch) -> set[int]:
    """The documents that may not be NFC, or have a space beyond ASCII around them.

    Characters below U+0300 are NFC, and so are the dashes, quotes and dots from U+2010 to U+2027.
    """
    if batch.is_ascii:
        return set()
    data = batch.data
    at = np.flatnonzero(data >= 0xCC)
    is_mark = (data[at] == 0xE2) & (data[at + 1] == 0x80) & (data[at + 2] >= 0x90) & (data[at + 2] <= 0xA7)
    hits = np.zeros(len(data), np.bool_)
    hits[at[~is_mark]] = True
    first, last = batch.data[batch.start], batch.data[np.maximum(batch.end - 1, 0)]
    is_edge = (first <= 32) | (last <= 32) | (first >= 0x80) | (last >= 0x80)
    uncertain: list[int] = np.flatnonzero(is_edge).tolist()
    edges = {i for i in uncertain if not batch[i].isascii()}
    return edges.union(batch.documents_with(hits))


STEP = Normalise
