"""A static model of an encoder: its numbers, its files, its descent, and what it is not made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec import UnsetType

torch = pytest.importorskip("torch")

import heredity as h
from heredity.application.retrieval.models import open_embedder
from heredity.core.errors import Damaged, UsageError
from heredity.core.progress import Progress
from heredity.formats.static_embeddings import read_static
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.static import Static, principal, zipf_weights
from tests.application.retrieval.test_dense import WORDS, TinyEncoder
from tests.support.errors import raises
from tests.support.static_models import write_static

UNUSED = ("[unused0]", "[unused1]")
VOCABULARY = (*WORDS[:1], *UNUSED, *WORDS[1:])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def encoder(store: Store) -> Grown:
    return store.grow(TinyEncoder(words=VOCABULARY), [])


def states(encoder: Grown) -> np.ndarray:
    """The mean last state of each token between [CLS] and [SEP], one token at a time."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder.folder)
    network = transformers.AutoModel.from_pretrained(encoder.folder)
    found = []
    with torch.no_grad():
        for i in range(len(VOCABULARY)):
            ids = torch.tensor([[tokenizer.cls_token_id, i, tokenizer.sep_token_id]])
            found.append(network(input_ids=ids).last_hidden_state[0].mean(0).numpy())
    return np.stack(found)


def test_without_pca_and_weights_a_vector_is_the_mean_state_of_its_token(
    store: Store, encoder: Grown
) -> None:
    child = store.grow_once(Static(dims=0, sif=0), [encoder])
    found = read_static(child.folder, "child").vectors
    used = [i for i, word in enumerate(VOCABULARY) if word not in UNUSED]
    assert found[used] == pytest.approx(states(encoder)[used], abs=1e-6)
    assert not found[[1, 2]].any()


def test_vectors_are_the_principal_components_of_used_tokens_times_their_weights(
    store: Store, encoder: Grown
) -> None:
    child = store.grow_once(Static(dims=5, sif=0.1), [encoder])
    found = read_static(child.folder, "child").vectors
    used = [i for i, word in enumerate(VOCABULARY) if word not in UNUSED]
    reduced, share = principal(states(encoder)[used].astype(np.float64), 5)
    assert found[used] == pytest.approx(reduced * zipf_weights(len(used), 0.1)[:, None], abs=1e-5)
    assert child.record.notes["components"] == (
        f"5 of 16 hold {100 * share:.1f} % of the token vectors' variance"
    )


def test_principal_components_are_those_of_a_singular_value_decomposition() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 6)) @ np.diag([5, 4, 3, 2, 1, 0.5])
    found, share = principal(vectors, 3)
    centred = vectors - vectors.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.abs(found) == pytest.approx(np.abs(left[:, :3] * sizes[:3]))
    assert (found[np.abs(found).argmax(0), range(3)] > 0).all()
    assert share == pytest.approx((sizes[:3] ** 2).sum() / (sizes**2).sum())
    same, whole = principal(vectors, 0)
    assert same is vectors and whole == 1


def test_weights_fall_with_frequency_and_are_those_of_sif() -> None:
    # by hand: 1/2 + 1/3 + 1/4 = 13/12, so that the shares are 6/13, 4/13 and 3/13
    wanted = [0.5 / (0.5 + share / 13) for share in (6, 4, 3)]
    assert zipf_weights(3, 0.5) == pytest.approx(wanted)
    assert (np.diff(zipf_weights(1000, 1e-4)) > 0).all()
    assert (zipf_weights(3, 0) == 1).all()


def test_a_child_is_recorded_below_its_encoder_and_the_same_every_time(
    store: Store, encoder: Grown, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    recipe = h.recipe("static", dims=4, watch=seen.append)
    assert recipe == Static(dims=4) == h.Static(dims=4)
    child = store.grow_once(recipe, [encoder])
    record = child.record
    assert (record.name, record.family, record.modality) == ("tiny-encoder-static", "bert", "text-embedding")
    assert record.parents == (encoder.record.id,)
    assert record.recipe.kind == "static" and record.recipe.settings == {"dims": 4, "sif": 1e-4}
    assert store.grow_once(Static(dims=4), [encoder]).record.id == record.id
    other = Store(tmp_path / "other")
    again = other.grow_once(Static(dims=4), [other.grow(TinyEncoder(words=VOCABULARY), [])])
    assert again.record.id == record.id
    assert any(each.phase == "embedding the vocabulary" for each in seen)
    assert store.grow_once(Static(dims=5, name="five"), [encoder]).record.name == "five"


def test_a_child_embeds_by_its_own_tokens_without_those_around_a_text(store: Store, encoder: Grown) -> None:
    store.grow_once(Static(dims=0, sif=0), [encoder])
    model = open_embedder("tiny-encoder-static", store)
    ids = [VOCABULARY.index(word) for word in ("heat", "pump")]
    wanted = states(encoder)[ids].mean(0)
    assert model.embed("Heat pump") == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-6)
    assert model.tokens("Heat pump") == ids  # no [CLS], [SEP] or [PAD]


def test_the_files_are_those_of_model2vec(store: Store, encoder: Grown) -> None:
    child = store.grow_once(Static(dims=4), [encoder])
    assert sorted(file.path for file in child.record.files) == [
        "config.json", "model.safetensors", "modules.json", "tokenizer.json",
    ]  # fmt: skip
    config = json.loads((child.folder / "config.json").read_text())
    wanted = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": 4, "normalize": True}
    assert config | wanted == config
    tokenizer = json.loads((child.folder / "tokenizer.json").read_text())
    assert [tokenizer[key] for key in ("padding", "truncation", "post_processor")] == [None] * 3
    modules = json.loads((child.folder / "modules.json").read_text())
    assert [each["type"] for each in modules] == [
        "sentence_transformers.models.StaticEmbedding", "sentence_transformers.models.Normalize",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "key"), [({"dims": -1}, "dims"), ({"sif": -0.1}, "sif"), ({"sif": 1.0}, "sif")]
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, float], key: str) -> None:
    with raises(UsageError, "bad-setting", [key]):
        h.recipe("static", **settings)


def test_more_components_than_the_encoder_has_are_refused(store: Store, encoder: Grown) -> None:
    with raises(UsageError, "bad-setting", ["dims", 16, 17]):
        store.grow_once(Static(dims=17), [encoder])


def test_only_a_sentence_encoder_has_a_static_child(store: Store, encoder: Grown, tmp_path: Path) -> None:
    chat = store.grow(TinyEncoder(name="chat", modality="text", seed=2), [])
    static = store.pull(str(write_static(tmp_path / "words")))
    for other in (chat, static, store.grow_once(Static(dims=4), [encoder])):
        with raises(UsageError, "bad-usage", [other.record.name]):
            store.grow_once(Static(), [other])
    few = store.grow(TinyEncoder(name="few", words=VOCABULARY[:-2], seed=3), [])
    (few.folder / "tokenizer.json").write_bytes((encoder.folder / "tokenizer.json").read_bytes())
    with raises(Damaged, "damaged", ["few", len(VOCABULARY)]):
        Static(dims=4).apply([few], tmp_path)
    bare = json.loads((encoder.folder / "tokenizer.json").read_text("utf-8"))
    bare |= {"added_tokens": [], "post_processor": None}
    bare["model"] = {"type": "WordLevel", "vocab": {}, "unk_token": "?"}
    (few.folder / "tokenizer.json").write_text(json.dumps(bare), "utf-8")
    with raises(Damaged, "damaged", ["few"]):
        Static(dims=4).apply([few], tmp_path)


def test_an_encoder_has_no_child_of_a_recipe_for_text(store: Store, encoder: Grown) -> None:
    from heredity.core.errors import Unavailable
    from heredity.recipes.prune import Prune

    with raises(Unavailable, "unavailable", ["tiny-encoder"]):
        store.grow_once(Prune(1), [encoder])


def test_a_static_model_of_another_tool_is_adopted_as_distilled(
    store: Store, encoder: Grown, tmp_path: Path
) -> None:
    child = h.adopt(str(write_static(tmp_path / "words", words=VOCABULARY)), encoder, store).record
    assert (child.parents, child.modality) == ((encoder.record.id,), "text-embedding")
    assert not isinstance(child.descent, UnsetType) and child.descent.made == "distill"
