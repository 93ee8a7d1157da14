"""The faster reading of a GGUF gives what gguf and transformers give without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import gguf
from gguf import quants
from transformers import modeling_gguf_pytorch_utils as legacy

from heredity.formats.gguf_weights import quick_gguf

_BLOCKS = [kind for kind in gguf.GGMLQuantizationType if hasattr(quants, kind.name)]
_ODD_ARRAYS = ("numbers", "flags", "shares", "words")


@pytest.fixture
def odd_gguf(tmp_path: Path) -> Path:
    """A file whose arrays are of whole numbers, of flags, of shares, and of text beyond ASCII."""
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_array("numbers", [3, -2, 70000])
    writer.add_array("flags", [True, False])
    writer.add_array("shares", [0.1, -2.5])
    writer.add_array("words", ["", "a", "Ġé", "日本"])
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "odd.gguf"


def test_every_value_of_the_metadata_is_the_same(tiny_gguf: Path, odd_gguf: Path) -> None:
    for path in (tiny_gguf, odd_gguf):
        known = gguf.GGUFReader(path)
        with quick_gguf():
            read = gguf.GGUFReader(path)
            values = {name: legacy.read_field(read, name) for name in read.fields}
        assert values == {name: legacy.read_field(known, name) for name in known.fields}
        assert values == {
            name: legacy.read_field(read, name) for name in read.fields
        }  # without the short way


def test_the_values_of_an_array_keep_their_type(odd_gguf: Path) -> None:
    with quick_gguf():
        read = {name: legacy.read_field(gguf.GGUFReader(odd_gguf), name) for name in _ODD_ARRAYS}
    assert [type(read[name][0]) for name in _ODD_ARRAYS] == [int, bool, float, str]
    assert read["words"] == ["", "a", "Ġé", "日本"]


def test_every_tensor_has_the_same_bytes(tiny_gguf: Path) -> None:
    known = gguf.GGUFReader(tiny_gguf).tensors
    with quick_gguf():
        read = gguf.GGUFReader(tiny_gguf).tensors
    assert [tensor.name for tensor in known] == [tensor.name for tensor in read]
    for one, other in zip(known, read, strict=True):
        assert one.tensor_type == other.tensor_type
        assert one.data.dtype == other.data.dtype
        assert np.array_equal(one.data, other.data)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of scales that are not finite
@pytest.mark.parametrize("kind", _BLOCKS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("n_rows", [1, 1025])
def test_every_kind_of_block_has_the_same_weights_to_the_bit(
    kind: gguf.GGMLQuantizationType, n_rows: int
) -> None:
    _, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(0).integers(0, 256, (n_rows, 2 * n_bytes), dtype=np.uint8)
    known = gguf.dequantize(packed, kind)
    with quick_gguf():
        read = gguf.dequantize(packed, kind)
    assert read.shape == known.shape
    assert read.tobytes() == known.tobytes()


def test_the_libraries_are_as_before_also_after_an_error() -> None:
    def parts() -> tuple[object, ...]:
        rows, fields = quants._apply_over_grouped_rows, gguf.gguf_reader.GGUFReader._get_field_parts
        return gguf.GGUFReader, fields, gguf.get_tensor_name_map, rows, legacy._gguf_parse_value

    before = parts()
    with pytest.raises(ZeroDivisionError), quick_gguf():
        assert not set(map(id, parts())) & set(map(id, before))
        raise ZeroDivisionError
    assert parts() == before
