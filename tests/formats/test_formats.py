"""The two header parsers against truth, truncation and noise."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from heredity.core.errors import Damaged
from heredity.formats.gguf import read_gguf
from heredity.formats.safetensors_io import read_safetensors
from tests.support.clock import computing_within
from tests.support.errors import raises

Changes = list[tuple[int, bytes]]  # place, what is written there


def gguf_is_read_or_damaged(path: Path, data: bytes) -> bool:
    """The property that bench/ runs 10,000 times: any bytes give a header inside the file, or Damaged."""
    path.write_bytes(data)
    try:
        header = read_gguf(path)
    except Damaged as error:
        assert "\n" not in str(error) and "\x1b" not in str(error)  # a hostile name stays on the line
        return False
    assert all(0 <= tensor.start < tensor.end <= len(data) for tensor in header.tensors)
    return True


def safetensors_is_read_or_damaged(path: Path, data: bytes) -> bool:
    """The same property for safetensors."""
    path.write_bytes(data)
    try:
        tensors = read_safetensors(path)
    except Damaged as error:
        assert "\n" not in str(error) and "\x1b" not in str(error)
        return False
    assert sum(t.data_offsets[1] - t.data_offsets[0] for t in tensors.values()) < len(data)
    return True


def mutate(data: bytes, changes: Changes, length: int | None) -> bytes:
    """Overwrite places of a real file and cut it: noise that gets past the magic."""
    noisy = bytearray(data)
    for place, what in changes:
        at = place % len(noisy)
        noisy[at : at + len(what)] = what
    return bytes(noisy if length is None else noisy[: length % (len(noisy) + 1)])


NUMBERS = st.sampled_from([0, 1, 2, 31, 32, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
BITS = st.one_of(st.binary(min_size=1, max_size=12), NUMBERS.map(lambda n: struct.pack("<Q", n)))
CHANGES = st.lists(st.tuples(st.integers(0, 1500), BITS), max_size=4)
CUT = st.one_of(st.none(), st.integers(0, 10_000))


@settings(max_examples=400, deadline=None)
@given(changes=CHANGES, cut=CUT)
def test_a_noisy_gguf_is_read_or_damaged(
    tiny_gguf: Path,
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[int, bytes]],
    cut: int | None,
) -> None:
    data = mutate(tiny_gguf.read_bytes(), changes, cut)
    gguf_is_read_or_damaged(tmp_path_factory.getbasetemp() / "noisy.gguf", data)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), version=st.sampled_from([2, 3]))
def test_any_bytes_after_the_magic_are_read_or_damaged(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, version: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.gguf"
    gguf_is_read_or_damaged(path, b"GGUF" + struct.pack("<I", version) + data)


def safetensors_bytes(tmp_path: Path) -> bytes:
    path = tmp_path / "real.safetensors"
    save_file({"a": np.ones((3, 4), np.float32), "b": np.ones(5, np.float16)}, path, {"format": "np"})
    return path.read_bytes()


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(changes=CHANGES, cut=CUT)
def test_a_noisy_safetensors_is_read_or_damaged(
    tmp_path_factory: pytest.TempPathFactory, changes: Changes, cut: int | None
) -> None:
    folder = tmp_path_factory.getbasetemp()
    safetensors_is_read_or_damaged(folder / "noisy.st", mutate(safetensors_bytes(folder), changes, cut))


ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "X"]),
        "shape": st.lists(st.integers(-1, 2**70), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 2**70) | st.integers(0, 16), min_size=1, max_size=3),
    }
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(header=st.dictionaries(st.text(max_size=5), ENTRY, max_size=3), n_data=st.integers(0, 32))
def test_any_well_formed_header_is_read_or_damaged(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, object], n_data: int
) -> None:
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(n_data)
    safetensors_is_read_or_damaged(tmp_path_factory.getbasetemp() / "header.st", data)


def test_a_real_gguf_reads_as_the_gguf_package_reads_it(tiny_gguf: Path) -> None:
    from gguf import GGUFReader

    ours, theirs = read_gguf(tiny_gguf), GGUFReader(tiny_gguf)
    assert [(t.name, list(t.shape), t.type, t.start) for t in ours.tensors] == [
        (t.name, t.shape.tolist(), int(t.tensor_type), t.data_offset) for t in theirs.tensors
    ]
    assert all(t.end - t.start == int(r.n_bytes) for t, r in zip(ours.tensors, theirs.tensors, strict=True))
    for key, value in ours.metadata.items():
        said = theirs.fields[key].contents()
        assert (list(value) if isinstance(value, tuple) else value) == said, key


def test_a_real_safetensors_reads_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "real.safetensors"
    path.write_bytes(safetensors_bytes(tmp_path))
    tensors = read_safetensors(path)
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
        "a": ("F32", [3, 4]),
        "b": ("F16", [5]),
    }


def test_every_cut_of_a_file_is_damaged(tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    assert gguf_is_read_or_damaged(tmp_path / "a.gguf", whole)
    for cut in (0, 3, 4, 8, 20, 24, 100, 5_000, len(whole) // 2, len(whole) - 1):
        assert not gguf_is_read_or_damaged(tmp_path / "a.gguf", whole[:cut])
    st_whole = safetensors_bytes(tmp_path)
    for cut in range(len(st_whole)):
        assert not safetensors_is_read_or_damaged(tmp_path / "a.st", st_whole[:cut])


@pytest.mark.parametrize("counts", [(2**63, 1), (1, 2**63), (2**64 - 1, 2**64 - 1)])
def test_a_huge_count_is_damage_and_not_an_allocation(tmp_path: Path, counts: tuple[int, int]) -> None:
    path = tmp_path / "huge.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(64))
    with raises(Damaged, "damaged", mentions=["huge.gguf"]):
        read_gguf(path)


def test_a_huge_safetensors_header_is_damage_and_not_an_allocation(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with raises(Damaged, "damaged"):
        read_safetensors(path)


def test_overlapping_tensors_are_damage(tmp_path: Path) -> None:
    entry = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
    text = json.dumps({"a": entry, "b": {**entry, "data_offsets": [4, 12]}}).encode()
    path = tmp_path / "overlap.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    with raises(Damaged, "damaged"):
        read_safetensors(path)


def test_a_deeply_nested_header_is_damage(tmp_path: Path) -> None:
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    path = tmp_path / "nested.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with raises(Damaged, "damaged", [path]):
        read_safetensors(path)


def header_of(path: Path, shape: str, n_data: int = 0) -> Path:
    """A safetensors file of one tensor whose shape is spelt like this."""
    said = f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{n_data}]}}}}'.encode()
    path.write_bytes(len(said).to_bytes(8, "little") + said + bytes(n_data))
    return path


@pytest.mark.parametrize(
    "shape",
    [
        f"[{','.join(['9223372036854775807'] * 33_600)}]",  # 672 kB: their product has two million bits
        f"[{','.join(['1'] * 17)}]",
        f"[{2**63}]",
        f"[0,{2**63}]",
        f"[{'9' * 600_000}]",
        f"[{'9' * 600_000}e0]",
        "[-1]",
        "[1.0]",
    ],
)
def test_axes_are_few_and_small_or_it_is_damage_at_once(shape: str, tmp_path: Path) -> None:
    path = header_of(tmp_path / "axes.safetensors", shape)
    with computing_within(1), raises(Damaged, "damaged", [path]):
        read_safetensors(path)


@pytest.mark.slow
def test_a_long_header_takes_time_by_its_length(tmp_path: Path) -> None:
    largest = f"[{','.join(['9223372036854775807'] * 15)},0]"
    entry = f'{{"dtype":"F32","shape":{largest},"data_offsets":[0,0]}}'
    said = ("{" + ",".join(f'"{i}":{entry}' for i in range(20_000)) + "}").encode()  # 7.6 MB
    path = tmp_path / "long.safetensors"
    path.write_bytes(len(said).to_bytes(8, "little") + said)
    with computing_within(4):
        assert len(read_safetensors(path)) == 20_000


def test_sixteen_axes_are_read(tmp_path: Path) -> None:
    path = header_of(tmp_path / "axes.safetensors", f"[{','.join(['1'] * 15)},2]", 8)
    assert read_safetensors(path)["a"].shape == [1] * 15 + [2]
