"""The cross-encoder of the learned judge, on a small random one: what it computes, and how it is tuned."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from heredity.core.errors import Damaged
from heredity.lab.judges import learned as training
from heredity.lab.judges.learned import AnswerTarget
from heredity.redteam.judges import learned
from heredity.redteam.judges.learned import HEADS, RANK, SCALE, CrossEncoder, Floats, PairTokenizer
from tests.support.errors import raises

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

WORDS = ["the", "quick", "brown", "fox", "jumps"]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=128, **SHAPE)
    save_file(BertModel(config).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    known = {word: i for i, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def arrays(with_adapter: bool = True) -> dict[str, Floats]:
    """Random heads, and adapters of two layers."""
    rng = np.random.default_rng(0)
    found = {"heads.weight": rng.normal(size=(len(HEADS), 32)), "heads.bias": rng.normal(size=len(HEADS))}
    if with_adapter:
        for name, n_in, n_out in (("1.attention.self.value", 16, 16), ("2.output.dense", 32, 16)):
            found[f"{name}.a"] = rng.normal(size=(RANK, n_in)) / 8
            found[f"{name}.b"] = rng.normal(size=(n_out, RANK)) / 8
    return found


def by_hand(folder: Path, ids: list[int], n_first: int, given: dict[str, Floats]) -> Floats:
    """BERT written out, each linear layer with its adapter, and the heads on its states."""
    from safetensors.torch import load_file

    w, f = load_file(folder / "model.safetensors"), torch.nn.functional

    def linear(n: int, part: str, x):  # type: ignore[no-untyped-def]
        out = f.linear(x, w[f"encoder.layer.{n}.{part}.weight"], w[f"encoder.layer.{n}.{part}.bias"])
        if (name := f"{n}.{part}") + ".a" in given:
            a, b = (torch.tensor(given[f"{name}.{which}"], dtype=torch.float32) for which in "ab")
            out = out + SCALE * (x @ a.T) @ b.T
        return out

    def norm(at: str, x):  # type: ignore[no-untyped-def]
        return f.layer_norm(x, x.shape[-1:], w[f"{at}.weight"], w[f"{at}.bias"], 1e-12)

    kinds = [0] * n_first + [1] * (len(ids) - n_first)
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][kinds]
    x = norm("embeddings.LayerNorm", x + w["embeddings.position_embeddings.weight"][: len(ids)])
    for n in range(3):
        q, k, v = (
            linear(n, f"attention.self.{which}", x).view(-1, 2, 8).transpose(0, 1)
            for which in ("query", "key", "value")
        )
        mixed = ((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v).transpose(0, 1).reshape(-1, 16)
        at = f"encoder.layer.{n}"
        x = norm(f"{at}.attention.output.LayerNorm", x + linear(n, "attention.output.dense", mixed))
        inner = f.gelu(linear(n, "intermediate.dense", x))
        x = norm(f"{at}.output.LayerNorm", x + linear(n, "output.dense", inner))
    read = torch.cat([x[0], x[n_first:].mean(0)]).numpy().astype(float)
    return given["heads.weight"] @ read + given["heads.bias"]


@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_logits_are_those_of_the_encoder_with_its_adapter(folder: Path, with_adapter: bool) -> None:
    given = arrays(with_adapter)
    found = CrossEncoder(folder, given).logits("the fox", "quick brown fox jumps")
    want = by_hand(folder, [101, 1, 4, 102, 2, 3, 4, 5, 102], 4, given)
    assert np.abs(np.array(found) - want).max() < 1e-5
    plain = by_hand(folder, [101, 1, 4, 102, 2, 3, 4, 5, 102], 4, arrays(False))
    assert (np.abs(want - plain).max() > 1e-3) == with_adapter


def test_a_pair_has_the_same_logits_whatever_was_read_before(folder: Path) -> None:
    one, other = CrossEncoder(folder, arrays()), CrossEncoder(folder, arrays())
    for text in ("jumps", "the " * 500, "\ud800 fox"):
        other.logits(text, text)
    assert one.logits("the fox", "fox") == other.logits("the fox", "fox")
    assert one.logits("the fox", "fox") != one.logits("fox", "the fox")


def test_a_long_text_keeps_its_beginning_and_its_end_and_no_thought(folder: Path) -> None:
    tokenizer = PairTokenizer(folder)
    ids, n_first = tokenizer.pair("quick " + "the " * 900 + "fox", "brown " + "the " * 90_000 + "jumps")
    assert len(ids) <= 256 and ids[1] == 2 and ids[n_first - 2] == 4
    assert ids[n_first] == 3 and ids[-2:] == [5, 102]
    assert tokenizer.pair("the", "<think>the fox</think>jumps") == tokenizer.pair("the", "jumps")
    assert tokenizer.pair("", "").ids == [101, 102, 102]


@pytest.mark.parametrize("broken", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_folder_is_named(folder: Path, tmp_path: Path, broken: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(b"{}" if path.name == broken else path.read_bytes())
    with raises(Damaged, "damaged", mentions=[tmp_path]):
        CrossEncoder(tmp_path, arrays())


def test_too_little_memory_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(learned, "PairTokenizer", full)
    with pytest.raises(MemoryError):
        CrossEncoder(folder, arrays())


def test_a_weight_that_is_missing_is_never_made_up(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with raises(Damaged, "damaged", mentions=["encoder.layer.1.output.dense.bias"]):
        CrossEncoder(tmp_path, arrays())


# --- tuning ---------------------------------------------------------------------------------------


def target(prompt: str, text: str, **known: float) -> AnswerTarget:
    heads = {name: known.get(name) for name in (*HEADS, "complies")}
    return AnswerTarget(prompt, text, known.get("family", "some"), "", **heads)  # type: ignore[arg-type]


def test_tuning_learns_what_only_the_two_texts_together_tell(folder: Path) -> None:
    """The answer addresses the request if its first word is the request's: neither text alone says it."""
    pairs = [(a, f"{b} the fox") for a in WORDS for b in WORDS]
    targets = [
        target(a, b, addresses=float(b.startswith(a)), usable=1, complies=float(b.startswith(a)), harmful=1)
        for a, b in pairs
    ]
    told: list[str] = []
    tuned = training.tune(folder, targets, seed=0, steps=200, say=told.append)
    again = training.tune(folder, targets, seed=0, steps=2, say=told.append)
    same = training.tune(folder, targets, seed=0, steps=2, say=told.append)
    assert len(told) == 4 and float(told[3].rpartition(" ")[2]) < float(told[0].rpartition(" ")[2])
    assert all(np.array_equal(again.arrays[name], same.arrays[name]) for name in again.arrays)
    adapted = {name.partition(".")[0] for name in tuned.arrays} - {"heads"}
    assert adapted == {"2"}, "the two lower layers stay as they are"
    assert {array.dtype for array in tuned.arrays.values()} == {np.dtype(np.float16)}
    # What was tuned in batches is what the judge reads one by one.
    read = CrossEncoder(folder, {name: array.astype(float) for name, array in tuned.arrays.items()})
    ones = np.array([read.logits(*pair) for pair in pairs])
    assert np.abs(ones - tuned.logits(pairs)).max() < 0.15


def test_families_and_classes_are_drawn_alike_and_made_answers_have_their_share() -> None:
    few = [target("q", f"few {i}", complies=float(i == 0))._replace(family="few") for i in range(25)]
    many = [target("q", f"many {i}", complies=float(i % 4 == 0))._replace(family="many") for i in range(400)]
    made = [
        target("q", f"made {i}", complies=0.0)._replace(family="made", kind=f"kind {i}") for i in range(4)
    ]
    drawn = training.schedule([*few, *many, *made], 8_000, random.Random(0))

    def share(of: list[AnswerTarget], among: list[AnswerTarget]) -> float:
        return len(of) / len(among)

    ours = [t for t in drawn if not t.kind]
    rare = [t for t in ours if t.family == "few"]
    assert abs(share([t for t in drawn if t.kind], drawn) - training.MADE / (1 - training.ANSWERS)) < 0.02
    assert abs(share(rare, ours) - 5 / 25) < 0.03, "by the roots of 25 and 400"
    assert abs(share([t for t in rare if t.complies == 1], rare) - 0.5) < 0.04
    assert abs(share([t for t in ours if not t.prompt], ours) - training.TUNED_WITHOUT_PROMPT) < 0.02
    assert all(t.prompt for t in drawn if t.kind), "a made answer says nothing without its request"


def test_what_is_unknown_teaches_nothing() -> None:
    logits = torch.zeros((2, len(HEADS)), requires_grad=True)
    training.target_loss(logits, [target("q", "a", refuses=1.0), target("q", "b", complies=0.0)]).backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[True, False, False, False], [False, True, True, False]]
