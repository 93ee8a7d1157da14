"""Any architecture of transformers learns: a document's numbers are its own, and PEFT reads the adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heredity.core.errors import Unavailable, UsageError
from heredity.formats.linear_layers import linear_layers
from heredity.train import loop
from heredity.train.data.chat import TokenizedExample
from heredity.train.loop import BatchSampler
from heredity.train.models import causal_lm
from heredity.train.models.causal_lm import FullFinetune, LowRankAdapters
from heredity.train.objectives.causal import Causal
from tests.support.architectures import ARCHITECTURES, VARIANTS, make
from tests.support.errors import raises
from tests.support.marks import or_proof
from tests.train.test_causal_lm import DOCUMENTS, reference

EXAMPLES = [TokenizedExample(document) for document in DOCUMENTS]
TEXT = torch.tensor([[5, 9, 33, 71, 14, 8]])


@pytest.fixture(scope="module", params=or_proof(sorted(ARCHITECTURES), ARCHITECTURES.keys() - VARIANTS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, make(tmp_path_factory.mktemp(request.param), request.param)


def test_documents_in_rows_give_the_logits_of_each_alone(model: tuple[str, Path]) -> None:
    net, alone = causal_lm.load(model[1], "float32"), reference(model[1]).eval()
    assert isinstance(net, causal_lm.AnyCausalLM)
    found = net.logits(net.hidden(causal_lm.collate(EXAMPLES)))
    wanted = []
    for tokens, is_learned in DOCUMENTS:
        logits = alone(torch.tensor([tokens]), use_cache=False).logits[0]
        wanted.append(logits[[i - 1 for i in range(1, len(tokens)) if is_learned[i]]])
    torch.testing.assert_close(found, torch.cat(wanted), atol=5e-4, rtol=1e-3)


def test_an_adapter_learns_and_peft_gives_its_logits(model: tuple[str, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = model[1]
    net = causal_lm.load(folder, "float32")
    adapters = LowRankAdapters(rank=4)
    n_wanted = adapters.n_trainable(net)
    rows = _trained(net, adapters, tmp_path / "run", lr=1e-2)
    assert rows[-1].loss < rows[0].loss
    assert n_wanted == sum(p.numel() for p in net.model.parameters() if p.requires_grad)
    (out := tmp_path / "adapter").mkdir()
    adapters.save(net, out)
    theirs = peft.PeftModel.from_pretrained(reference(folder), out).eval()
    with torch.no_grad():
        ours, found, before = (
            each(input_ids=TEXT, use_cache=False).logits
            for each in (net.model, theirs, reference(folder).eval())
        )
    torch.testing.assert_close(found, ours, atol=1e-3, rtol=1e-3)
    assert float((before - ours).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "phi3", "bloom", "granite", "mamba"])
def test_all_weights_learn_and_transformers_reads_them(name: str, tmp_path: Path) -> None:
    net = causal_lm.load(make(tmp_path / "base", name), "float32")
    rows = _trained(net, FullFinetune(), tmp_path / "run", lr=3e-3)
    assert rows[-1].loss < rows[0].loss
    FullFinetune().save(net, tmp_path / "tuned")
    with torch.no_grad():
        found = reference(tmp_path / "tuned").eval()(TEXT, use_cache=False).logits
        torch.testing.assert_close(found, net.model(TEXT, use_cache=False).logits, atol=1e-5, rtol=1e-4)


def _trained(
    net: causal_lm.CausalLM, trainable: FullFinetune | LowRankAdapters, folder: Path, lr: float
) -> list[loop.StepMetrics]:
    plan = loop.TrainingPlan("digest", 6, lr, schedule="constant")
    return loop.train(net, trainable, Causal(), BatchSampler(EXAMPLES, 4, 0), plan, folder)


def test_the_gradients_are_those_of_transformers_through_a_capped_head(tmp_path: Path) -> None:
    folder = make(tmp_path / "base", "gemma2", final_logit_softcapping=5.0)
    net, alone = causal_lm.load(folder, "float32"), reference(folder).eval()
    Causal().loss(net, causal_lm.collate(EXAMPLES)).total.backward()
    for tokens, is_learned in DOCUMENTS:
        labels = torch.tensor([t if use else -100 for t, use in zip(tokens, is_learned, strict=True)])
        logits = alone(torch.tensor([tokens]), use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(
            logits[:-1], labels[1:], reduction="sum", ignore_index=-100
        ).backward()
    theirs = dict(alone.named_parameters())
    for name, parameter in net.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-3, rtol=1e-2, msg=name)


def test_logits_of_another_kind_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "base", "granite")
    monkeypatch.setattr(causal_lm, "logit_function", lambda _: lambda logits: logits * 2)
    with raises(Unavailable, "unavailable", mentions=["granite"]):
        causal_lm.load(folder, "float32")


def test_a_document_beyond_the_positions_of_a_model_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "base", "gpt2", n_positions=40, max_position_embeddings=40)
    net = causal_lm.load(folder, "float32")
    assert len(net.hidden(causal_lm.collate(EXAMPLES[:1]))) == 20  # 40 tokens, in a row of 48
    longer = TokenizedExample(
        DOCUMENTS[0]._replace(tokens=(*DOCUMENTS[0].tokens, 1), is_learned=(True,) * 41)
    )
    with raises(UsageError, "bad-usage", mentions=["41", "40"]):
        net.hidden(causal_lm.collate([longer]))


def test_the_router_and_the_head_get_no_adapter(tmp_path: Path) -> None:
    for name in ("mixtral", "qwen3_moe", "deepseek_v3", "gpt2"):
        net = causal_lm.load(make(tmp_path / name, name), "float32")
        last = {each.rpartition(".")[2] for each in linear_layers(net.model)}
        assert last and not last & {"gate", "router", "lm_head", "embed_tokens"}


def test_a_target_that_the_architecture_lacks_is_named_with_what_it_has(tmp_path: Path) -> None:
    net = causal_lm.load(make(tmp_path / "base", "gpt2"), "float32")
    with raises(UsageError, "unknown-name", mentions=["q_projection", "c_attn"]):
        LowRankAdapters(target_modules=("q_projection",)).open(net, 0)
    LowRankAdapters(target_modules=("c_attn",)).open(net, 0)
    assert sum(p.requires_grad for p in net.model.parameters()) == 6  # A and B of three layers
