"""An encoder learns what gaps hide, by the one loop, and is what transformers loads."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from heredity.core import registry
from heredity.core.errors import BadInput, OutOfMemory, Unavailable, UsageError
from heredity.corpus import Corpus
from heredity.evals.run import Evaluation
from heredity.lineage.store import Store, engine_loader
from heredity.recipes.merge import Merge
from heredity.recipes.pretrain import recipe as pretrain
from heredity.recipes.pretrain.masked import BITS_PER_BYTE, MASKED_ACCURACY, Masked
from heredity.recipes.pretrain.recipe import Pretrain
from heredity.recipes.prune import Prune
from heredity.recipes.quantize import Quantize
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from heredity.train import loop
from heredity.train.data.packed import MaskedDataset, PackedDataset, TokenMasking, collate_masked, mask_chunk
from heredity.train.loop import MasterWeights
from heredity.train.models import encoder
from heredity.train.models.architectures import Specials, bert, modernbert
from heredity.train.models.causal_lm import PackedBatch
from heredity.train.models.shapes import BertShape, EncoderShape, n_parameters, size_preset
from tests.support.corpora import small_corpus as small_corpus
from tests.support.errors import raises
from tests.support.processes import ends_after_kills, n_rows
from tests.support.studies import APPLICATION

HIDING = TokenMasking(mask=4, end=0, n_vocabulary=400, special=frozenset(range(5)))
BOTH = pytest.mark.parametrize("architecture", ["modernbert", "bert"])


def born(architecture: str, context: int = 256, dtype: str = "float32") -> encoder.MaskedLM:
    """Of four layers, all that begins as zero made to count."""
    built = registry.load("train.models.architectures", architecture)
    shape = size_preset("300K", 400, context, {"layers": 4}, built.SHAPE).shape
    net = encoder.from_config(built.config(shape, Specials(0, 3, 4)), 1, dtype)
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in net.model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0.0, 0.02, generator=draws)
    return net


def recipe(corpus: Path, **changes: object) -> Pretrain:
    small = {
        "size": "150K",
        "context": 64,
        "tokens": 24 * 512,
        "batch_size": 512,
        "lr": 5e-3,
        "checkpoint_every": 4,
    }
    said = (
        {"dtype": "float32", "validation_tokens": 2000, "evaluations": 3, "objective": "masked"}
        | small
        | changes
    )
    return Pretrain(corpus, **said)  # type: ignore[arg-type]


@pytest.fixture
def corpus(small_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_corpus, tmp_path / "out"))


def test_gaps_are_a_share_of_every_piece_and_never_a_special_token() -> None:
    ids = np.arange(100, dtype=np.int64)
    shown, at = HIDING.apply(ids, np.random.default_rng(1))
    assert len(at) == 30 and at.min() >= 5 and (shown[at] == 4).all()
    assert (np.delete(shown, at) == np.delete(ids, at)).all()
    assert len(HIDING.apply(np.array([7]), np.random.default_rng(1))[1]) == 1
    assert len(HIDING.apply(np.array([0, 1]), np.random.default_rng(1))[1]) == 0


def test_of_bert_s_gaps_eight_of_ten_are_masks_and_one_stays() -> None:
    ids = np.full(20_000, 77, dtype=np.int64)
    how = TokenMasking(4, 0, 400, frozenset(range(5)), 0.5, "80-10-10")
    shown, at = how.apply(ids, np.random.default_rng(2))
    kinds = [(shown[at] == value).mean() for value in (4, 77)]
    assert kinds == [pytest.approx(0.8, abs=0.02), pytest.approx(0.1, abs=0.02)]
    assert shown[at][shown[at] != 4].min() >= 5


def test_gaps_hang_on_seed_step_and_piece_alone(corpus: Path) -> None:
    text = Corpus.open(corpus)
    stream = PackedDataset(text.split("train"), 0, 512, 62, 1)
    one, again = (MaskedDataset(stream, HIDING).batches(3) for _ in range(2))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(one, again, strict=True))
    shared = [
        MaskedDataset(PackedDataset(text.split("train"), 0, 512, 62, 1, rank=i, world_size=2), HIDING)
        for i in range(2)
    ]
    hidden = sorted(t for gaps in shared for batch in gaps.batches(3) for t in batch.targets.tolist())
    assert hidden == sorted(t for batch in one for t in batch.targets.tolist())
    piece = stream.chunks(3)[0]
    steps = [MaskedDataset(stream, HIDING).collate([piece], step).tokens.tolist() for step in (3, 4)]
    assert steps[0] != steps[1]


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_documents_end_to_end_give_the_numbers_of_each_alone(dtype: str, architecture: str) -> None:
    from transformers import AutoModelForMaskedLM

    net = born(architecture, dtype=dtype)
    draws = np.random.default_rng(3)
    texts = [draws.integers(5, 400, size=n) for n in (200, 150, 180, 9, 9, 3)]
    batch = collate_masked([mask_chunk(text, HIDING, [1, i]) for i, text in enumerate(texts)])
    ours = net.logits(net.hidden(batch))
    net.model.set_attn_implementation("eager")
    assert isinstance(net.model, type(AutoModelForMaskedLM.from_config(net.model.config)))
    alone = [net.model(input_ids=part[None]).logits[0] for part in batch.tokens.split(batch.lengths)]
    theirs = torch.cat(alone)[batch.at]
    assert torch.allclose(ours, theirs, atol=2e-5 if dtype == "float32" else 3e-2)
    gradients = []
    for logits in (ours, theirs):
        logits.float().square().mean().backward()
        gradients.append([p.grad.clone() for p in net.model.parameters()])
        net.model.zero_grad()
    share = 1e-3 if dtype == "float32" else 0.1
    longest = max(float(each.norm()) for each in gradients[1])
    for one, other in zip(*gradients, strict=True):  # that of a key's bias is nothing but rounding
        assert float((one - other).norm()) <= share * max(float(other.norm()), 1e-3 * longest)


@BOTH
def test_a_loss_and_its_gradients_are_those_that_transformers_tells_of_the_gaps(architecture: str) -> None:
    net = born(architecture)
    batch = collate_masked([mask_chunk(np.random.default_rng(3).integers(5, 400, size=90), HIDING, [1, 0])])
    labels = torch.full_like(batch.tokens, -100)
    labels[batch.at] = batch.targets
    loss = Masked().loss(net, batch).total
    loss.backward()
    ours = {name: p.grad.clone() for name, p in net.model.named_parameters() if p.grad is not None}
    net.model.zero_grad()
    net.model.set_attn_implementation("eager")
    theirs = net.model(input_ids=batch.tokens[None], labels=labels[None]).loss * len(batch.targets)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    theirs.backward()
    for name, p in net.model.named_parameters():
        assert torch.allclose(ours[name], p.grad, rtol=1e-3, atol=1e-4), name


def test_filler_that_is_longer_than_a_context_has_a_learned_place_too() -> None:
    net = born("bert", context=8)
    batch = collate_masked([mask_chunk(np.arange(5, 11), HIDING, [1, 0])])
    assert len(batch.padded.tokens) == 32
    states = net.hidden(batch)
    net.model.set_attn_implementation("eager")
    theirs = net.model(input_ids=batch.tokens[None]).logits[0, batch.at]
    assert torch.allclose(net.logits(states), theirs, atol=2e-5)


def test_a_size_counts_a_bert_s_places_and_no_gate() -> None:
    gated, plain = (size_preset("30M", 8192, 512, kind=kind).shape for kind in (EncoderShape, BertShape))
    assert plain.wide == 4 * plain.width and gated.wide < 3 * gated.width
    assert n_parameters(plain) == pytest.approx(3e7, rel=0.1)
    net = born("bert")
    shape = size_preset("300K", 400, 256, {"layers": 4}, BertShape).shape
    vectors = sum(p.numel() for p in net.model.parameters() if p.ndim == 1)
    head = shape.width**2 + bert.TYPES * shape.width
    assert sum(p.numel() for p in net.model.parameters()) == n_parameters(shape) + vectors + head


def test_muon_steps_what_is_multiplied_and_adamw_tables_and_vectors() -> None:
    named = list(born("bert").model.named_parameters())
    masters = MasterWeights(named, "muon", 0.01, 0.1)
    rest, muon = masters.optimizers
    (others,) = rest.param_groups
    names = {id(master): name for name, master in zip(masters.names, masters.masters, strict=True)}
    stepped = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert stepped == {n for n, p in named if p.ndim == 2 and "embeddings" not in n} and len(stepped) == 25
    assert {names[id(p)] for p in others["params"]} == {n for n, _ in named} - stepped
    assert "cls.predictions.bias" in {names[id(p)] for p in others["params"]}
    assert others["weight_decay"] == 0.0 and {g["weight_decay"] for g in muon.param_groups} == {0.1}


def test_flops_of_a_token_are_those_of_its_products() -> None:
    given = {"layers": 4, "width": 64, "wide": 128}
    shape = size_preset("300K", 400, 256, given, EncoderShape).shape
    products = 4 * (4 * 64 * 64 + 3 * 64 * 128) + 0.3 * (400 * 64 + 64 * 64)
    seen = 200 + 128 + 128 + 200  # layers 0 and 3 see the whole piece
    assert modernbert.flops_per_token(shape, 200.0, 0.3) == pytest.approx(6 * products + 12 * 64 * seen)
    plain = size_preset("300K", 400, 256, given, BertShape).shape
    products -= 4 * 64 * 128
    assert bert.flops_per_token(plain, 200.0, 0.3) == pytest.approx(6 * products + 12 * 64 * 4 * 200)


@BOTH
def test_an_encoder_is_grown_learns_and_loads_in_transformers(
    architecture: str, corpus: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

    store = Store(tmp_path / "store")
    grown = store.grow_once(recipe(corpus, architecture=architecture), [])
    record, folder = grown.record, grown.folder
    assert record.modality == "text" and record.family == record.name == f"{architecture}-150k"
    assert record.recipe.settings["corpus"] == Corpus.open(corpus).fingerprint
    rows = list(loop.Rows(folder / "training.jsonl", loop.StepMetrics))
    looks = [row.terms for row in rows if BITS_PER_BYTE in row.terms]
    assert rows[0].loss == pytest.approx(math.log(400), abs=0.3) and rows[-1].loss < rows[0].loss - 0.7
    assert len(looks) == 3 and looks[-1][BITS_PER_BYTE] < looks[0][BITS_PER_BYTE]
    assert 0 < looks[-1][MASKED_ACCURACY] < 1 and "GFLOP/s" in record.notes["speed"]
    assert record.notes["memory"].startswith("predicted 0.") and "s, measured" in record.notes["time"]
    words = AutoTokenizer.from_pretrained(folder)
    model, found = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())
    text = words("A model is a record in the lineage<|mask|>", return_tensors="pt")
    assert text.input_ids[0, 0] == text.input_ids[0, -1] == words.eos_token_id
    ours = encoder.load(folder)
    ids = text.input_ids[0]
    at = torch.arange(len(ids))
    with torch.no_grad():
        logits = ours.logits(ours.hidden(PackedBatch(ids, at, (len(ids),), at, ids, torch.zeros_like(at))))
        assert torch.allclose(logits, model(**text).logits[0], atol=1e-5)
    assert len(pipeline("fill-mask", model=model, tokenizer=words)("the<|mask|>", top_k=3)) == 3
    with raises(Unavailable, "unavailable"):
        engine_loader(record)
    grades = Evaluation([grown], ["cloze", "arithmetic"], limit=3, store=store, out=tmp_path / "evals").run()
    assert {one.task: (one.score.n, bool(one.refused)) for one in grades.grades} == {
        "cloze": (3, False),
        "arithmetic": (0, True),
    }
    with raises(UsageError, "bad-usage"):
        Evaluation([grown], ["arithmetic"], store=store)
    for made in (Prune(), Merge(), Quantize("q4_0")):
        with raises(Unavailable, "unavailable", mentions=[record.name]):
            store.grow_once(made, [grown, grown] if made.kind == "merge" else [grown])
    with raises(Unavailable, "unavailable"):
        Study(StudySpec([grown], APPLICATION, out=tmp_path / "study"), store=store).run()
    assert not (tmp_path / "study").exists() and store.models() == [record]


def run(corpus: Path, work: Path, architecture: str) -> str:
    """Train and return a digest of every weight."""
    from heredity.recipes.pretrain import masked

    made = masked.train(recipe(corpus, seed=5, tokens=14 * 512, architecture=architecture), work)
    raw = b"".join(p.detach().numpy().tobytes() for _, p in sorted(made.network.model.named_parameters()))
    return hashlib.sha256(raw).hexdigest()


@pytest.mark.proof  # the loop is killed in test_loop.py
@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_killed_again_and_again_it_comes_to_the_same_bits(
    architecture: str, corpus: Path, tmp_path: Path
) -> None:
    whole = run(corpus, tmp_path / "whole", architecture)
    program = (
        "import sys, time; from pathlib import Path; import heredity.train.loop as loop;"
        "tick = loop._ProgressClock.tick;"
        "loop._ProgressClock.tick = lambda self, m: (tick(self, m), time.sleep(0.05));"
        "from tests.train.test_masked import run;"
        f"print(run(Path({str(corpus)!r}), Path(sys.argv[1]), {architecture!r}))"
    )
    command = ["-c", program, str(tmp_path / "killed")]
    metrics = tmp_path / "killed" / loop.METRICS
    last = ends_after_kills(command, tmp_path, lambda: n_rows([metrics]), (6, 10))
    assert last.stdout.strip() == whole
    assert [row.step for row in loop.Rows(metrics, loop.StepMetrics)] == list(range(14))


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_one_that_cannot_fit_is_refused_before_its_first_step(
    corpus: Path, tmp_path: Path, architecture: str
) -> None:
    from heredity.recipes.pretrain import masked

    with raises(OutOfMemory, "out-of-memory", mentions=["GiB", "masters"]):
        masked.train(recipe(corpus, architecture=architecture, memory=0.001), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_what_is_of_another_objective_is_refused(tmp_path: Path) -> None:
    with raises(UsageError, "unknown-key", mentions=["mask_rate", "masked"]):
        Pretrain(tmp_path, mask_rate=0.2)
    with raises(UsageError, "unknown-key", mentions=["qwen3", "causal"]):
        recipe(tmp_path, architecture="qwen3")
    with raises(UsageError, "unknown-name", mentions=["modernbert"]):
        recipe(tmp_path, architecture="modernbrt")
    with raises(UsageError, "bad-setting", mentions=["mask_rate"]):
        recipe(tmp_path, mask_rate=1.0)
    file = tmp_path / "base.toml"
    file.write_text('corpus = "here"\nobjective = "masked"\nkv_heads = 0\n')
    with raises(BadInput, "unknown-key", mentions=["kv_heads"]):
        pretrain.read(file)
