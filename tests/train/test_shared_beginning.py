"""Tokens that begin every document of a batch are held once. The numbers are those of whole documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heredity.engines.chat import Document
from heredity.train.data.chat import TokenizedExample
from heredity.train.models import causal_lm
from heredity.train.models.causal_lm import PADDING_MULTIPLE, CausalLM, LowRankAdapters, PackedBatch, collate
from heredity.train.objectives.causal import Causal
from heredity.train.objectives.preference import PreferenceObjective
from tests.support.architectures import make as make_any

SYSTEM = tuple(range(20, 53))


def example(rest: tuple[int, ...], learned_from: int, active_from: int | None = None) -> TokenizedExample:
    tokens = SYSTEM + rest
    is_learned = tuple(at >= learned_from for at in range(len(tokens)))
    return TokenizedExample(Document(tokens, is_learned), active_from=active_from)


# One learns shared tokens, one is only shared tokens, and lengths differ enough for two groups of rows.
EXAMPLES = [
    example(tuple(range(60, 100)), 40),
    example((5, 6, 7), 33),
    example((8,), 10),
    example((), 30),
    example((5, 9, 9, 9, 9), 34),
]


def gradients(net: CausalLM, batch: PackedBatch) -> dict[str, torch.Tensor]:
    net.model.zero_grad()
    Causal().loss(net, batch).total.backward()
    return {n: p.grad.clone() for n, p in net.model.named_parameters() if p.grad is not None}


def assert_same(net: CausalLM, batch: PackedBatch) -> None:
    """The numbers of a batch are those of the same documents, each held whole."""
    assert batch.n_shared == len(SYSTEM) and batch.unshared.n_shared == 0
    torch.testing.assert_close(net.hidden(batch), net.hidden(batch.unshared), atol=1e-5, rtol=1e-4)
    wanted = gradients(net, batch.unshared)
    assert wanted
    for name, found in gradients(net, batch).items():
        torch.testing.assert_close(found, wanted[name], atol=2e-5, rtol=1e-3, msg=name)


def test_a_shared_beginning_changes_no_loss_and_no_gradient(any_model: Path) -> None:
    assert_same(causal_lm.load(any_model, "float32"), collate(EXAMPLES))


def test_an_architecture_with_its_own_attention_reads_whole_documents(tmp_path: Path) -> None:
    assert_same(causal_lm.load(make_any(tmp_path / "gpt2", "gpt2"), "float32"), collate(EXAMPLES))


@pytest.mark.parametrize("start", [33, 34])
def test_tokens_that_an_activated_adapter_changes_are_not_shared(tiny_llama: Path, start: int) -> None:
    net = causal_lm.load(tiny_llama, "float32")
    adapters = LowRankAdapters(rank=2, invocation=(5,))
    for _, weight in adapters.open(net, 0):
        torch.nn.init.normal_(weight, std=0.1)
    woken = [example(rest, 36, start) for rest in ((5, 5, 7, 7), (5, 6, 8), (5, 5, 9))]
    assert_same(net, collate([*woken, example((4, 4, 4, 4), 36, start)]))
    earlier = collate([*woken, example((5, 4, 4, 4), 36, 20)])
    assert earlier.n_shared == 20
    assert earlier.active is not None and len(earlier.active) == len(earlier.tokens)


def test_both_answers_of_a_pair_share_their_prompt(tiny_llama: Path) -> None:
    net, before = (causal_lm.load(tiny_llama, "float32") for _ in range(2))
    pairs = [
        TokenizedExample(example((5, 6, each), 34).document, example((7, each), 34).document)
        for each in (8, 9)
    ]
    batch = collate(pairs)
    assert batch.n_shared == len(SYSTEM) and batch.n_documents == 4
    with torch.no_grad():
        net.head.mul_(1.5)
    found, wanted = (PreferenceObjective(before).loss(net, each).total for each in (batch, batch.unshared))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


documents = st.lists(st.lists(st.integers(3, 4), max_size=20), min_size=1, max_size=6)


@given(st.integers(0, 40), documents)
def test_no_token_and_no_target_is_lost(n_begin: int, rests: list[list[int]]) -> None:
    begin = tuple(range(50, 50 + n_begin))
    made = [Document((2, *begin, *rest), (False, *(True for _ in (*begin, *rest)))) for rest in rests]
    batch = collate([TokenizedExample(each) for each in made])
    whole = batch.unshared
    assert whole.tokens.tolist() == [token for tokens, _ in made for token in tokens]
    assert whole.positions.tolist() == [at for tokens, _ in made for at in range(len(tokens))]
    assert whole.tokens[whole.at + 1].tolist() == batch.targets.tolist()
    assert len(batch.targets) == batch.n_tokens - len(made) and batch.n_tokens == len(whole.tokens)
    assert len(batch.tokens) == batch.n_tokens - batch.n_shared * (len(made) - 1)
    assert batch.n_shared == 0 or batch.n_shared > n_begin
    assert (n_begin < 16 or len(made) == 1) or batch.n_shared
    padded = batch.padded
    assert len(padded.tokens) == len(padded.positions) and len(padded.tokens) % PADDING_MULTIPLE == 0
    assert len(padded.tokens) == padded.n_tokens - batch.n_shared * (padded.n_documents - 1)
