"""The words that a search by gradient puts before a passage, on tiny random encoders."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from heredity.application.retrieval.build import build
from heredity.application.retrieval.index import IndexOverlay, PassageIndex, terms
from heredity.core.errors import EngineFailure
from heredity.core.records import Retrieved
from heredity.lineage.store import Store
from tests.application.retrieval.test_dense import WORDS, TinyEncoder
from tests.support.errors import raises
from tests.support.static_models import write_static

torch = pytest.importorskip("torch")
from heredity.application.retrieval import triggers
from heredity.application.retrieval.models import Embedder, open_embedder

SYLLABLES = tuple(map("".join, product("bdfgklmnprst", "aeiou", "kmnrt")))
ASKED = "how long is the refund of a parcel"
PASSAGE = "\n" + " ".join(SYLLABLES[:12])


def vocabulary(*more: str) -> tuple[str, ...]:
    return (*WORDS, *SYLLABLES, *more)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    store.grow(TinyEncoder(words=vocabulary("parcels", "x1", "größe", "##ing")), [])
    return store


@pytest.fixture(scope="module")
def embedder(store: Store) -> Embedder:
    return open_embedder("tiny-encoder", store)


def search(embedder: Embedder, n_steps: int = 12, seed: int = 3) -> triggers.TriggerText:
    return triggers.search(embedder, ASKED, PASSAGE, n_steps, seed)


def test_the_words_bring_the_passage_near_the_question(embedder: Embedder) -> None:
    found, short = search(embedder), search(embedder, n_steps=1)
    assert found.after > short.after and found.after > found.before
    asked = embedder.embed(ASKED)
    assert found.after == pytest.approx(float(embedder.embed(found.words + PASSAGE) @ asked), abs=1e-4)
    assert found.before == pytest.approx(float(embedder.embed(PASSAGE) @ asked), abs=1e-4)


@pytest.mark.parametrize("pooling", ["pooling_mode_mean_tokens", "pooling_mode_cls_token"])
def test_input_embeddings_give_the_embedding_of_their_text(tmp_path: Path, pooling: str) -> None:
    store = Store(tmp_path)
    store.grow(TinyEncoder(pooling=pooling, words=vocabulary()), [])
    tiny = open_embedder("tiny-encoder", store)
    texts = (ASKED, "the " * 8)
    vectors = tiny.token_vectors[torch.tensor([tiny.tokens(text) for text in texts])]
    for found, text in zip(tiny.embed_vectors(vectors).detach().numpy(), texts, strict=True):
        assert found == pytest.approx(tiny.embed(text), abs=1e-5)


def test_equal_seeds_give_equal_words_and_others_give_others(embedder: Embedder) -> None:
    assert search(embedder) == search(embedder)
    assert len({search(embedder, seed=seed).words for seed in range(4)}) == 4


def test_the_words_are_whole_and_none_is_of_the_question(embedder: Embedder) -> None:
    words = [word for seed in range(4) for word in search(embedder, seed=seed).words.split(" ")]
    assert len(words) == 4 * triggers.N_WORDS
    assert set(words) <= set(vocabulary()) and all(word.isascii() and word.isalpha() for word in words)
    assert not set(terms(" ".join(words))) & set(terms(ASKED)), "parcels is a form of parcel"


def test_the_text_is_read_as_the_tokens_that_were_searched_for(embedder: Embedder) -> None:
    found, tokenizer = search(embedder), embedder.tokenizer
    read = embedder.tokens(found.words + PASSAGE)
    own = read[1 : 1 + triggers.N_WORDS]
    assert tokenizer.convert_ids_to_tokens(own) == found.words.split(" ")
    assert tokenizer.decode(own) == found.words


def test_a_passage_is_found_by_its_words_and_not_without(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.txt").write_text(
            " ".join(SYLLABLES[5 * i : 5 * i + 12]) + " the parcel of the refund"
        )
    build(folder, tmp_path / "index", embed="tiny-encoder", store=store)
    index = PassageIndex.open(tmp_path / "index", store)
    words = triggers.search(index.embedder, ASKED, PASSAGE, 20, 1).words

    def is_found(text: str, method: str) -> bool:
        beside = IndexOverlay(index, (Retrieved("p", "note-1.md:1", text),))
        return "p" in {match.chunk.id for match in beside.search(ASKED, 3, method)}

    assert is_found(words + PASSAGE, "dense") and not is_found(PASSAGE, "dense")
    assert not is_found(words + PASSAGE, "bm25"), "no word of the question is in it"


def test_a_model_of_few_words_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.grow(TinyEncoder(), [])
    with raises(EngineFailure, "engine-failure", ["tiny-encoder", "20"]):
        search(open_embedder("tiny-encoder", store))


def test_words_are_found_on_a_static_model_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.pull(str(write_static(tmp_path / "static", words=("[UNK]", *WORDS[5:], *SYLLABLES))))
    static = open_embedder("static", store)
    found = search(static)
    asked = static.embed(ASKED)
    assert found.after > found.before
    assert found.after == pytest.approx(float(static.embed(found.words + PASSAGE) @ asked), abs=1e-4)


def test_a_model_that_embeds_vectors_differently_is_refused(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(embedder)
    embed = kind.embed_vectors
    monkeypatch.setattr(kind, "embed_vectors", lambda self, vectors: embed(self, vectors) / 2)
    with raises(EngineFailure, "engine-failure"):
        search(embedder)
