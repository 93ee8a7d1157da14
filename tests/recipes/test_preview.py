"""Which engine will answer, in how much memory and on which terms: known before a byte of weights."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from heredity.cli.pull import preview_lines
from heredity.core import registry
from heredity.core.errors import Damaged, Refused, Unavailable, UsageError
from heredity.core.terminal import parameters
from heredity.formats import architectures
from heredity.formats.architectures import ARCHITECTURES, choose_by_config, choose_for_gguf
from heredity.formats.gguf import read_gguf_start
from heredity.lineage.store import Store
from heredity.lineage.types import Preview
from heredity.recipes.pull import preview
from tests.support.errors import raises
from tests.support.model_sources import Server
from tests.support.played_hub import FIRST, REPO, Play

WEIGHTS = f"{REPO}/resolve/{FIRST}/model.safetensors"


@pytest.fixture
def has_slow_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine `transformers`, whether this version has it or not."""
    found = registry.names("engines")
    monkeypatch.setattr(
        registry, "names", lambda place: sorted({*found, "transformers"}) if place == "engines" else found
    )


# --- the choice ---


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_fast_engine_answers_what_it_reads(name: str) -> None:
    assert choose_by_config({"model_type": name}).engine == "torch"


def test_an_architecture_that_only_transformers_has_is_slower(has_slow_engine: None) -> None:
    found = choose_by_config({"model_type": "falcon"})
    assert (found.engine, found.architecture) == ("transformers", "falcon") and "falcon" in found.reason


def test_the_language_model_of_several_decides() -> None:
    found = choose_by_config({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
    assert (found.engine, found.architecture) == ("torch", "gemma3_text")


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"model_type": "bert"}, "encoder"),
        ({"model_type": "of-tomorrow"}, "of-tomorrow"),
        ({"model_type": "x" * 9999}, "xxx"),
    ],
)
def test_where_no_engine_fits_the_reason_is_named(config: dict[str, object], word: str) -> None:
    found = choose_by_config(config)
    assert found.engine == "" and word in found.reason and len(found.reason) < 200


def test_quantized_weights_need_their_package(has_slow_engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "aqlm", "in_group_size": 8}}
    real = architectures.find_spec
    monkeypatch.setattr(architectures, "find_spec", lambda name: None if name == "aqlm" else real(name))
    found = choose_by_config(config)
    assert found.engine == "" and "aqlm" in found.reason and found.quantization == "aqlm"
    there = ModuleSpec("aqlm", None)
    monkeypatch.setattr(architectures, "find_spec", lambda name: there if name == "aqlm" else real(name))
    assert choose_by_config(config).engine == "transformers"


@pytest.mark.parametrize("method", architectures.PACKED)
def test_packed_weights_need_no_package(method: str, has_slow_engine: None) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": method}}
    found = choose_by_config(config)
    assert (found.engine, found.quantization) == ("torch", method)
    assert choose_by_config({**config, "model_type": "falcon"}).engine == "transformers"


def test_without_torch_the_reason_is_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "find_spec", lambda name: None)
    for found in (choose_by_config({"model_type": "llama"}), choose_for_gguf("llama")):
        assert found.engine == "" and ".[torch]" in found.reason


@pytest.mark.slow
def test_what_transformers_has_is_read_without_loading_it() -> None:
    import subprocess

    code = (
        "import sys; from heredity.formats import architectures;"
        "assert {'llama', 'mixtral', 'phi3', 'gpt_neox'} <= architectures.causal_types();"
        "assert {'llama', 'qwen2'} <= architectures.gguf_types();"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


# --- the hub ---


def test_a_pull_tells_engine_memory_and_licence_before_it_asks_for_weights(
    store: Store, play: Play, files: dict[str, bytes], server: Server
) -> None:
    play(files)
    told: list[tuple[Preview, bool]] = []
    store.pull(f"hf:{REPO}", announce=lambda found: told.append((found, WEIGHTS in server.asked)))
    ((found, has_asked),) = told
    assert not has_asked and WEIGHTS in server.asked
    assert (found.name, found.engine, found.architecture) == ("tiny", "torch", "llama")
    assert found.licence == "mit" and not found.is_gated and found.is_exact
    assert found.n_bytes == sum(map(len, files.values()))
    assert found.parameters > 0 and found.memory == 2 * found.parameters and found.dtype == "bfloat16"


def test_a_preview_fetches_the_config_and_nothing_else(
    store: Store, play: Play, files: dict[str, bytes], server: Server
) -> None:
    play(files)
    assert store.preview("tiny").engine == "torch"
    assert [path for path in server.asked if "resolve" in path] == [f"{REPO}/resolve/{FIRST}/config.json"]
    assert store.models() == []


def test_a_model_that_is_there_is_not_announced(store: Store, play: Play, files: dict[str, bytes]) -> None:
    play(files)
    told: list[Preview] = []
    for _ in range(2):
        store.pull("tiny", announce=told.append)
    assert len(told) == 1


def test_a_gated_model_is_refused_before_its_weights(
    store: Store, play: Play, files: dict[str, bytes], server: Server
) -> None:
    play(files, gated="auto")
    server.errors |= {f"{REPO}/resolve/{FIRST}/{name}": (401, "GatedRepo") for name in files}
    with raises(Unavailable, "hub-gated", mentions=["HF_TOKEN"]):
        store.preview("tiny")
    assert WEIGHTS not in server.asked


def test_a_gguf_of_the_hub_is_known_by_its_first_bytes(
    store: Store, play: Play, server: Server, tiny_gguf: Path
) -> None:
    play({"a.gguf": tiny_gguf.read_bytes(), "b.gguf": b"GGUF"})
    found = store.preview(f"hf:{REPO}/a.gguf")
    assert (found.engine, found.architecture, found.quantization) == ("torch", "llama", "gguf")
    assert found.n_bytes == tiny_gguf.stat().st_size and "llamacpp:tiny" in found.instead
    assert server.ranges == ["bytes=0-65535"]
    with raises(Damaged, "damaged"):
        store.preview(f"hf:{REPO}/b.gguf")


def test_an_adapter_is_told_to_be_adopted_before_it_is_fetched(
    store: Store, play: Play, server: Server
) -> None:
    play({"adapter_config.json": b"{}", "adapter_model.safetensors": b"0" * 99})
    with raises(Refused, "adapter-config", mentions=[f"heredity adopt hf:{REPO}"]):
        store.preview(f"hf:{REPO}")
    assert not any("resolve" in path for path in server.asked)


@pytest.mark.parametrize(
    ("config", "error", "code"),
    [
        (b"{", Damaged, "damaged"),
        (b"[]", Damaged, "damaged"),
        (b"[" * 100_000, Damaged, "damaged"),
        (b" " * (5 << 20), Refused, "refused"),
    ],
    ids=["torn", "list", "deep", "large"],
)
def test_a_config_that_makes_no_sense_ends_before_the_weights(
    store: Store, play: Play, files: dict[str, bytes], server: Server,
    config: bytes, error: type[Exception], code: str,
) -> None:  # fmt: skip
    play({**files, "config.json": config})
    with raises(error, code):
        store.preview(f"hf:{REPO}")
    assert WEIGHTS not in server.asked


# --- this disk and the catalogue ---


def test_a_file_and_a_folder_are_known_by_their_headers(
    store: Store, tiny_gguf: Path, tiny_llama: Path
) -> None:
    of_file, of_folder = store.preview(str(tiny_gguf)), store.preview(str(tiny_llama))
    assert of_file.engine == of_folder.engine == "torch"
    assert of_file.parameters > 0 and of_file.memory == 2 * of_file.parameters
    assert of_folder.memory == 2 * of_folder.parameters and of_folder.chat is not None
    config = json.loads((tiny_llama / "config.json").read_text())
    assert of_folder.context == config["max_position_embeddings"]


def test_a_folder_with_an_adapter_has_no_preview_and_names_adopt(store: Store, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with raises(Refused, "adapter-config", mentions=["heredity adopt"]):
        store.preview(str(tmp_path))


def test_the_start_of_a_gguf_gives_its_settings(tiny_gguf: Path) -> None:
    data = tiny_gguf.read_bytes()
    for n in (24, 100, 1000, len(data)):
        assert read_gguf_start(data[:n]).tensors == ()
    assert read_gguf_start(data).text("general.architecture") == "llama"
    with raises(Damaged, "damaged"):
        read_gguf_start(b"GGUF")


def test_a_pinned_model_is_known_without_the_network(store: Store) -> None:
    found = store.preview("smollm2")
    assert (found.engine, found.parameters, found.licence) == ("torch", 135_000_000, "Apache-2.0")
    assert store.preview("all-minilm-l6-v2").engine == ""


@pytest.mark.parametrize(
    ("how", "memory"),
    [
        ({"quant_method": "gptq", "bits": 4}, 4000),
        ({"quant_method": "fp8"}, 2000),
        ({"quant_method": "mxfp4"}, 1000),
        ({"quant_method": "gptq", "bits": "four"}, 1000),
        ({"quant_method": "gptq", "bits": -1}, 1000),
    ],
)
def test_packed_weights_take_the_memory_of_bfloat16(how: dict[str, object], memory: int) -> None:
    config = {"model_type": "llama", "quantization_config": how}
    assert preview.of_config("m", config, 1000).memory == memory


def test_a_target_has_nothing_to_preview(store: Store) -> None:
    with raises(UsageError, "bad-usage", mentions=["remote:openai:gpt-5"]):
        store.preview("remote:openai:gpt-5")


# --- words ---

LLAMA = Preview(
    "big", "torch", "", "llama", n_bytes=16_060_000_000, parameters=8_030_000_000, dtype="bfloat16",
    memory=16_060_000_000, licence="mit", instead=("vllm:big", "remote:openai:big@http://HOST:PORT/v1"),
)  # fmt: skip


def test_too_little_memory_names_the_other_ways() -> None:
    lines = preview_lines(LLAMA, 8 << 30, "this machine")
    assert "8.0B" in lines[0] and "16.1 GB" in lines[2] and "8.6 GB" in lines[2]
    assert lines[3].startswith("  instead: vllm:big or remote:openai:big@")
    for free, where in ((64 << 30, "cuda:0"), (None, "")):
        lines = preview_lines(LLAMA, free, where)
        assert len(lines) == 4 and lines[3].startswith("  or: vllm:big or remote:")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx2 fma", "float32"),
        ("avx2 avx512_bf16", "bfloat16"),
        ("amx_bf16", "bfloat16"),
        ("", "bfloat16"),
    ],
)
def test_the_memory_is_that_of_the_dtype_in_which_this_processor_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, dtype: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(
        f"processor\t: 0\nflags\t\t: {flags}\n" if flags else "processor\t: 0\n"
    )
    found = preview.on_this_processor(LLAMA, tmp_path / "cpuinfo")
    assert (found.dtype, found.memory) == (dtype, LLAMA.memory * (2 if dtype == "float32" else 1))
    packed = replace(LLAMA, dtype="int8")
    assert preview.on_this_processor(packed, tmp_path / "cpuinfo") == packed


def test_a_slower_engine_and_none_say_why_and_what_else() -> None:
    slow = Preview("m", "transformers", "the fast engine does not read 'mixtral'", instead=("vllm:m",))
    none = Preview("m", "", "'bert' is an encoder, which writes no text", is_gated=True)
    assert "slower" in preview_lines(slow, None, "")[1] and "vllm:m" in preview_lines(slow, None, "")[2]
    assert "encoder" in preview_lines(none, None, "")[1] and "gated" in preview_lines(none, None, "")[2]


@pytest.mark.parametrize(
    ("n", "shown"),
    [(0, "0"), (52_416, "52K"), (134_515_008, "135M"), (8.03e9, "8.0B"), (4.06e11, "406B")],
)
def test_the_number_of_parameters_has_a_unit_that_shows_it(n: float, shown: str) -> None:
    assert parameters(n) == shown
