"""Divergences and preferences against references: torch.distributions, GKD's formula, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional

from heredity.core.errors import Damaged, UsageError
from heredity.engines.chat import Document
from heredity.train.data.chat import TokenizedExample
from heredity.train.models import causal_lm
from heredity.train.objectives import distill
from heredity.train.objectives.distill import Distillation, Divergence, divergence
from heredity.train.objectives.preference import PreferenceObjective
from tests.support.errors import raises
from tests.support.tiny_models import make_model
from tests.train.test_causal_lm import DOCUMENTS

ROWS = torch.randn(5, 33, generator=torch.Generator().manual_seed(3)) * 3
OTHERS = torch.randn(5, 33, generator=torch.Generator().manual_seed(4)) * 3


def reading(folder: Path, k: int, temperature: float = 1.0, n_words: int = 0) -> distill.TeacherConfig:
    return distill.TeacherConfig(k, temperature, folder / "reading", n_words)


def test_forward_and_reverse_are_the_two_kullback_leiblers() -> None:
    s, t = Categorical(logits=ROWS), Categorical(logits=OTHERS)
    assert float(divergence(ROWS, OTHERS, "forward")) == pytest.approx(
        float(kl_divergence(t, s).sum()), rel=1e-5
    )
    assert float(divergence(ROWS, OTHERS, "reverse")) == pytest.approx(
        float(kl_divergence(s, t).sum()), rel=1e-5
    )


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_js_is_the_generalized_one_of_gkd(beta: float) -> None:
    p, q = OTHERS.softmax(-1), ROWS.softmax(-1)
    middle = beta * p + (1 - beta) * q
    wanted = beta * (p * (p / middle).log()).sum() + (1 - beta) * (q * (q / middle).log()).sum()
    assert float(divergence(ROWS, OTHERS, "js", beta=beta)) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_a_student_that_says_the_same_has_nothing_to_learn(kind: str) -> None:
    assert float(divergence(ROWS, ROWS + 5, kind, 2.0)) == pytest.approx(0.0, abs=1e-4)  # type: ignore[arg-type]


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    sizes = []
    for temperature in (1.0, 4.0):
        small = (ROWS * 0.01).requires_grad_()
        divergence(small, OTHERS * 0.01, "forward", temperature).backward()
        sizes.append(float(small.grad.norm()))  # type: ignore[union-attr]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_a_distilled_loss_and_its_gradient_are_those_of_the_whole_logits(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_lm, "LOGIT_ROWS", 5)
    teacher = causal_lm.load(make_model(tmp_path, "llama", num_hidden_layers=2), "float32")
    batch = causal_lm.collate([TokenizedExample(d) for d in DOCUMENTS])
    found, wanted = (causal_lm.load(tiny_llama, "float32") for _ in range(2))
    Distillation(teacher, "js", 2.0, 0.7, 0.3).loss(found, batch).total.backward()
    logits = wanted.logits(wanted.hidden(batch))
    far = divergence(logits, teacher.logits(teacher.hidden(batch)).detach(), "js", 2.0, 0.3)
    (0.7 * far + 0.3 * functional.cross_entropy(logits, batch.targets, reduction="sum")).backward()
    theirs = dict(wanted.model.named_parameters())
    for name, parameter in found.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-3, msg=name)


def test_with_all_tokens_kept_the_loss_is_torch_s_kl_div_of_the_whole_distribution(
    tiny_llama: Path, tmp_path: Path
) -> None:
    teacher = causal_lm.load(make_model(tmp_path, "llama", num_hidden_layers=2), "float32")
    examples = [TokenizedExample(d) for d in DOCUMENTS]
    k = len(teacher.head)
    distill.write_logprobs(tmp_path / "kept", "mine", teacher, examples, reading(tmp_path, k))
    kept = distill.read_logprobs(tmp_path / "kept", "mine")
    network, batch = causal_lm.load(tiny_llama, "float32"), causal_lm.collate(examples)
    with torch.no_grad():
        found = float(Distillation(kept).loss(network, batch).total)
        mine, theirs = (each.logits(each.hidden(batch)).log_softmax(-1) for each in (network, teacher))
    wanted = functional.kl_div(mine, theirs.exp(), reduction="sum")
    assert kept.covered == pytest.approx(1.0) and found == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_with_all_tokens_but_one_kept_the_loss_is_that_of_a_live_teacher(
    kind: Divergence, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_lm, "LOGIT_ROWS", 5)
    teacher = causal_lm.load(make_model(tmp_path, "llama", num_hidden_layers=2), "float32")
    examples = [TokenizedExample(d) for d in DOCUMENTS]
    distill.write_logprobs(
        tmp_path / "kept", "mine", teacher, examples, reading(tmp_path, len(teacher.head) - 1, 2.0)
    )
    kept = distill.read_logprobs(tmp_path / "kept", "mine")
    assert len(kept) == sum(d.n_learned for d in DOCUMENTS)
    batch = causal_lm.collate(examples[::-1])  # found by what they say, in whatever order
    losses = []
    for source in (teacher, kept):
        net = causal_lm.load(tiny_llama, "float32")
        loss = Distillation(source, kind, 2.0, beta=0.3).loss(net, batch).total
        loss.backward()
        assert net.head.grad is not None
        losses.append((float(loss.detach()), net.head.grad))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)
    torch.testing.assert_close(losses[0][1], losses[1][1], atol=1e-4, rtol=1e-3)


def test_of_few_kept_tokens_the_rest_is_one_event(tiny_llama: Path, tmp_path: Path) -> None:
    teacher = causal_lm.load(make_model(tmp_path, "llama", num_hidden_layers=2), "float32")
    net = causal_lm.load(tiny_llama, "float32")
    batch = causal_lm.collate([TokenizedExample(DOCUMENTS[0])])
    distill.write_logprobs(
        tmp_path / "kept", "mine", teacher, [TokenizedExample(DOCUMENTS[0])], reading(tmp_path, 3)
    )
    kept = distill.read_logprobs(tmp_path / "kept", "mine")
    with torch.no_grad():
        p, q = (n.logits(n.hidden(batch)).softmax(-1) for n in (teacher, net))
    wanted = 0.0
    for p_row, q_row in zip(p, q, strict=True):
        best = p_row.topk(3).indices
        events = [(p_row[i], q_row[i]) for i in best] + [(1 - p_row[best].sum(), 1 - q_row[best].sum())]
        wanted += float(sum(a * (a / b).log() for a, b in events))
    assert float(Distillation(kept).loss(net, batch).total) == pytest.approx(wanted, rel=1e-3)
    assert wanted < float(Distillation(teacher).loss(net, batch).total)
    assert kept.covered == pytest.approx(float(p.topk(3).values.sum(1).mean()), rel=1e-4)


def test_a_smaller_head_is_told_of_its_own_tokens_alone(tiny_llama: Path, tmp_path: Path) -> None:
    teacher, net = (causal_lm.load(tiny_llama, "float32") for _ in range(2))
    n_words = len(teacher.head) - 5
    batch = causal_lm.collate([TokenizedExample(DOCUMENTS[0])])
    distill.write_logprobs(
        tmp_path / "kept",
        "mine",
        teacher,
        [TokenizedExample(DOCUMENTS[0])],
        reading(tmp_path, n_words - 1, 1.0, n_words),
    )
    kept = distill.read_logprobs(tmp_path / "kept", "mine")
    assert kept.n_words == n_words and int(kept.at_targets(batch)[0].max()) < n_words
    assert float(Distillation(kept).loss(net, batch).total) == pytest.approx(
        0.0, abs=1e-4
    )  # it says the same


def test_scores_of_others_are_not_read(tiny_llama: Path, tmp_path: Path) -> None:
    teacher = causal_lm.load(tiny_llama, "float32")
    distill.write_logprobs(
        tmp_path / "kept", "mine", teacher, [TokenizedExample(DOCUMENTS[0])], reading(tmp_path, 3)
    )
    with raises(Damaged, "damaged"):
        distill.read_logprobs(tmp_path / "kept", "yours")
    with pytest.raises(KeyError):
        distill.read_logprobs(tmp_path / "kept", "mine").at_targets(
            causal_lm.collate([TokenizedExample(DOCUMENTS[1])])
        )
    with raises(ValueError, "bad-setting", mentions=["1"]):
        kept = distill.read_logprobs(tmp_path / "kept", "mine")
        Distillation(kept, temperature=2.0).loss(teacher, causal_lm.collate([TokenizedExample(DOCUMENTS[0])]))
    data = bytearray((tmp_path / "kept").read_bytes())
    data[-3] ^= 1
    (tmp_path / "kept").write_bytes(data)
    with raises(Damaged, "damaged"):
        distill.read_logprobs(tmp_path / "kept", "mine")
    (tmp_path / "kept").write_bytes(b"no such file")
    with raises(Damaged, "damaged"):
        distill.read_logprobs(tmp_path / "kept", "mine")


def test_preference_begins_at_log_two_and_falls_as_the_better_answer_gains(tiny_llama: Path) -> None:
    net, reference = (causal_lm.load(tiny_llama, "float32") for _ in range(2))
    better = Document((5, 6, 7, 8), (False, False, True, True))
    worse = Document((5, 6, 9, 11, 12), (False, False, True, True, True))
    batch = causal_lm.collate([TokenizedExample(better, worse)])
    objective = PreferenceObjective(reference, 0.5)
    first = objective.loss(net, batch).total
    assert float(first.detach()) == pytest.approx(0.6931, abs=1e-4) and objective.weight(batch) == 1
    optimizer = torch.optim.SGD(net.model.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        objective.loss(net, batch).total.backward()
        optimizer.step()
    last = objective.loss(net, batch)
    assert float(last.total.detach()) < 0.5 and last.terms["preferred"] == 1.0


def test_preference_without_a_worse_answer_is_refused(tiny_llama: Path) -> None:
    net = causal_lm.load(tiny_llama, "float32")
    with raises(UsageError, "bad-usage"):
        PreferenceObjective(net).loss(net, causal_lm.collate([TokenizedExample(DOCUMENTS[0])]))
