"""Read a GGUF header without trusting a number in it.

Promises: the size of the file bounds every allocation and loop. An accepted file has its magic, a known
version and well-formed metadata. Its tensors are inside the file and do not overlap. Anything else is
Damaged, with the reason.

Format: the GGUF specification of the ggml project, versions 2 and 3, little endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from heredity.core.errors import Damaged

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
Scalar = int | float | bool
GgufValue = Scalar | str | tuple[Scalar, ...] | tuple[str, ...]
_MAX_DIMENSIONS = 4  # of a ggml tensor


class GgufChat(NamedTuple):
    """The chat of a GGUF: its template, and the token that ends an answer."""

    template: str
    answer_end: int


GgufChatReader = Callable[[Path], GgufChat]


class GgufTensor(NamedTuple):
    """One tensor: its name, shape (fastest axis first), ggml type number, and place in the file in bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    end: int


class GgufHeader(NamedTuple):
    """The header of a GGUF. Arrays in `metadata` are tuples."""

    version: int
    metadata: dict[str, GgufValue]
    tensors: tuple[GgufTensor, ...]

    def text(self, key: str) -> str:
        """Return a text of the metadata; "" if the key is missing."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The vocabulary: the text of each token."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return tuple(map(str, tokens)) if isinstance(tokens, tuple) else ()

    def special_id(self, name: str) -> int | None:
        """Return the id of a special token: "bos", "eos" or "eot". None if it is missing."""
        token_id = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return token_id if isinstance(token_id, int) else None

    def special(self, name: str) -> str:
        """Return the text of a special token; "" if it is missing."""
        ident, tokens = self.special_id(name), self.tokens
        return tokens[ident] if ident is not None and 0 <= ident < len(tokens) else ""


def read_gguf(path: Path) -> GgufHeader:
    """Check a GGUF file and read its header. Raises Damaged, with what is wrong, for anything malformed."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise Damaged("the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Cursor(data))
    except Damaged as error:
        raise Damaged(f"{path}: not a whole GGUF file: {error}. Get it again.") from error


def read_gguf_start(start: bytes) -> GgufHeader:
    """The settings at the beginning of a GGUF of which only the first bytes are here, without its tensors.

    Stops where the bytes end: settings come before the vocabulary. Raises Damaged for another kind of file.
    """
    cursor = _Cursor(start)
    try:
        version, _, n_metadata = _read_counts(cursor)
    except Damaged as error:
        raise Damaged(f"not a GGUF file: {error}") from error
    metadata: dict[str, GgufValue] = {}
    with suppress(Damaged):  # the file goes on
        for _ in range(n_metadata):
            key, value = _entry(cursor)
            metadata[key] = value
    return GgufHeader(version, metadata, ())


class _Cursor:
    """A place in the bytes that refuses to step past their end."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data, self.at, self.size = data, 0, len(data)

    def need(self, n_bytes: int, what: str) -> None:
        if n_bytes > self.size - self.at:
            raise Damaged(f"cut off at byte {self.size:,} inside {what}")

    def take(self, form: str, what: str) -> Scalar:
        n_bytes = struct.calcsize(form)
        self.need(n_bytes, what)
        value: Scalar
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += n_bytes
        return value

    def count(self, what: str, form: str = "<Q") -> int:
        return int(self.take(form, what))

    def text(self, what: str) -> str:
        n_bytes = self.count(what)
        self.need(n_bytes, what)
        raw = self.data[self.at : self.at + n_bytes]
        self.at += n_bytes
        return raw.decode("utf-8", errors="replace")  # vocabularies hold lone bytes


def _read_counts(cursor: _Cursor) -> tuple[int, int, int]:
    """Read the version, and the numbers of tensors and of metadata entries."""
    cursor.need(4, "the magic number")
    if cursor.data[:4] != b"GGUF":
        raise Damaged("it does not begin with GGUF")
    cursor.at = 4
    version = cursor.count("the version", "<I")
    if version not in (2, 3):
        raise Damaged(f"version {version} is not 2 or 3 (little endian)")
    return version, cursor.count("the counts"), cursor.count("the counts")


def _read(cursor: _Cursor) -> GgufHeader:
    version, n_tensors, n_metadata = _read_counts(cursor)
    # The smallest entries: an empty key, a type, a byte; an empty name, one axis, a type, an offset.
    cursor.need(13 * n_metadata, f"{n_metadata:,} metadata entries")
    metadata = dict(_entry(cursor) for _ in range(n_metadata))
    cursor.need(32 * n_tensors, f"{n_tensors:,} tensor entries")
    if not n_tensors:
        raise Damaged("it holds no tensors")
    raw = [_tensor(cursor) for _ in range(n_tensors)]
    return GgufHeader(version, metadata, _place(raw, cursor, metadata))


def _entry(cursor: _Cursor) -> tuple[str, GgufValue]:
    key = cursor.text("a metadata key")
    return key, _value(cursor, cursor.count("a metadata type", "<I"), key[:80])


def _value(cursor: _Cursor, kind: int, key: str) -> GgufValue:
    if kind == _STRING:
        return cursor.text(f"{key!r}")
    if kind in _SCALARS:
        return cursor.take(_SCALARS[kind], f"{key!r}")
    if kind != _ARRAY:
        raise Damaged(f"{key!r} has the unknown type {kind}")
    return _array(cursor, key)


def _array(cursor: _Cursor, key: str) -> tuple[Scalar, ...] | tuple[str, ...]:
    kind, count = cursor.count(f"{key!r}", "<I"), cursor.count(f"{key!r}")
    if kind == _STRING:
        cursor.need(8 * count, f"the {count:,} texts of {key!r}")
        return tuple(cursor.text(f"{key!r}") for _ in range(count))
    if kind not in _SCALARS:
        raise Damaged(f"{key!r} is an array of the unknown type {kind}")
    form = _SCALARS[kind][1]
    cursor.need(count * struct.calcsize(f"<{form}"), f"the {count:,} numbers of {key!r}")
    values: tuple[Scalar, ...] = struct.unpack_from(f"<{count}{form}", cursor.data, cursor.at)
    cursor.at += count * struct.calcsize(f"<{form}")
    return values


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("a tensor's name")
    what = f"tensor {name[:80]!r}"
    n_dimensions = cursor.count(what, "<I")
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise Damaged(f"{what} has {n_dimensions} dimensions")
    shape = tuple(cursor.count(what) for _ in range(n_dimensions))
    return name, shape, cursor.count(what, "<I"), cursor.count(what)


def _place(
    raw: list[tuple[str, tuple[int, ...], int, int]], cursor: _Cursor, metadata: dict[str, GgufValue]
) -> tuple[GgufTensor, ...]:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment not in [1 << power for power in range(17)]:
        raise Damaged(f"general.alignment is {str(alignment)[:20]}, not a power of two")
    base = -(-cursor.at // alignment) * alignment
    tensors = []
    for name, shape, kind, offset in raw:
        if offset % alignment:
            raise Damaged(f"tensor {name[:80]!r} does not begin on a multiple of {alignment}")
        if kind not in _blocks():
            raise Damaged(f"tensor {name[:80]!r} has the unknown type {kind}")
        per_block, block_bytes = _blocks()[kind]
        if not math.prod(shape) or shape[0] % per_block:
            raise Damaged(f"tensor {name[:80]!r} has a shape {list(shape)} that its type cannot have")
        tensors.append(
            GgufTensor(
                name,
                shape,
                kind,
                base + offset,
                base + offset + (math.prod(shape) // per_block * block_bytes),
            )
        )
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise Damaged("two tensors have one name")
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        if tensor.start < end:
            raise Damaged(f"tensor {tensor.name[:80]!r} lies over another")
        if tensor.end > cursor.size:
            raise Damaged(
                f"cut off: tensor {tensor.name[:80]!r} ends at byte {tensor.end:,} of {cursor.size:,}"
            )
        end = tensor.end
    return tuple(tensors)


@cache
def _blocks() -> dict[int, tuple[int, int]]:
    """ggml type number -> weights a block, bytes a block."""
    from gguf import GGML_QUANT_SIZES

    return {int(kind): (int(n), int(size)) for kind, (n, size) in GGML_QUANT_SIZES.items()}
