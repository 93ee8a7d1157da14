"""Marks of the answers that a judge learned from, which go with its weights: figures on them say too much.

Promises: a mark is 32 bits of a hash, so that no answer can be read from it, and about one answer in a
million is taken for one that it is not; spaces and line breaks make no difference.
Leaves to others: saying so (`heredity judges calibrate`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "learned.from"  # of the array beside the weights
_LEAST = 40  # characters; a shorter answer is given by many ("I'm sorry, but I can't help with that.")


def marks(texts: Iterable[str]) -> NDArray[np.uint32]:
    """The marks of these answers, sorted, each once."""
    return np.array(sorted({_mark(text) for text in texts if _is_long(text)}), np.uint32)


def count(arrays: Mapping[str, Any], texts: Iterable[str]) -> int:
    """How many of these answers are among those that the weights were learned from."""
    known = {int(each) for each in arrays.get(NAME, ())}
    return sum(_is_long(text) and _mark(text) in known for text in texts)


def _is_long(text: str) -> bool:
    return len(text.strip()) >= _LEAST


def _mark(text: str) -> int:
    plain = " ".join(text.split()).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(plain, digest_size=4).digest(), "big")
