"""Documents laid end to end give what transformers gives for each alone; so does the head, in parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from heredity.engines.chat import Document
from heredity.train.data.chat import TokenizedExample
from heredity.train.models import causal_lm
from heredity.train.objectives.causal import Causal

DOCUMENTS = [
    Document(tuple(range(5, 5 + n)), (False,) * (n // 2) + (True,) * (n - n // 2)) for n in (40, 7, 31, 2)
]


def reference(folder: Path) -> object:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_documents_laid_end_to_end_give_the_logits_of_each_alone(any_model: Path) -> None:
    net, alone = causal_lm.load(any_model, "float32"), reference(any_model)
    batch = causal_lm.collate([TokenizedExample(d) for d in DOCUMENTS])
    found = net.logits(net.hidden(batch))
    wanted = []
    for document in DOCUMENTS:
        logits = alone(torch.tensor([document.tokens])).logits[0]
        wanted.append(logits[[i - 1 for i in range(1, len(document.tokens)) if document.is_learned[i]]])
    torch.testing.assert_close(found, torch.cat(wanted), atol=2e-4, rtol=1e-4)


def test_loss_and_gradients_are_those_of_transformers(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_lm, "LOGIT_ROWS", 7)  # so that the last part is a short one
    net, alone = causal_lm.load(tiny_llama, "float32"), reference(tiny_llama)
    batch = causal_lm.collate([TokenizedExample(d) for d in DOCUMENTS])
    (Causal().loss(net, batch).total / len(batch.targets)).backward()
    total = torch.zeros(())
    for tokens, is_learned in DOCUMENTS:
        labels = torch.tensor([t if use else -100 for t, use in zip(tokens, is_learned, strict=True)])
        logits = alone(torch.tensor([tokens])).logits[0]
        total = total + functional.cross_entropy(logits[:-1], labels[1:], reduction="sum", ignore_index=-100)
    (total / len(batch.targets)).backward()
    theirs = dict(alone.named_parameters())
    for name, parameter in net.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-3, msg=name)


def test_the_cut_of_a_step_does_not_change_its_sum(tiny_llama: Path) -> None:
    net = causal_lm.load(tiny_llama, "float32")
    examples = [TokenizedExample(d) for d in DOCUMENTS]
    whole = float(Causal().loss(net, causal_lm.collate(examples)).total.detach())
    parts = sum(float(Causal().loss(net, causal_lm.collate([e])).total.detach()) for e in examples)
    assert whole == pytest.approx(parts, rel=1e-5)
