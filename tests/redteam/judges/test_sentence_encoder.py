"""The sentence encoder of the learned judge, on a small random one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from heredity.core.errors import Damaged
from heredity.redteam.judges.learned.model import SentenceEncoder
from tests.support.errors import raises

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

WORDS = ["the", "quick", "brown", "fox", "jumps"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=128, **shape)
    save_file(BertModel(config).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    known = {word: i for i, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def by_hand(folder: Path, ids: list[int]) -> np.ndarray:
    """BERT written out: embeddings, attention, feed-forward, each with its layer norm."""
    from safetensors.torch import load_file

    w, f = load_file(folder / "model.safetensors"), torch.nn.functional

    def linear(at: str, x):  # type: ignore[no-untyped-def]
        return f.linear(x, w[f"{at}.weight"], w[f"{at}.bias"])

    def norm(at: str, x):  # type: ignore[no-untyped-def]
        return f.layer_norm(x, x.shape[-1:], w[f"{at}.weight"], w[f"{at}.bias"], 1e-12)

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x + w["embeddings.position_embeddings.weight"][: len(ids)])
    for n in range(2):
        at = f"encoder.layer.{n}"
        q, k, v = (
            linear(f"{at}.attention.self.{which}", x).view(-1, 2, 8).transpose(0, 1)
            for which in ("query", "key", "value")
        )
        mixed = ((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v).transpose(0, 1).reshape(-1, 16)
        x = norm(f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", mixed))
        inner = f.gelu(linear(f"{at}.intermediate.dense", x))
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", inner))
    mean = x.mean(0).numpy().astype(float)
    return mean / np.linalg.norm(mean)


def test_a_vector_is_the_normalized_mean_of_the_last_layer(folder: Path) -> None:
    asked, first, rest = SentenceEncoder(folder).vectors("the fox", "quick brown fox jumps")
    assert np.abs(asked - by_hand(folder, [101, 1, 4, 102])).max() < 1e-6
    assert np.abs(first - by_hand(folder, [101, 2, 3, 4, 5, 102])).max() < 1e-6
    assert not rest.any(), "an answer that ends in its first part has no rest"


def test_a_text_has_the_same_vector_whatever_was_read_before(folder: Path) -> None:
    one, other = SentenceEncoder(folder), SentenceEncoder(folder)
    for text in ("jumps", "the " * 500, "\ud800 fox"):
        other.vectors(text, text)
    assert np.array_equal(one.vectors("the fox", "fox").first, other.vectors("the fox", "fox").first)


@pytest.mark.parametrize("broken", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_folder_is_named(folder: Path, tmp_path: Path, broken: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(b"{}" if path.name == broken else path.read_bytes())
    with raises(Damaged, "damaged", mentions=[tmp_path]):
        SentenceEncoder(tmp_path)


def test_a_weight_that_is_missing_is_never_made_up(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with raises(Damaged, "damaged", mentions=["encoder.layer.1.output.dense.bias"]):
        SentenceEncoder(tmp_path)
