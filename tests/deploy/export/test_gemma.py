"""A Gemma 3 as one GGUF: llama.cpp and transformers say what it says, or it is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from heredity.core.errors import Refused
from heredity.core.records import FileHash
from heredity.deploy import export
from heredity.engines.chat import read_gguf_chat
from heredity.formats import gguf_weights
from heredity.formats.gguf import read_gguf
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.dequantize import Dequantize
from heredity.recipes.quantize import Quantize
from tests.support.errors import raises
from tests.support.gemma import TEMPLATE, make_gemma


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_every_reader_agrees_on_a_gemma(store: Store, tmp_path: Path, template: str | None) -> None:
    model = store.pull(str(make_gemma(tmp_path / "tiny", template)))
    done = export.export(store, model, "gguf", tmp_path / "out")
    assert [p.reader for p in done.parities] == ["the GGUF, read back,", "llama.cpp"]
    assert all(p.left_out or (p.n > 0 and p.largest <= p.tolerance) for p in done.parities)
    (path,) = done.folder.glob("*.gguf")
    said = read_gguf(path).metadata
    assert said["general.architecture"] == "gemma3" and said["tokenizer.ggml.model"] == "llama"
    assert said["gemma3.attention.sliding_window"] == 24 and said["gemma3.rope.freq_base"] == 1e6
    assert said["tokenizer.ggml.add_space_prefix"] is False and said["tokenizer.ggml.add_bos_token"] is True
    assert said.get("tokenizer.ggml.eot_token_id") == (6 if template else None)
    kinds = said["tokenizer.ggml.token_type"]
    assert [kinds[at] for at in (0, 6, 7, 10, 300, 639)] == [3, 3, 4, 6, 1, 5]
    assert "output.weight" not in {tensor.name for tensor in read_gguf(path).tensors}


def test_a_quantized_gemma_is_read_back_and_asked(store: Store, tmp_path: Path) -> None:
    parent = store.pull(str(make_gemma(tmp_path / "tiny")))
    child = store.grow_once(Quantize("q4_0"), [parent])
    done = export.export(store, child, "gguf", tmp_path / "out")
    assert all(p.left_out or not p.problem for p in done.parities)


def test_a_stretched_rotation_comes_back_as_it_was_written(store: Store, tmp_path: Path) -> None:
    ropes = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    model = store.pull(str(make_gemma(tmp_path / "tiny", rope_parameters=ropes)))
    done = export.export(store, model, "gguf", tmp_path / "out")
    assert all(p.left_out or p.n for p in done.parities)
    whole = store.ready(store.pull(str(next(done.folder.glob("*.gguf")))))
    assert json.loads((whole.folder / "config.json").read_text())["rope_parameters"] == ropes


def test_norms_that_were_written_as_transformers_holds_them_are_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = store.pull(str(make_gemma(tmp_path / "tiny")))
    made = gguf_weights._as_llama_cpp

    def unlike(*given: Any) -> Any:
        return made(*given) - (1 if given[1].endswith("norm.weight") else 0)

    monkeypatch.setattr(gguf_weights, "_as_llama_cpp", unlike)
    with raises(Refused, "refused"):
        export.export(store, model, "gguf", tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"query_pre_attn_scalar": 64}, ("refused", ["64"])),
        ({"sliding_window_pattern": 3}, ("refused", [])),
        ({"final_logit_softcapping": 30.0}, ("refused", [])),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5e4},
                }
            },
            ("refused", []),
        ),
    ],
)
def test_what_llama_cpp_settles_otherwise_is_refused(
    store: Store, tmp_path: Path, settings: dict[str, Any], said: tuple[str, list[str]]
) -> None:
    model = store.pull(str(make_gemma(tmp_path / "tiny", **settings)))
    with raises(Refused, *said):
        store.grow_once(Quantize(), [model])


def _drop_a_merge(said: dict[str, Any]) -> None:
    said["model"]["merges"] = [m for m in said["model"]["merges"] if m != ["▁qui", "c"]]


def _turn_merges(said: dict[str, Any]) -> None:
    said["model"]["merges"].reverse()


def _prepend(said: dict[str, Any]) -> None:
    steps = [{"type": "Prepend", "prepend": "▁"}, said["normalizer"]]
    said["normalizer"] = {"type": "Sequence", "normalizers": steps}


def _strip(said: dict[str, Any]) -> None:
    said["added_tokens"][-1]["lstrip"] = True


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop_a_merge, ("refused", ["llama.cpp"])),
        (_turn_merges, ("refused", [])),
        (_prepend, ("refused", [])),
        (_strip, ("refused", [])),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_not_follow_is_refused(
    store: Store, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: tuple[str, list[str]]
) -> None:
    folder = make_gemma(tmp_path / "tiny")
    read = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(read)
    (folder / "tokenizer.json").write_text(json.dumps(read, ensure_ascii=False), "utf-8")
    model = store.pull(str(folder))
    with raises(Refused, *said):
        store.grow_once(Quantize(), [model])


def test_a_gguf_that_says_more_of_a_gemma_than_others_is_read_as_it_says(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another period of windows and another base of them, which newer conversions may name."""
    written = gguf_weights.add_gemma_shape

    def more(writer: Any, config: Any) -> None:
        written(writer, config)
        writer.add_sliding_window_pattern(3)
        writer.add_rope_freq_base_swa(5e4)

    monkeypatch.setattr(gguf_weights, "add_gemma_shape", more)
    path = tmp_path / "more.gguf"
    folder = make_gemma(tmp_path / "tiny")
    gguf_weights.write_gguf(folder, path, "f32", "more", read_gguf_chat)
    parent = store.pull(str(folder))
    written_as = _with(parent, path)
    (out := tmp_path / "back").mkdir()
    Dequantize("float32").apply([written_as], out)
    config = json.loads((out / "config.json").read_text())
    assert [at for at, kind in enumerate(config["layer_types"]) if kind == "full_attention"] == [2, 5]
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 5e4
    assert config["query_pre_attn_scalar"] == 32


def _with(parent: Grown, path: Path) -> Grown:
    import msgspec

    files = (FileHash(path.name, path.stat().st_size, ""),)
    return Grown(msgspec.structs.replace(parent.record, format="gguf", files=files), path.parent)


@pytest.mark.models
@pytest.mark.proof
def test_the_real_gemma_goes_out_without_loss(tmp_path: Path) -> None:
    store = Store()
    model = store.whole(store.pull("gemma-3-270m"))
    done = export.export(store, model, "gguf", tmp_path / "out")
    back, *rest = done.parities
    assert back.n > 0 and back.largest == 0.0
    assert all(p.left_out or p.largest < 0.1 for p in rest)
