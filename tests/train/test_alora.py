"""An activated LoRA learns behind its invocation alone: with PEFT's gradients, in files that it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import heredity as h
from heredity.core.errors import Unavailable, UsageError
from heredity.core.records import Message
from heredity.engines.chat import ChatCodec, Document, Template
from heredity.engines.torch.engine import open_folder
from heredity.lineage import graph
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.alora import Alora
from heredity.train.data import chat
from heredity.train.data.chat import TokenizedExample, activate
from heredity.train.models import causal_lm
from heredity.train.models.causal_lm import LoraLinear, LowRankAdapters
from heredity.train.objectives.causal import Causal
from tests.support.architectures import make as make_any
from tests.support.errors import raises
from tests.support.tiny_models import make_model

INVOCATION = (9, 8)
TRAINING = {"steps": 6, "batch_size": 4, "lr": 2e-2, "dtype": "float32", "rank": 4}
TALK = [Message("user", "the quick"), Message("assistant", "brown fox"), Message("user", "jumps"),
        Message("assistant", "over a lazy dog")]  # fmt: skip


def example(before: int, answer: int, seed: int) -> TokenizedExample:
    """Random tokens, the invocation twice, and an answer that repeats it."""
    stream = torch.Generator().manual_seed(seed)
    text = torch.randint(20, 300, (before + answer,), generator=stream).tolist()
    tokens = (
        *text[: before // 2],
        *INVOCATION,
        *text[before // 2 : before],
        *INVOCATION,
        *text[before:],
        *INVOCATION,
    )
    n = before + 4
    whole = Document(tokens, (False,) * n + (True,) * (len(tokens) - n))
    (found,) = activate([TokenizedExample(whole)], INVOCATION).examples
    assert found.active_from == before + 2 and found.document == whole
    return found


EXAMPLES = [example(30, 6, 1), example(4, 3, 2), example(11, 20, 3)]


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_loss_and_gradients_are_those_of_peft(name: str, tmp_path: Path) -> None:
    """Packed documents, padded rows and turned matrices: only tokens from the invocation on are changed."""
    peft = pytest.importorskip("peft")
    import transformers

    base = make_model(tmp_path / "base", name) if name == "llama" else make_any(tmp_path / "base", name)
    net = causal_lm.load(base, "float32")
    adapters = LowRankAdapters(rank=4, invocation=INVOCATION)
    adapters.open(net, 0)
    layers = {each: module for each, module in net.model.named_modules() if isinstance(module, LoraLinear)}
    with torch.no_grad():
        for module in layers.values():
            module.lora_b.normal_(std=0.1)
    (out := tmp_path / "adapter").mkdir()
    adapters.save(net, out)
    assert json.loads((out / "adapter_config.json").read_text())["alora_invocation_tokens"] == [9, 8]
    ours = Causal().loss(net, causal_lm.collate(EXAMPLES)).total
    ours.backward()
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(network, out, is_trainable=True).eval()
    total = torch.zeros(())
    for each in EXAMPLES:
        ids, learned = torch.tensor([each.document.tokens]), torch.tensor(each.document.is_learned)
        logits = theirs(ids, alora_offsets=[ids.shape[1] - (each.active_from or 0)]).logits[0]
        total = total + functional.cross_entropy(
            logits[:-1][learned[1:]], ids[0, 1:][learned[1:]], reduction="sum"
        )
    total.backward()
    torch.testing.assert_close(ours.detach(), total.detach(), atol=1e-3, rtol=1e-5)
    found = dict(theirs.named_parameters())
    assert layers
    for each, module in layers.items():
        for part, weight in (("A", module.lora_a), ("B", module.lora_b)):
            wanted = found[f"base_model.model.{each}.lora_{part}.default.weight"].grad
            torch.testing.assert_close(weight.grad, wanted, atol=1e-4, rtol=1e-3, msg=f"{each} {part}")


def test_a_conversation_becomes_an_example_of_each_answer(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base", "llama")
    encoder = chat.ConversationEncoder(folder)
    whole = encoder.example(chat.Dialogue(tuple(TALK), "rows:1"))
    invocation = encoder.chat.continuation(encoder.chat.generation_prompt)
    found = activate([whole], invocation)
    assert found.n_without_invocation == 0 and len(found.examples) == 2
    for each, answer in zip(found.examples, ("brown fox", "over a lazy dog"), strict=True):
        tokens, learned = each.document
        assert each.active_from is not None
        assert tokens[each.active_from : each.active_from + len(invocation)] == invocation
        said = encoder.chat.decode([t for t, use in zip(tokens, learned, strict=True) if use])
        assert said == f"{answer}<|im_end|>" and tokens == whole.document.tokens[: len(tokens)]
        assert not any(learned[: each.active_from + len(invocation)])
    assert activate([whole], (1, 1, 1)) == ((), 2)


def test_a_batch_marks_the_tokens_of_each_document_and_none_of_the_padding() -> None:
    batch = causal_lm.collate(EXAMPLES)
    assert batch.active is not None and batch.padded.active is not None
    assert len(batch.active) == len(batch.tokens) and len(batch.padded.active) == len(batch.padded.tokens)
    n_changed = sum(e.n_tokens - (e.active_from or 0) for e in EXAMPLES)
    assert int(batch.active.sum()) == int(batch.padded.active.sum()) == n_changed
    assert causal_lm.collate([TokenizedExample(e.document) for e in EXAMPLES]).active is None


@pytest.fixture
def child(store: Store, parent: Grown, data_file: Path) -> Grown:
    return store.grow_once(Alora(chat.read_data(data_file), **TRAINING, name="tickets"), [parent])


def test_the_child_learns_is_recorded_and_peft_gives_its_logits(child: Grown, parent: Grown) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    record = child.record
    assert (
        record.format == "adapter" and record.recipe.kind == "alora" and record.parents == (parent.record.id,)
    )
    assert record.recipe.settings["invocation"] == "" and "assistant" in record.notes["invocation"]
    rows = [json.loads(line) for line in (child.folder / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    engine = open_folder(parent.folder, dtype="float32", adapter=child.folder, is_probed=False)
    bare = open_folder(parent.folder, dtype="float32", is_probed=False)
    network = transformers.AutoModelForCausalLM.from_pretrained(parent.folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(network, child.folder).eval()
    asked = h.Request(0, (Message("user", "the quick brown fox"),))
    for request, is_awake in ((asked, True), (h.Request(0, (), prefill="the quick brown fox"), False)):
        with torch.inference_mode():
            ids = torch.tensor([engine.prompt_tokens(request)])
            wanted = torch.log_softmax(theirs(ids).logits[0, -1], -1)
        found, before = (each.log_probabilities(request, ())[0] for each in (engine, bare))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(found, before) is not is_awake


def test_what_is_made_of_it_is_refused_and_its_edges_are_named(
    store: Store, child: Grown, parent: Grown, data_file: Path
) -> None:
    with raises(Unavailable, "unavailable", mentions=["tickets", "aLoRA"]):
        store.grow_once(h.Lora(chat.read_data(data_file), **TRAINING), [child])
    with raises(Unavailable, "unavailable", mentions=["aLoRA"]):
        store.get("vllm:tickets")
    known = {model.id: model for model in store.models()}
    (edge,) = graph.edges([parent.record, child.record], known)
    assert (edge.parent, edge.child, edge.recipe) == (parent.record.id, child.record.id, "alora")


def test_an_invocation_of_ones_own_must_be_in_the_prompts(
    store: Store, parent: Grown, data_file: Path
) -> None:
    data = chat.read_data(data_file)
    child = store.grow_once(Alora(data, **TRAINING, invocation=" number"), [parent])
    tokens = ChatCodec(parent.folder).continuation(" number")
    config = json.loads((child.folder / "adapter_config.json").read_text())
    assert config["alora_invocation_tokens"] == [*tokens] and "number" in child.record.notes["invocation"]
    with raises(UsageError, "bad-usage", mentions=["owls", 24]):
        store.grow_once(Alora(data, **TRAINING, invocation=" owls"), [parent])


def test_an_answer_without_the_invocation_is_counted_and_not_learned(store: Store, parent: Grown) -> None:
    data = chat.Data.of("rows", [("seven owls", "watch"), ("a dog", "jumps"), ("old owls", "watch")])
    child = store.grow_once(Alora(data, **TRAINING | {"steps": 0}, invocation=" owls"), [parent])
    assert child.record.notes["asleep"].startswith("1 ")


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("", "Assistant:"),
        ("{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}", ""),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
         "{% if add_generation_prompt %}<model>\n{% endif %}", "<model>\n"),
    ],
)  # fmt: skip
def test_a_template_says_behind_which_text_an_assistant_answers(template: str, wanted: str) -> None:
    assert Template(template).generation_prompt == wanted


def test_a_template_without_one_needs_an_invocation(tmp_path: Path) -> None:
    from heredity.recipes._training_run import invocation_tokens

    folder = make_model(
        tmp_path / "base", "llama", "{% for m in messages %}{{ m.content }}[/INST]{% endfor %}"
    )
    with raises(UsageError, "bad-usage", mentions=["--invocation"]):
        invocation_tokens(folder, "")
    assert invocation_tokens(folder, "[/INST]")
