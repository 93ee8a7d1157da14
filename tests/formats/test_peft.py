"""The torch engine reads what PEFT writes: its logits are PEFT's, applied and merged. The rest is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from heredity.core.errors import Damaged, Unavailable
from heredity.formats.peft import read_adapter
from heredity.recipes.merge_adapter import merge
from tests.support.errors import raises
from tests.support.peft_adapters import engine_logits, make_adapter, peft_logits
from tests.support.tiny_models import make_model

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*\.(q|down)_proj"},
    "rank_pattern": {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 3}},
    "alpha_pattern": {
        "target_modules": "all-linear",
        "alpha_pattern": {"q_proj": 20, "model.layers.0.mlp.down_proj": 1},
        "rank_pattern": {r"layers\.\d+\.self_attn\.q_proj": 3},
        "use_rslora": True,
    },
    "layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "dora-part": {"target_modules": ["k_proj", "gate_proj"], "use_dora": True, "use_rslora": True},
    "bias-all": {"bias": "all", "target_modules": ["q_proj"]},
    "bias-dora": {"bias": "lora_only", "target_modules": ["q_proj", "k_proj"], "use_dora": True},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "tied-embedding": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "both-ends": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "head": {"modules_to_save": ["lm_head"]},
    "norms": {"modules_to_save": ["norm", "input_layernorm"]},
    "linear-saved": {"modules_to_save": ["mlp.up_proj"], "target_modules": ["q_proj"]},
    "low-rank-ends": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "low-rank-embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "low-rank-head": {"target_modules": ["lm_head"]},
}
ARCHITECTURES = ("llama", "qwen2")  # tied and without biases; untied and with biases
# What these change, neither ties nor biases of the base touch: of the second architecture they are proofs.
ALIKE = (
    "plain", "rslora", "all-linear", "regex", "rank_pattern", "alpha_pattern", "layers", "dora-part",
    "norms", "linear-saved",
)  # fmt: skip


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"), request.param)


@pytest.mark.parametrize(
    ("base", "form"),
    [
        pytest.param(name, form, marks=[pytest.mark.proof] if name == "qwen2" and form in ALIKE else [])
        for name in ARCHITECTURES
        for form in sorted(FORMS)
    ],
    indirect=["base"],
)
def test_an_adapter_of_peft_gives_its_logits_applied_and_merged(
    base: Path, tmp_path: Path, form: str
) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", **FORMS[form])
    expected = peft_logits(base, adapter)
    if not (form.startswith("bias-all") and _is_without_bias(base)):
        assert (expected - engine_logits(base)).abs().max() > 1e-2, "the adapter changes nothing"
    torch.testing.assert_close(engine_logits(base, adapter), expected, atol=1e-4, rtol=1e-4)
    (out := tmp_path / "merged").mkdir()
    merge(adapter, base, out)
    torch.testing.assert_close(engine_logits(out), expected, atol=1e-4, rtol=1e-4)


def _is_without_bias(base: Path) -> bool:
    return json.loads((base / "config.json").read_text())["model_type"] == "llama"


def test_the_bias_of_b_is_applied_and_merged_where_there_is_a_place(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"], lora_bias=True)
    expected = peft_logits(base, adapter)
    torch.testing.assert_close(engine_logits(base, adapter), expected, atol=1e-4, rtol=1e-4)
    (out := tmp_path / "merged").mkdir()
    if _is_without_bias(base):
        with raises(Unavailable, "unavailable", mentions=["lora_bias"]):
            merge(adapter, base, out)
    else:
        merge(adapter, base, out)
        torch.testing.assert_close(engine_logits(out), expected, atol=1e-4, rtol=1e-4)


def test_a_vocabulary_that_grew_brings_its_embedding_and_head(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    from tests.support.peft_adapters import IDS

    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    network.resize_token_embeddings(330)
    adapted = peft.get_peft_model(network, peft.LoraConfig(task_type="CAUSAL_LM", r=4))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with torch.inference_mode():
        expected = adapted.eval()(torch.tensor([IDS])).logits[0, -1]
    assert len(expected) == 330
    torch.testing.assert_close(engine_logits(base, tmp_path / "adapter"), expected, atol=1e-4, rtol=1e-4)
    (out := tmp_path / "merged").mkdir()
    merge(tmp_path / "adapter", base, out)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 330
    torch.testing.assert_close(engine_logits(out), expected, atol=1e-4, rtol=1e-4)


def test_the_merged_files_are_read_by_transformers(tmp_path: Path) -> None:
    """A tied model whose embedding alone was trained: the head stays as it was, as in PEFT's forward."""
    import transformers

    from tests.support.peft_adapters import IDS

    base = make_model(tmp_path / "base", "llama")
    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["embed_tokens"])
    (out := tmp_path / "merged").mkdir()
    merge(adapter, base, out)
    network = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.inference_mode():
        found = network(torch.tensor([IDS])).logits[0, -1]
    torch.testing.assert_close(found, peft_logits(base, adapter), atol=1e-4, rtol=1e-4)
    assert json.loads((base / "config.json").read_text())["tie_word_embeddings"] is True, "the base changed"


@pytest.mark.parametrize("targets", [["c_attn", "c_fc"], ["attn.c_proj", "lm_head"]])
@pytest.mark.parametrize("is_dora", [True, False])
def test_an_adapter_is_merged_into_an_architecture_that_the_engine_lacks(
    tmp_path: Path, targets: list[str], is_dora: bool
) -> None:
    """GPT-2 keeps its matrices as (in, out), and its files leave out the name of the inner model.

    PEFT looks at each layer of the base. Its file has the `fan_in_fan_out` of the last one, here of the head.
    """
    import transformers

    from tests.support.peft_adapters import IDS

    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    base = tmp_path / "base"
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=targets, use_dora=is_dora)
    saved = json.loads((adapter / "adapter_config.json").read_text())
    assert saved["fan_in_fan_out"] is ("lm_head" not in targets)
    (out := tmp_path / "merged").mkdir()
    merge(adapter, base, out)
    network = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.inference_mode():
        found = network(torch.tensor([IDS])).logits[0, -1]
    torch.testing.assert_close(found, peft_logits(base, adapter), atol=1e-4, rtol=1e-4)


# --- what is refused -------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    base = make_model(tmp_path / "base", "llama")
    return make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])


def _set(folder: Path, **settings: object) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize(
    "setting",
    [
        {"layer_replication": [[0, 2], [1, 3]]},
        {"use_qalora": True},
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"trainable_token_indices": [1, 2]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "loftq"},
        {"peft_type": "LOHA"},
        {"task_type": "SEQ_CLS"},
        {"a_setting_of_tomorrow": True},
        {"alpha_pattern": {"(a+)+b": 3}},
        {"alpha_pattern": {"a{1000}": 3}},
        {"use_dora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=lambda each: f"{next(iter(each))}-{str(next(iter(each.values())))[:10]}",
)
def test_a_form_that_is_not_read_is_refused_by_its_name(plain: Path, setting: dict[str, Any]) -> None:
    ((key, value),) = setting.items()
    named = next(iter(value)) if key == "alpha_pattern" else key
    with raises(Unavailable, "unavailable", mentions=[named]):
        read_adapter(_set(plain, **setting))


def test_an_adapter_of_an_unread_form_says_what_would_work(plain: Path) -> None:
    with raises(Unavailable, "unavailable", mentions=["merge_and_unload"]):
        read_adapter(_set(plain, use_qalora=True))


@pytest.mark.parametrize(
    ("setting", "code"),
    [({"r": 0}, "damaged"), ({"r": 5}, "damaged"), ({"r": 2**40}, "damaged"),
     ({"rank_pattern": {"q_proj": 9}}, "damaged"), ({"lora_alpha": "x"}, "damaged"),
     ({"alpha_pattern": {"q_proj": "x"}}, "damaged"), ({"r": 10**400}, "damaged"),
     ({"lora_alpha": 1e300}, "damaged")],
)  # fmt: skip
def test_a_config_that_contradicts_the_tensors_is_damaged(
    plain: Path, setting: dict[str, object], code: str
) -> None:
    with raises(Damaged, code):
        read_adapter(_set(plain, **setting))


def test_an_adapter_of_other_shapes_does_not_fit(plain: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", "llama", num_attention_heads=8, head_dim=16)
    with raises(Damaged, "adapter-misfit", mentions=["128"]):
        engine_logits(other, plain)
    (out := tmp_path / "merged").mkdir()
    with raises(Damaged, "adapter-misfit", mentions=["128"]):
        merge(plain, other, out)


def test_an_adapter_of_more_layers_does_not_fit(plain: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", "llama", num_hidden_layers=2)
    for refused in (lambda: engine_logits(other, plain), lambda: merge(plain, other, tmp_path)):
        with raises(Damaged, "adapter-misfit", mentions=["model.layers.2.self_attn.q_proj"]):
            refused()


def _rewritten(folder: Path, **tensors: torch.Tensor | None) -> Path:
    path = folder / "adapter_model.safetensors"
    kept = load_file(path) | {name.replace("__", "."): each for name, each in tensors.items()}
    save_file({name: each for name, each in kept.items() if each is not None}, path)
    return folder


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_takes_long_to_match_is_refused(plain: Path, key: str) -> None:
    tensors, module = load_file(plain / "adapter_model.safetensors"), "base_model.model." + "a" * 48
    pair = {
        f"{module}.lora_{x}.weight": next(t for n, t in tensors.items() if f"lora_{x}" in n) for x in "AB"
    }
    save_file(pair, plain / "adapter_model.safetensors")
    with raises(Unavailable, "unavailable", mentions=["adapter_config.json"]):
        read_adapter(_set(plain, **{key: {"(aa|a)" * 32 + "c": 8}}), pattern_seconds=0.2)


def test_a_config_nested_too_deep_to_read_is_damaged(plain: Path) -> None:
    (plain / "adapter_config.json").write_text("[" * 200_000 + "]" * 200_000)
    with raises(Damaged, "damaged"):
        read_adapter(plain)


def test_an_update_that_makes_a_model_compute_infinity_is_refused(plain: Path) -> None:
    tensors = load_file(plain / "adapter_model.safetensors")
    name = next(each for each in tensors if "lora_B" in each)
    module = name.partition(".lora_B")[0]
    for size_a, size_b in ((1.0, 3e38), (6e4, 6e4)):
        tensors[f"{module}.lora_A.weight"].fill_(size_a)
        tensors[name].fill_(size_b)
        save_file(tensors, plain / "adapter_model.safetensors")
        with raises(Damaged, "damaged"):
            read_adapter(plain)


def test_values_that_are_no_numbers_are_refused(plain: Path) -> None:
    tensors = load_file(plain / "adapter_model.safetensors")
    name = min(tensors)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, plain / "adapter_model.safetensors")
    with raises(Damaged, "damaged"):
        read_adapter(plain)


def test_a_tensor_that_the_config_does_not_explain_is_refused(plain: Path) -> None:
    name = "base_model.model.model.layers.0.mlp.up_proj.weight"
    _rewritten(plain, **{name: torch.zeros(96, 64)})
    with raises(Unavailable, "unavailable", mentions=["model.layers.0.mlp.up_proj.weight"]):
        read_adapter(plain)


def test_half_an_adapter_is_refused(plain: Path) -> None:
    _rewritten(plain, **{"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": None})
    with raises(Damaged, "damaged", mentions=["model.layers.0.self_attn.q_proj"]):
        read_adapter(plain)


def test_a_header_that_promises_more_than_the_file_holds_is_refused(plain: Path) -> None:
    path = plain / "adapter_model.safetensors"
    header = json.dumps(
        {"x.lora_A.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}
    )
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 4)
    with raises(Damaged, "damaged"):
        read_adapter(plain)


def test_an_adapter_without_tensors_names_the_file(plain: Path) -> None:
    shutil.move(plain / "adapter_model.safetensors", plain / "adapter_model.bin")
    with raises(Damaged, "damaged", mentions=["adapter_model.safetensors"]):
        read_adapter(plain)


# --- experts ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe"])
def moe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with one matrix for each expert. transformers has all experts of a layer in one parameter."""
    return make_model(tmp_path_factory.mktemp("moe"), request.param)


EXPERT_FORMS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "up": {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
    "down": {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]},
    "router": {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]},
    "ranks": {
        "target_modules": ["q_proj"],
        "target_parameters": ["gate.weight", "gate_up_proj", "down_proj"],
        "rank_pattern": {r".*\.gate_up_proj": 6, "gate.weight": 2, "down_proj": 1},
        "alpha_pattern": {r".*\.gate_up_proj": 5, "mlp.gate": 40},
        "use_rslora": True,
    },
    "one-layer": {"target_modules": ["q_proj"], "target_parameters": ["layers.0.mlp.experts.down_proj"]},
}
MORE_FORMS = ("up", "router", "one-layer")  # of one architecture; of the other in a proof


@pytest.mark.parametrize(
    ("moe", "form"),
    [
        pytest.param(
            name, form, marks=[pytest.mark.proof] if name == "mixtral" and form in MORE_FORMS else []
        )
        for name in ("mixtral", "qwen3_moe")
        for form in sorted(EXPERT_FORMS)
    ],
    indirect=["moe"],
)
def test_an_adapter_of_experts_gives_the_logits_of_peft_applied_and_merged(
    moe: Path, tmp_path: Path, form: str
) -> None:
    adapter = make_adapter(moe, tmp_path / "adapter", strength=0.3, **EXPERT_FORMS[form])
    assert "target_parameters" in (adapter / "adapter_config.json").read_text()
    expected = peft_logits(moe, adapter)
    assert (expected - engine_logits(moe)).abs().max() > 1e-2, "the adapter changes nothing"
    torch.testing.assert_close(engine_logits(moe, adapter), expected, atol=1e-4, rtol=1e-4)
    (out := tmp_path / "merged").mkdir()
    merge(adapter, moe, out)
    torch.testing.assert_close(engine_logits(out), expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_experts_that_the_base_keeps_in_one_tensor_is_refused(
    moe: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(moe, tmp_path / "adapter", **EXPERT_FORMS["down"])
    names = {"model.layers.0.mlp.experts.down_proj", "model.layers.0.self_attn.q_proj.weight"}
    with raises(Unavailable, "unavailable", mentions=["merge_and_unload"]):
        read_adapter(adapter).fitted(names, False, adapter)


@pytest.mark.parametrize(
    "setting",
    [
        {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        {"target_parameters": None},
        {"r": 5},
        {"r": 10**9},
    ],
    ids=str,
)
def test_stacks_of_experts_that_the_config_does_not_explain_are_refused(
    moe: Path, tmp_path: Path, setting: dict[str, object]
) -> None:
    adapter = make_adapter(moe, tmp_path / "adapter", **EXPERT_FORMS["down"])
    with raises(Unavailable, "unavailable", mentions=["mlp.experts"]):
        read_adapter(_set(adapter, **setting))


def _turned(folder: Path, version: str) -> Path:
    """Write the stacks of experts as PEFT 0.18 did, which took outputs for inputs."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in [each for each in tensors if ".experts." in each and each.endswith("lora_A.weight")]:
        other = name.replace("lora_A", "lora_B")
        a, b = tensors[name], tensors[other]
        assert len(a) == b.shape[1]
        rank, n = 4, len(a) // 4  # the rank of every adapter that is turned here
        tensors[name] = b.reshape(len(b), rank, n).permute(2, 1, 0).reshape(n * rank, -1).contiguous()
        tensors[other] = a.reshape(n, rank, -1).permute(2, 1, 0).reshape(-1, rank * n).contiguous()
    save_file(tensors, path)
    return _set(folder, peft_version=version)


@pytest.mark.parametrize("form", ["both", "down"])
def test_stacks_that_an_older_peft_turned_are_read(moe: Path, tmp_path: Path, form: str) -> None:
    both = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    adapter = make_adapter(moe, tmp_path / "adapter", **(both if form == "both" else EXPERT_FORMS[form]))
    expected = peft_logits(moe, adapter)
    version = "" if form == "both" else "0.18.1"  # both together show it by their sizes
    found = engine_logits(moe, _turned(adapter, version))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_one_stack_of_experts_without_a_version_is_refused(moe: Path, tmp_path: Path) -> None:
    adapter = make_adapter(moe, tmp_path / "adapter", **EXPERT_FORMS["down"])
    with raises(Unavailable, "unavailable", mentions=["peft_version", "merge_and_unload"]):
        read_adapter(_set(adapter, peft_version=None))
