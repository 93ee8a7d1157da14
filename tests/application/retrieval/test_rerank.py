"""A cross-encoder of the store orders passages: its scores, its order, and what is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bm25s")

from safetensors.torch import load_file, save_file

import heredity as h
from heredity.application.conversation import ApplicationSession
from heredity.application.guards import GuardSpec, content, load_guard
from heredity.application.retrieval import Retrieval, models
from heredity.application.retrieval.build import build
from heredity.application.retrieval.documents import Match
from heredity.application.retrieval.index import IndexOverlay, PassageIndex
from heredity.application.retrieval.models import Reranker, Reranking, find_reranker
from heredity.application.spec import Application
from heredity.core.errors import (
    BadArgument,
    BadInput,
    Damaged,
    NotComparable,
    Refused,
    Unavailable,
    UnknownName,
    UsageError,
)
from heredity.core.records import Message, Request, Retrieved
from heredity.formats.architectures import modality_of
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Grown
from heredity.recipes.adopt import adopt
from heredity.redteam import attacks
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.application.retrieval.test_dense import TinyEncoder
from tests.support import studies
from tests.support.conversations import HOW
from tests.support.cross_encoders import ARCHITECTURES, POSITIONS, TinyReranker, write_cross_encoder
from tests.support.damage import flip_bit
from tests.support.errors import raises, run_here

QUESTION = "how long is the refund of a parcel"
TEXTS = {
    "heat.txt": "the heat pump is green, a refund",
    "hum.txt": "how long is a hum of the night, the heat pump",
    "tea.txt": "green tea is a refund of the tea",
    "parcel.txt": "a parcel, the refund of a parcel",
    "copy.txt": "a parcel, the refund of a parcel",
}
TOML = 'name = "desk"\n\n[retrieval]\nindex = "docs.index"\npassages = 2\nrerank = "tiny-reranker"\n'


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that a search uses, with a reranker."""
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    store = Store()
    store.grow(TinyReranker(seed=6), [])
    return store


@pytest.fixture
def index(tmp_path: Path, store: Store) -> PassageIndex:
    (tmp_path / "docs").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "docs" / name).write_text(text)
    build(tmp_path / "docs", tmp_path / "docs.index")
    return PassageIndex.open(tmp_path / "docs.index")


@pytest.fixture
def reranker(store: Store) -> Reranker:
    return Reranker(find_reranker("tiny-reranker", store=store))


def load(folder: Path, text: str = TOML) -> Application:
    (folder / "application.toml").write_text(text)
    return Application.load(folder / "application.toml")


def ids(found: list[Match]) -> list[str]:
    return [each.chunk.id for each in found]


# --- scores and order -----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_score_is_the_logit_of_transformers_whatever_its_batch_is_padded_to(
    store: Store, architecture: str
) -> None:
    import transformers

    store.grow(TinyReranker(1, architecture, "other"), [])
    reranker = Reranker(find_reranker("other", store=store))
    texts = [*TEXTS.values(), "", "night tea " * POSITIONS]  # the last one is cut
    folder = store.named("other").folder
    longest = POSITIONS - (2 if "roberta" in architecture else 0)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        [QUESTION] * len(texts), texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
    )
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = network(**tokens).logits[:, 0].numpy()
    assert tokens["input_ids"].shape[1] == longest
    assert np.ptp(wanted) > 0.1
    assert np.allclose([reranker.score(QUESTION, text) for text in texts], wanted, atol=1e-5)


def test_the_order_is_that_of_the_scores_and_equal_ones_go_by_the_chunks_id(
    index: PassageIndex, reranker: Reranker
) -> None:
    found = index.search(QUESTION, 5, "bm25")
    ordered = reranker.ordered(QUESTION, found)
    scores = {each.chunk.id: round(reranker.score(QUESTION, each.chunk.searched), 4) for each in found}
    assert [each.score for each in ordered] == sorted(scores.values(), reverse=True)
    assert {each.chunk.id: each.score for each in ordered} == scores
    assert ids(ordered) != ids(found)
    twins = [each.chunk.id for each in ordered if each.chunk.path in ("parcel.txt", "copy.txt")]
    assert len(twins) == 2 and twins == sorted(twins) and scores[twins[0]] == scores[twins[1]]


def test_a_passage_has_the_same_score_alone_in_any_order_and_from_many_threads(
    index: PassageIndex, reranker: Reranker
) -> None:
    found = index.search(QUESTION, 5, "bm25")
    ordered = reranker.ordered(QUESTION, found)
    assert [reranker.ordered(QUESTION, [each])[0] for each in ordered] == ordered
    shuffled = found[::-1]
    reranker.score.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        assert all(
            each == ordered for each in pool.map(lambda _: reranker.ordered(QUESTION, shuffled), range(16))
        )


def test_only_the_candidates_of_the_search_are_read(index: PassageIndex, reranker: Reranker) -> None:
    plain = index.search(QUESTION, 5, "bm25")
    for n in (2, 5):
        best = index.search(QUESTION, 1, "bm25", Reranking(reranker, n))
        assert best == reranker.ordered(QUESTION, plain[:n])[:1]
    assert ids(index.search(QUESTION, 3, "bm25", Reranking(reranker, 1))) == ids(
        reranker.ordered(QUESTION, plain[:3])
    )


def test_passages_beside_the_index_are_read_as_if_they_were_in_it(
    index: PassageIndex, reranker: Reranker, tmp_path: Path
) -> None:
    notes = {
        f"note-{n}.txt": text for n, text in enumerate(("refund of the night", "a refund is a hum of tea"))
    }
    beside = IndexOverlay(index, [Retrieved(name, name, text) for name, text in notes.items()])
    (tmp_path / "whole").mkdir()
    for name, text in (TEXTS | notes).items():
        (tmp_path / "whole" / name).write_text(text)
    build(tmp_path / "whole", tmp_path / "whole.index")
    reranking = Reranking(reranker, 6)
    found, wanted = (
        each.search(QUESTION, 6, "bm25", reranking)
        for each in (beside, PassageIndex.open(tmp_path / "whole.index"))
    )
    assert sorted((each.score, each.chunk.text) for each in found) == sorted(
        (each.score, each.chunk.text) for each in wanted
    )
    assert set(notes.values()) <= {each.chunk.text for each in found}


def test_text_that_is_no_unicode_has_a_score(reranker: Reranker) -> None:
    assert reranker.score("tea \ud800", "tea") == pytest.approx(reranker.score("tea ?", "tea"), abs=1e-5)


# --- the application ------------------------------------------------------------------------------


def test_an_application_shows_the_best_of_the_candidates(
    index: PassageIndex, reranker: Reranker, tmp_path: Path
):
    layer = load(tmp_path)
    wanted = ids(reranker.ordered(QUESTION, index.search(QUESTION, 5, "bm25"))[:2])
    found = ApplicationSession(layer).retrieve(QUESTION)
    assert [each.chunk for each in found] == wanted != ids(index.search(QUESTION, 2, "bm25"))
    retrieval = h.Retrieval("docs.index", passages=2, rerank="tiny-reranker").of(tmp_path)
    assert retrieval == layer.retrieval
    assert (retrieval.candidates, retrieval.rerank_id) == (50, reranker.model.id)
    assert retrieval.search(QUESTION) == found


def test_the_digest_names_the_reranker_and_how_many_passages_it_reads(
    index: PassageIndex, store: Store, tmp_path: Path
) -> None:
    texts = [TOML, TOML + "candidates = 3\n", TOML.replace('rerank = "tiny-reranker"\n', "")]
    digests = [load(tmp_path, text).digest for text in texts]
    assert load(tmp_path, TOML + "candidates = 50\n").digest == digests[0]
    by_id = TOML.replace("tiny-reranker", store.named("tiny-reranker").record.id)
    assert load(tmp_path, by_id).digest == digests[0]
    assert (
        load(tmp_path, f'{TOML}rerank_id = "{store.named("tiny-reranker").record.id}"\n').digest == digests[0]
    )
    store.grow(TinyReranker(seed=1, name="other"), [])
    digests.append(load(tmp_path, TOML.replace("tiny-reranker", "other")).digest)
    assert len(set(digests)) == 4
    assert Retrieval(str(index.out), hash=index.hash, rerank="tiny-reranker").rerank_id is msgspec.UNSET
    with raises(BadArgument, "bad-setting"):
        Retrieval(str(index.out), hash=index.hash, rerank="tiny-reranker").search(QUESTION)


@pytest.mark.usefixtures("index")
def test_another_model_of_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = load(tmp_path)
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "other"))
    other = Store().grow(TinyReranker(seed=1), []).record.id
    from heredity.application.retrieval.models import opened_reranker

    opened_reranker.cache_clear()
    with raises(NotComparable, "not-comparable", ["tiny-reranker", other[:12]]):
        ApplicationSession(layer).retrieve(QUESTION)
    pinned = f'{TOML}rerank_id = "{layer.retrieval.rerank_id}"\n'
    with raises(NotComparable, "not-comparable", ["tiny-reranker", other[:12]]):
        load(tmp_path, pinned)


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("change", "code", "line"),
    [
        (("passages = 2", "passages = 2\ncandidates = 1"), "bad-setting", 6),
        (("passages = 2", "passages = 2\ncandidates = 1001"), "bad-setting", 6),
        (('rerank = "tiny-reranker"', "candidates = 3"), "missing-key", 6),
        (("rerank", "reranker"), "unknown-key", 6),
    ],
)
def test_a_mistake_in_a_file_names_its_line(tmp_path: Path, change: tuple[str, str], code: str, line: int):
    with raises(BadInput, code) as error:
        load(tmp_path, TOML.replace(*change))
    assert error.value.line == line


def test_a_study_shows_what_the_reranker_chose_among_planted_passages_too(
    index: PassageIndex, tmp_path: Path
) -> None:
    layer = load(tmp_path)
    probe = next(each for each in studies.probes(1) if each.passage)
    probe = msgspec.structs.replace(
        probe, turns=(QUESTION,), passage="the refund is green tea", tool_result=None
    )
    Study(
        StudySpec(
            ["scripted:mixed"],
            layer,
            probes=[probe],
            attacks=["direct", "poisoned_index:5"],
            out=tmp_path / "study",
            samples=1,
        )
    ).run()
    planted = attacks.load("poisoned_index:5").delivered(probe, HOW).planted
    shown = {row.attack: row.exchanges[0].retrieved for row in studies.responses(tmp_path / "study")}
    assert shown["direct"] == ApplicationSession(layer).retrieve(QUESTION)
    assert (
        shown["poisoned_index:5"] == ApplicationSession(layer).retrieve(QUESTION, planted) != shown["direct"]
    )
    plain = msgspec.structs.replace(layer, retrieval=Retrieval(str(index.out), 2, hash=index.hash))
    assert shown["poisoned_index:5"] != ApplicationSession(plain).retrieve(QUESTION, planted)


def test_the_guard_that_retrieves_has_the_same_reranker(index: PassageIndex, tmp_path: Path) -> None:
    layer = load(tmp_path)
    spec = GuardSpec("retrieve", settings=msgspec.to_builtins(layer.retrieval))
    request = Request(0, (Message("user", QUESTION),), layer.decoding)
    assert load_guard(spec).prepare(request, layer.facts).retrieved == ApplicationSession(layer).retrieve(
        QUESTION
    )
    other = msgspec.structs.replace(spec, settings={**spec.settings, "rerank_id": "0" * 32})
    assert content([spec]) != content([other])
    with raises(NotComparable, "not-comparable"):
        load_guard(other).prepare(request, layer.facts)
    assert index.hash in str(content([spec])) and str(index.out) not in str(content([spec]))


@pytest.mark.usefixtures("index")
def test_the_command_searches_with_it(tmp_path: Path, store: Store, reranker: Reranker) -> None:
    asked = ("index", str(tmp_path / "docs.index"), "--ask", QUESTION, "--passages", "1")
    found = json.loads(run_here(*asked, "--rerank", "tiny-reranker", "--candidates", "5", "--json").stdout)
    wanted = reranker.ordered(QUESTION, PassageIndex.open(tmp_path / "docs.index").search(QUESTION, 5))[0]
    assert found["passages"][0]["chunk"]["id"] == wanted.chunk.id
    assert found["rerank"] == store.named("tiny-reranker").record.id
    assert "tiny-reranker" in run_here(*asked, "--rerank", "tiny-reranker").stderr
    assert run_here(*asked, "--rerank", "none").code == "unknown-name"


# --- pulled, adopted and refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "head", "labels", "modality"),
    [
        ("bert", "BertForSequenceClassification", {"id2label": {"0": "LABEL_0"}}, "text-ranking"),
        (
            "xlm-roberta",
            "XLMRobertaForSequenceClassification",
            {"id2label": {"0": "LABEL_0"}},
            "text-ranking",
        ),
        ("modernbert", "ModernBertForSequenceClassification", {"num_labels": 1}, "text-ranking"),
        ("roberta", "RobertaForSequenceClassification", {"id2label": {"0": "a", "1": "b", "2": "c"}}, "text"),
        ("bert", "BertForSequenceClassification", {}, "text"),  # two labels, where none is written
        ("bert", "BertForMaskedLM", {"id2label": {"0": "LABEL_0"}}, "text"),
        ("llama", "LlamaForSequenceClassification", {"id2label": {"0": "LABEL_0"}}, "text"),
        (["bert"], ["BertForSequenceClassification"], {"id2label": 1, "num_labels": "1"}, "text"),
    ],
)
def test_a_config_tells_a_cross_encoder(
    kind: object, head: object, labels: dict[str, object], modality: str
) -> None:
    assert modality_of({"model_type": kind, "architectures": [head], **labels}) == modality


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
def test_a_folder_is_pulled_as_a_reranker_which_answers_nothing(
    store: Store, tmp_path: Path, architecture: str
) -> None:
    write_cross_encoder(tmp_path / "mine", architecture)
    pulled = store.pull(str(tmp_path / "mine"))
    assert (pulled.record.modality, pulled.record.family) == ("text-ranking", architecture)
    assert Reranker(find_reranker("mine", store=store)).score("tea", "green tea")
    with raises(Unavailable, "unavailable", ["mine", "--rerank mine"]):
        load_engine(pulled, store)


@pytest.mark.parametrize(
    "asked", [("ask", "tiny-reranker", "Tea?"), ("serve", "tiny-reranker", "--port", "0")]
)
@pytest.mark.usefixtures("store")
def test_a_reranker_that_is_asked_says_what_it_is_for(asked: tuple[str, ...]) -> None:
    done = run_here(*asked)
    assert done.code == "unavailable" and "--rerank tiny-reranker" in done.stderr
    assert "transformers answers" not in done.stderr and "loading" not in done.stderr


def test_a_lack_of_memory_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(models, "_network", full)
    with pytest.raises(MemoryError):
        Reranker(find_reranker("tiny-reranker", store=store))


@pytest.mark.usefixtures("index")
def test_a_study_searches_with_the_models_of_its_own_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.opened_reranker.cache_clear()
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "elsewhere"))
    (tmp_path / "application.toml").write_text(TOML)
    with raises(UnknownName, "unknown-name"):
        Application.load(tmp_path / "application.toml")
    probe = next(each for each in studies.probes(1) if each.passage)
    probe = msgspec.structs.replace(probe, turns=(QUESTION,), tool_result=None)
    desk, out = tmp_path / "application.toml", tmp_path / "study"
    Study(StudySpec(["scripted:mixed"], desk, probes=[probe], out=out), store=store).run()
    (row,) = studies.responses(out)
    monkeypatch.setenv("HEREDITY_STORE", str(store.root))
    assert row.exchanges[0].retrieved == ApplicationSession(Application.load(desk)).retrieve(QUESTION)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_tuned_one_is_adopted_below_its_base_and_an_unrelated_one_is_not(
    store: Store, tmp_path: Path, seed: int
) -> None:
    write_cross_encoder(tmp_path / "base")
    base = store.pull(str(tmp_path / "base"))
    write_cross_encoder(tmp_path / "tuned", seed=seed)
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    tuned = {key: value + 0.01 * torch.randn_like(value) for key, value in weights.items()}
    save_file(tuned, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    if seed:
        with raises(Refused, "refused", ["tuned", "base"]):
            adopt(str(tmp_path / "tuned"), base, store)
        return
    child = adopt(str(tmp_path / "tuned"), base, store)
    assert (child.record.modality, child.record.parents) == ("text-ranking", (base.record.id,))
    scores = [Reranker(find_reranker(name, store=store)).score("tea", "green") for name in ("base", "tuned")]
    assert scores[0] != scores[1]


def test_what_is_no_cross_encoder_with_one_label_is_refused(store: Store, tmp_path: Path) -> None:
    store.grow(TinyEncoder(), [])
    write_cross_encoder(tmp_path / "two", n_labels=2)
    store.pull(str(tmp_path / "two"))
    for name in ("tiny-encoder", "two"):
        with raises(UsageError, "bad-usage", [name]):
            find_reranker(name, store=store)
    with raises(UnknownName, "unknown-name", ["tiny-reranker"]):
        find_reranker("tiny-rerankr", store=store)


def test_bytes_that_changed_since_the_pull_are_refused(store: Store) -> None:
    flip_bit(store.named("tiny-reranker").folder / "model.safetensors")
    with raises(Damaged, "damaged", ["tiny-reranker"]):
        find_reranker("tiny-reranker", store=store)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("max_position_embeddings", 10**12),
        ("hidden_size", 10**9),
        ("num_hidden_layers", 3),  # the weights of the third would be drawn at random
        ("id2label", {"0": "a", "1": "b"}),
        ("model_type", "llama"),
        ("hidden_act", "os.system"),
        ("max_position_embeddings", 4),
    ],
)
def test_a_hostile_config_is_refused_by_name(
    tmp_path: Path, store: Store, setting: str, value: object
) -> None:
    write_cross_encoder(tmp_path / "hostile")
    config = json.loads((tmp_path / "hostile" / "config.json").read_text())
    (tmp_path / "hostile" / "config.json").write_text(json.dumps(config | {setting: value}))
    with raises(Damaged, "damaged", ["tiny-reranker"]):
        Reranker(Grown(store.named("tiny-reranker").record, tmp_path / "hostile"))


def test_weights_without_a_head_and_scores_that_are_no_numbers_are_refused(
    tmp_path: Path, store: Store
) -> None:
    write_cross_encoder(tmp_path / "broken")
    path, record = tmp_path / "broken" / "model.safetensors", store.named("tiny-reranker").record
    weights = load_file(path)
    save_file({**weights, "classifier.bias": torch.tensor([float("nan")])}, path, {"format": "pt"})
    with raises(Damaged, "damaged", ["tiny-reranker"]):
        Reranker(Grown(record, tmp_path / "broken")).score("tea", "tea")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, path, {"format": "pt"})
    with raises(Damaged, "damaged", ["classifier.bias"]):
        Reranker(Grown(record, tmp_path / "broken"))
