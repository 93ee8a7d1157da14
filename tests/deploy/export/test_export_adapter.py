"""An adapter goes out by itself or merged: the files are what was studied, or the card says how far."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")

from heredity.cli import main
from heredity.core.errors import Unavailable, UnknownName, UsageError
from heredity.core.records import Made, Model, RecipeRecord
from heredity.deploy import export
from heredity.deploy.export import adapter as adapter_form
from heredity.engines.chat import ChatCodec
from heredity.formats.safetensors_io import read_all
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.adopt import adopt
from heredity.recipes.alora import Alora
from heredity.recipes.lora import Lora
from heredity.recipes.merge_adapter import MergeAdapter
from heredity.train.data import chat
from tests.support.errors import raises
from tests.support.peft_adapters import make_adapter
from tests.support.tiny_models import make_model

ROWS = [(f"the quick fox {i}", "jumps over a lazy dog") for i in range(8)]
TRAINING = {"steps": 4, "batch_size": 4, "rank": 4, "dtype": "float32"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def base(store: Store, tmp_path: Path) -> Grown:
    """A base in bfloat16, between whose numbers a small change is lost."""
    from safetensors.torch import load_file, save_file

    folder = make_model(tmp_path / "made" / "tiny", "llama", max_position_embeddings=1024)
    path = folder / "model.safetensors"
    rounded = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(rounded, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return store.pull(str(folder))


@pytest.fixture
def child(store: Store, base: Grown) -> Grown:
    """A change that is small beside the steps between two numbers of bfloat16."""
    return store.grow_once(Lora(chat.Data.of("rows", ROWS), **TRAINING, lr=5e-5, name="tickets"), [base])


def test_an_adapter_goes_out_as_peft_loads_it_and_names_its_base(
    store: Store, child: Grown, base: Grown, tmp_path: Path
) -> None:
    done = export.export(store, child, "adapter", tmp_path / "out")
    back, theirs = done.parities
    assert back.n > 0 and theirs.reader == "PEFT" and (theirs.left_out or theirs.n > 0)
    assert done.fidelity is None
    there = {path.name for path in done.folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= there
    assert "config.json" not in there and "model.safetensors" not in there
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.record.name
    card = (done.folder / "README.md").read_text("utf-8")
    assert "library_name: peft" in card


def test_an_adopted_adapter_goes_out_with_its_own_template(store: Store, base: Grown, tmp_path: Path) -> None:
    """TRL and unsloth save the tokenizer beside the adapter; the child was measured with that one."""
    pytest.importorskip("peft")
    folder = make_adapter(base.folder, tmp_path / "mine", strength=0.02)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base.folder / name, folder / name)
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    child = adopt(str(folder), base, store)
    for form in ("adapter", "hf"):
        done = export.export(store, child, form, tmp_path / form)
        assert (done.folder / "chat_template.jinja").read_text("utf-8") == template
        assert all(each.n > 0 or each.left_out for each in done.parities)


def test_an_activated_adapter_goes_out_by_itself_and_not_merged(
    store: Store, base: Grown, tmp_path: Path
) -> None:
    recipe = Alora(chat.Data.of("rows", ROWS), **TRAINING, lr=5e-3, name="woken")
    child = store.grow_once(recipe, [base])
    done = export.export(store, child, "adapter", tmp_path / "out")
    assert all(p.left_out or (p.n and p.largest <= p.tolerance) for p in done.parities)
    config = json.loads((done.folder / "adapter_config.json").read_text())
    tokens = ChatCodec(base.folder).continuation("<|im_start|>assistant\n")
    assert config["alora_invocation_tokens"] == [*tokens]
    card, bill = ((done.folder / name).read_text("utf-8") for name in ("README.md", "bom.cdx.json"))
    assert "invocation" in card and "alora" in card and "alora" in bill and "invocation" in bill
    for form in ("hf", "gguf"):
        with raises(Unavailable, "unavailable", mentions=["--to adapter"]):
            export.export(store, child, form, tmp_path / form)
        assert not (tmp_path / form).exists()


def test_auto_peft_model_finds_the_exported_base_by_its_name(
    store: Store, child: Grown, base: Grown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft")
    export.export(store, child, "adapter", tmp_path / "tickets")
    export.export(store, base, "hf", tmp_path / base.record.name)
    monkeypatch.chdir(tmp_path)
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained("tickets", local_files_only=True)
    assert type(loaded.get_base_model()).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("recipe", "form", "parents", "named"),
    [
        (RecipeRecord("pull", {"repo": "org/name"}), "safetensors", (), "org/name"),
        (RecipeRecord("pull", {"name": "all-minilm-l6-v2"}), "safetensors", (), "sentence-transformers/"),
        (RecipeRecord("pull", {"repo": "org/name"}), "gguf", (), "base"),
        (RecipeRecord("dequantize", {"dtype": "bfloat16"}), "safetensors", ("0" * 64,), "base"),
        (RecipeRecord("pull", {"name": "base", "digest": "x"}), "safetensors", (), "base"),
    ],
)
def test_a_base_is_named_by_its_repository_only_if_that_has_the_same_weights(
    recipe: RecipeRecord, form: str, parents: tuple[str, ...], named: str
) -> None:
    record = Model("0" * 64, "base", "f", "text", "l", form, parents, recipe, (), Made("", "", 0.0, {}))
    assert adapter_form.name_of_base(record).startswith(named)


def test_a_merged_adapter_goes_out_in_float32_and_all_of_its_change_arrives(
    store: Store, child: Grown, base: Grown, tmp_path: Path
) -> None:
    done = export.export(store, child, "hf", tmp_path / "out")
    assert all(p.n and p.largest <= p.tolerance for p in done.parities)  # against the adapter over its base
    before, after = read_all(base.folder), read_all(done.folder)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert json.loads((done.folder / "config.json").read_text())["dtype"] == "float32"
    merged = tmp_path / "rounded"
    merged.mkdir()
    described = MergeAdapter().apply([child, base], merged)
    rounded = read_all(merged)
    name = "model.layers.0.self_attn.q_proj.weight"
    change = after[name] - before[name].float()
    lost = rounded[name].float() - before[name].float() - change
    assert change.norm() > 0 and lost.norm() > 0.2 * change.norm()
    assert float(described.notes["rounding"].split()[0]) > 0.2


def test_the_card_says_how_far_rounded_files_are_from_what_was_studied(
    store: Store, child: Grown, tmp_path: Path
) -> None:
    whole = export.export(store, child, "hf", tmp_path / "float32").fidelity
    done = export.export(store, child, "hf", tmp_path / "bfloat16", dtype="bfloat16")
    rounded = done.fidelity
    assert whole is not None and rounded is not None
    assert (whole.n_prompts, rounded.n_prompts) == (32, 32) and whole.n == rounded.n > 32
    assert 0 <= whole.mean <= whole.worst and rounded.mean > 0
    assert 0 <= rounded.shared <= rounded.length and "torch" in rounded.engine
    card = (done.folder / "README.md").read_text("utf-8")
    assert "rounded once to bfloat16" in card and "Kullback-Leibler" in card
    assert f"{rounded.shared:.1f} of {rounded.length:.1f}" in card


def test_files_that_are_another_model_are_seen_as_far_away(
    store: Store, child: Grown, base: Grown, tmp_path: Path
) -> None:
    from heredity.deploy.export._parity import ExportSource, LoadedFolder, measure

    far = Lora(chat.Data.of("rows", ROWS), **TRAINING, lr=5e-2, name="far")
    other = store.grow_once(far, [base])
    measured = []
    for number, model in enumerate((child, other)):
        (bench := tmp_path / str(number)).mkdir()
        source = ExportSource(store, child, base, bench, "hf", "float32")
        files = LoadedFolder(base.folder, model.folder)
        measured.append(measure(source, files, None))
    near, far_away = measured
    assert near.mean < far_away.mean / 10 and near.shared > far_away.shared


def test_what_needs_too_much_memory_is_left_out_and_said(store: Store, child: Grown, tmp_path: Path) -> None:
    from heredity.deploy.export._parity import ExportSource, LoadedFolder, measure

    base = store.base(child)
    source = ExportSource(store, child, base, tmp_path, "hf", "float32")
    fidelity = measure(source, LoadedFolder(base.folder, child.folder), 1000)
    assert "GiB" in fidelity.left_out and fidelity.n == 0


def test_a_merged_adapter_goes_out_as_a_gguf_in_float32(store: Store, child: Grown, tmp_path: Path) -> None:
    import gguf

    from heredity.formats.gguf import read_gguf

    done = export.export(store, child, "gguf", tmp_path / "out")
    assert all(p.left_out or (p.n and p.largest <= p.tolerance) for p in done.parities)
    (path,) = done.folder.glob("*.gguf")
    kinds = {gguf.GGMLQuantizationType(t.type).name for t in read_gguf(path).tensors}
    assert kinds == {"F32"} and done.fidelity is not None and done.fidelity.n > 0


def test_a_dtype_where_none_fits_is_refused(store: Store, child: Grown, base: Grown, tmp_path: Path) -> None:
    with raises(UsageError, "bad-usage", mentions=[base.record.name]):
        export.export(store, base, "adapter", tmp_path / "a")
    with raises(UsageError, "bad-setting"):
        export.export(store, child, "adapter", tmp_path / "b", dtype="float32")
    with raises(UnknownName, "unknown-name", mentions=["bfloat16"]):
        export.export(store, child, "hf", tmp_path / "c", dtype="bf16")


def test_the_command_says_how_far_the_files_are(
    store: Store,
    child: Grown,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(store.root))
    given = ["export", "tickets", str(tmp_path / "out"), "--to", "hf", "--dtype", "bfloat16"]
    assert main(given) == 0
    assert "greedy tokens are the same (prompts: 32)" in capsys.readouterr().err
