"""Faster parts for the reading of a GGUF by gguf and transformers: its metadata, names and blocks.

Promises: the same values, to the bit, as without them. The arithmetic of a block stays gguf's own.
Leaves to others: checking the file (gguf.py), which comes first.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Protocol

import gguf
import numpy as np
from gguf import GGUFValueType, quants
from numpy.typing import DTypeLike, NDArray
from transformers import modeling_gguf_pytorch_utils as legacy

from heredity.core.host import n_cores

_GROUP = 1 << 17  # weights computed at once: their intermediate values stay in the processor's cache
_Parts = tuple[int, list[object], list[int], list[object]]  # bytes read, parts, places of the values, types


class _Reader(Protocol):
    """The parts of a gguf.GGUFReader that are used here."""

    data: NDArray[np.uint8]
    gguf_scalar_to_np: Mapping[object, type[np.generic]]


@contextmanager
def quick_gguf() -> Iterator[None]:
    """Read each GGUF once, and its blocks on all cores; the libraries are as before at the end.

    transformers reads a file three times, and makes the map of tensor names once for each module of a model.
    The files are ones that `read_gguf` has checked. A part that the installed versions lack is left out.
    """
    quick: tuple[tuple[object, str, Callable[..., object]], ...] = (
        (gguf, "GGUFReader", cache),
        (gguf, "get_tensor_name_map", cache),
        (gguf.GGUFReader, "_get_field_parts", _quick_field_parts),
        (quants, "_apply_over_grouped_rows", lambda _: _apply_over_rows),
        (legacy, "_gguf_parse_value", _quick_value),
    )
    replaced = [
        (place, name, vars(place)[name], change) for place, name, change in quick if name in vars(place)
    ]
    try:
        for place, name, before, change in replaced:
            setattr(place, name, change(before))
        yield
    finally:
        for place, name, before, _ in replaced:
            setattr(place, name, before)


def _quick_field_parts(slow: Callable[[_Reader, int, int], _Parts]) -> Callable[[_Reader, int, int], _Parts]:
    """gguf's reading of a field, with a short way for arrays.

    gguf slices a numpy.memmap three times for each token and each merge, which takes most of the time of a
    small model. Here an element is a tuple of one number, or bytes.
    """

    def field_parts(reader: _Reader, orig_offs: int, raw_type: int) -> _Parts:
        if raw_type != GGUFValueType.ARRAY:
            return slow(reader, orig_offs, raw_type)
        reader.data = np.asarray(reader.data)  # a memmap looks for its file at every slice of a tensor
        data, at = reader.data.data, orig_offs + 12
        number, count = struct.unpack_from("<IQ", data, orig_offs)
        kind = GGUFValueType(number)
        types: list[object] = [GGUFValueType.ARRAY, *([kind] if count else [])]
        head: list[object] = [np.array([number], np.uint32), np.array([count], np.uint64)]
        if kind != GGUFValueType.STRING:
            values = np.frombuffer(data, reader.gguf_scalar_to_np[kind], count, at)
            return 12 + values.nbytes, [*head, *zip(values.tolist())], list(range(2, 2 + count)), types
        texts = []
        for _ in range(count):
            (length,) = struct.unpack_from("<Q", data, at)
            texts.append(((length,), bytes(data[at + 8 : at + 8 + length])))
            at += 8 + length
        return at - orig_offs, [*head, *chain(*texts)], list(range(3, 3 + 2 * count, 2)), types

    return field_parts


def _quick_value(slow: Callable[[object, object], object]) -> Callable[[object, object], object]:
    """transformers' reading of one value, with a short way for the elements of `_quick_field_parts`."""

    def value(part: object, types: object) -> object:
        if isinstance(part, bytes):
            return part.decode()
        return part[0] if isinstance(part, tuple) else slow(part, types)

    return value


def _apply_over_rows(
    func: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    arr: NDArray[np.uint8],
    otype: DTypeLike,
    oshape: tuple[int, ...],
) -> NDArray[np.float32]:
    """gguf's loop over the rows of a tensor, in larger groups and on all cores. The arguments are gguf's."""
    rows = arr.reshape(-1, arr.shape[-1])
    out = np.empty((len(rows), math.prod(oshape) // len(rows)), otype)
    n_rows = max(1, _GROUP // out.shape[1])

    def group(start: int) -> None:
        some = rows[start : start + n_rows]
        out[start : start + n_rows] = func(some).reshape(len(some), -1)

    with ThreadPoolExecutor(n_cores()) as pool:
        list(pool.map(group, range(0, len(rows), n_rows)))
    return out.reshape(oshape)
