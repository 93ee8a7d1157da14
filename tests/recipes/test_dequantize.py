"""A GGUF becomes safetensors that say the same, recorded as its child."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heredity.core.errors import Damaged, Refused
from heredity.formats.gguf import read_gguf
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes import dequantize
from heredity.recipes.dequantize import Dequantize
from tests.support.errors import raises
from tests.support.model_sources import SPECIALS, TEMPLATE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def parent(store: Store, tiny_gguf: Path) -> Grown:
    return store.pull(str(tiny_gguf))


@pytest.fixture(scope="module")
def child(store: Store, parent: Grown) -> Grown:
    return store.ready(parent)


def test_the_child_is_recorded_under_its_parent_and_made_once(
    store: Store, parent: Grown, child: Grown
) -> None:
    assert child.record.parents == (parent.record.id,)
    assert (child.record.name, child.record.format) == ("tiny-bf16", "safetensors")
    assert child.record.recipe.kind == "dequantize"
    assert {"torch", "transformers", "gguf"} <= set(child.record.made.versions)
    made = child.record.made
    assert store.ready(parent.record).record.made == made
    assert store.verify(child.record) == []


def test_making_it_again_elsewhere_gives_the_same_id(child: Grown, tiny_gguf: Path, tmp_path: Path) -> None:
    elsewhere = Store(tmp_path)
    assert elsewhere.ready(elsewhere.pull(str(tiny_gguf))).record.id == child.record.id


def test_two_threads_load_one_after_the_other(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[str] = []

    def load(*_: object) -> None:
        inside.append("begins")
        time.sleep(0.2)
        inside.append("ends")

    store = Store(tmp_path)
    parent = store.pull(str(tiny_gguf))
    monkeypatch.setattr(dequantize, "_write_weights", load)
    with ThreadPoolExecutor(2) as pool:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        list(
            pool.map(
                lambda name: Dequantize()._read_gguf(next(parent.folder.glob("*.gguf")), tmp_path / name),
                ("one", "two"),
            )
        )
    assert inside == ["begins", "ends"] * 2


def test_the_weights_are_those_of_the_gguf_package(tiny_gguf: Path, child: Grown) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    network = transformers.AutoModelForCausalLM.from_pretrained(child.folder)
    assert network.dtype == torch.bfloat16
    tensors = {t.name: t for t in GGUFReader(tiny_gguf).tensors}
    state = network.state_dict()
    for theirs, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ):
        values = torch.from_numpy(dequantize(tensors[theirs].data, tensors[theirs].tensor_type).copy())
        assert torch.equal(state[ours], values.to(torch.bfloat16)), ours


def test_a_head_that_is_the_embedding_is_stored_once_and_tied(child: Grown) -> None:
    from safetensors import safe_open

    with safe_open(child.folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in set(file.keys())
    assert json.loads((child.folder / "config.json").read_text())["tie_word_embeddings"] is True


def test_template_end_and_special_tokens_are_the_ggufs_own(child: Grown) -> None:
    assert (child.folder / "chat_template.jinja").read_text() == TEMPLATE
    tokenizer = transformers.AutoTokenizer.from_pretrained(child.folder)
    assert tokenizer.chat_template == TEMPLATE
    assert [tokenizer.encode(token, add_special_tokens=False) for token in SPECIALS] == [[0], [1], [2]]
    assert tokenizer.encode("hi a") == [*tokenizer.encode("hi"), *tokenizer.encode(" a")]
    said = json.loads((child.folder / "generation_config.json").read_text())
    assert said["eos_token_id"] == [2, 0]  # the file's own first, then every other end
    assert "version" not in (child.folder / "config.json").read_text()


def test_nothing_is_printed(
    store: Store, parent: Grown, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Dequantize("float32").apply([parent], tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_or_wrong_parent_is_refused(
    store: Store, tiny_gguf: Path, child: Grown, tmp_path: Path
) -> None:
    with raises(Refused, "refused"):
        store.grow(Dequantize(), [child])
    own = Store(tmp_path / "own")
    parent = own.pull(str(tiny_gguf))
    (parent.folder / "tiny.gguf").write_bytes(tiny_gguf.read_bytes()[:-1])
    with raises(Damaged, "damaged", mentions=["tiny"]):
        own.ready(parent)


def test_an_architecture_that_transformers_does_not_read_is_refused(
    store: Store, tiny_gguf: Path, tmp_path: Path
) -> None:
    data = tiny_gguf.read_bytes().replace(b"llama", b"zebra")
    (tmp_path / "zebra.gguf").write_bytes(data)
    with raises(Refused, "refused", mentions=["zebra.gguf"]):
        store.ready(store.pull(str(tmp_path / "zebra.gguf")))


@pytest.mark.models
@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("smollm2-135m-instruct", "<|im_end|>"),
        pytest.param("qwen2.5-coder-0.5b-instruct", "<|im_end|>", marks=pytest.mark.proof),
    ],
)
def test_the_real_models_answer_sensibly_and_stop(name: str, end: str) -> None:
    store = Store()
    grown = store.pull(name)
    ready = store.ready(grown)
    header = read_gguf(grown.folder / grown.record.files[0].path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(ready.folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(ready.folder)
    assert tokenizer.chat_template == header.metadata["tokenizer.chat_template"]
    assert header.metadata["tokenizer.ggml.tokens"][tokenizer.eos_token_id] == end
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    assert torch.isfinite(network(ids).logits).all()
    answer = network.generate(ids, max_new_tokens=40, do_sample=False)[0][ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer) and tokenizer.decode(answer[-1:]) == end
