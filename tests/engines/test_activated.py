"""An activated LoRA (aLoRA): PEFT's logits from the invocation on, the base's bits before it, in company."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from heredity.core.errors import Unavailable
from heredity.core.records import Decoding, Message, Request
from heredity.engines.torch.decoder import PAD, plain
from heredity.engines.torch.engine import TorchEngine, open_folder
from heredity.engines.torch.session import placed
from heredity.engines.vllm import check_adapter
from heredity.formats.peft import read_adapter
from heredity.formats.weights import find_last
from heredity.recipes.merge_adapter import merge
from tests.support.batch_caches import caches
from tests.support.errors import raises
from tests.support.marks import or_proof
from tests.support.peft_adapters import IDS, make_adapter
from tests.support.tiny_models import WORDS, make_model

SYSTEM = Message("system", "the quick brown fox jumps over a lazy dog " * 3)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def questions(n: int) -> list[Request]:
    """Requests of one application, of many lengths; every third is a second turn."""
    stream = random.Random(3)

    def text() -> str:
        return " ".join(stream.choices(WORDS, k=stream.randint(1, 40)))

    found = []
    for key in range(n):
        turns = [Message("user", text())]
        if key % 3 == 0:
            turns += [Message("assistant", text()), Message("user", text())]
        found.append(Request(key, (SYSTEM, *turns), Decoding(stream.randint(1, 24)), n_shared=1))
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"), "llama", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def invocation(base: Path) -> tuple[int, ...]:
    return open_folder(base, dtype="float32", is_probed=False).codec.continuation("<|im_start|>assistant\n")


@pytest.fixture(scope="module")
def adapter(base: Path, invocation: tuple[int, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter")
    return make_adapter(base, out, target_modules="all-linear", alora_invocation_tokens=[*invocation])


@pytest.fixture(scope="module")
def sometimes(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that a word of the prompts wakes: some rows of a batch have it, and others not."""
    tokens = open_folder(base, dtype="float32", is_probed=False).codec.continuation(" owls")
    out = tmp_path_factory.mktemp("sometimes")
    return make_adapter(base, out, target_modules="all-linear", alora_invocation_tokens=[*tokens])


def logits(engine: TorchEngine, ids: list[int]) -> torch.Tensor:
    """After each token."""
    decoder, tokens = engine.decoder, placed(engine.decoder, tuple(ids))
    with torch.inference_mode():
        hidden = decoder.prefill(decoder.prefix(()), decoder.slots(1, 64), 0, tokens)[: len(ids)]
        return decoder.logits(hidden)


@pytest.fixture(scope="module", params=or_proof(("llama", "qwen2", "qwen3_moe"), ("llama", "qwen3_moe")))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and an adapter of it that PEFT wrote; what wakes the adapter stands in its settings alone."""
    folder = tmp_path_factory.mktemp("written")
    base = make_model(folder / "base", request.param)
    settings = {"target_modules": ATTENTION, "alora_invocation_tokens": [5], "use_rslora": True}
    return base, make_adapter(base, folder / "a", **settings)


@pytest.fixture(scope="module")
def bare(written: tuple[Path, Path]) -> torch.Tensor:
    return logits(open_folder(written[0], dtype="float32", is_probed=False), IDS)


@pytest.mark.parametrize(
    ("tokens", "start"),
    [([33, 71], 2), ([5], 0), ([77], 8), ([8, 40, 2, 77], 5), ([33, 72], None), ([2, 77, 5], None)],
)
def test_the_logits_are_those_of_peft_and_before_the_invocation_the_bits_of_the_base(
    written: tuple[Path, Path], bare: torch.Tensor, tokens: list[int], start: int | None, tmp_path: Path
) -> None:
    import transformers

    base, adapter = written[0], shutil.copytree(written[1], tmp_path / "a")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["alora_invocation_tokens"] = tokens
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        expected = peft.PeftModel.from_pretrained(network, adapter).eval()(torch.tensor([IDS])).logits[0]
    found = logits(open_folder(base, dtype="float32", adapter=adapter, is_probed=False), IDS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    n_base = len(IDS) if start is None else start
    assert torch.equal(found[:n_base], bare[:n_base])
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(found[n_base:], bare[n_base:], strict=True))


def test_the_last_occurrence_counts() -> None:
    assert find_last([1, 2, 1, 2, 1], [1, 2]) == 2 and find_last([1, 1, 1], [1, 1]) == 1
    assert find_last([1, 2], [1, 2]) == 0 and find_last([1], [1, 2]) is None and find_last([], [1]) is None


def test_greedy_answers_are_those_of_peft(base: Path, adapter: Path) -> None:
    """In PEFT's `generate` the prompt decides where the adapter begins, whatever the answer holds."""
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reference = peft.PeftModel.from_pretrained(network, adapter).eval()
    engine = open_folder(base, dtype="float32", adapter=adapter)
    bare = open_folder(base, dtype="float32")
    n_other = 0
    for request in questions(9):
        (reply,) = engine.reply([request])
        ids = torch.tensor([engine.codec.encode(reply.prompt)])
        out = reference.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.decoding.max_tokens,
            do_sample=False, eos_token_id=sorted(engine._reader.stops), pad_token_id=0,
        )  # fmt: skip
        assert tuple(out[0, ids.shape[1] :].tolist()) == reply.tokens
        n_other += [each.tokens for each in bare.reply([request])] != [reply.tokens]
    assert n_other >= 5, "the adapter changes nothing"


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.proof)])
def test_an_answer_is_bit_equal_alone_in_company_and_in_any_order(
    base: Path, sometimes: Path, dtype: str
) -> None:
    engine = open_folder(base, dtype=dtype, adapter=sometimes)
    assert not engine.capabilities.provenance.is_batch_unverified and len(engine.pool.widths) > 1
    requests = questions(40)
    awake = [min(engine.pool.split((), engine.prompt_tokens(each))[1]) < 0 for each in requests]
    assert 8 < sum(awake) < 32
    together = {reply.key: reply for reply in engine.reply(requests)}
    backwards = {reply.key: reply for reply in engine.reply(reversed(requests))}
    assert together == backwards
    fresh = open_folder(base, dtype=dtype, adapter=sometimes)  # with other caches of beginnings
    for request in requests[:12]:
        assert [together[request.key]] == list(fresh.reply([request]))
    joint = caches(engine, requests)
    for request in requests[::5]:
        assert torch.equal(caches(engine, [request])[request.key], joint[request.key])


def test_prefix_and_prompt_before_the_invocation_have_the_bits_of_the_base(base: Path, adapter: Path) -> None:
    """So they are computed once for the base and all its activated adapters."""
    one, other = open_folder(base, dtype="float32"), open_folder(base, dtype="float32", adapter=adapter)
    requests = questions(8)
    shared = one.codec.shared(requests[0])
    prompts = {each.key: one.prompt_tokens(each) for each in requests}
    with torch.inference_mode():
        left, right = one.decoder.prefix(shared), other.decoder.prefix(shared)
    sides = zip((*left.keys, *left.values), (*right.keys, *right.values), strict=True)
    assert left.length > 2 * PAD and all(torch.equal(a, b) for a, b in sides)
    bare, woken = caches(one, requests), caches(other, requests)
    for key, tokens in prompts.items():
        prefix, own = other.pool.split(shared, tokens)
        start = next(at for at, token in enumerate(own) if token < 0)
        assert prefix.length == len(shared) and plain(own) == tokens[len(shared) :]
        assert torch.equal(bare[key][..., :start, :], woken[key][..., :start, :])
        assert not torch.equal(bare[key][..., start, :], woken[key][..., start, :])


def test_a_kept_beginning_is_used_up_to_the_invocation_and_no_further(base: Path, adapter: Path) -> None:
    engine = open_folder(base, dtype="float32", adapter=adapter)
    turns: list[Message] = []
    for number in range(4):
        turns.append(Message("user", f"the quick brown fox {number} " * 12))
        request = Request(number, (SYSTEM, *turns), Decoding(20), n_shared=1)
        (reply,) = engine.reply([request])
        fresh = open_folder(base, dtype="float32", adapter=adapter)
        assert list(fresh.reply([request])) == [reply]
        turns.append(Message("assistant", reply.text))


def test_an_application_that_holds_the_last_invocation_is_no_shared_prefix(
    base: Path, sometimes: Path
) -> None:
    engine = open_folder(base, dtype="float32", adapter=sometimes)
    system = Message("system", "seven wise owls watch " * 10)
    asked = [
        Request(i, (system, Message("user", word)), Decoding(9), n_shared=1) for i, word in enumerate(WORDS)
    ]
    shared, tokens = engine.codec.shared(asked[0]), engine.prompt_tokens(asked[0])
    prefix, own = engine.pool.split(shared, tokens)
    assert prefix.length == 0 and plain(own) == tokens and min(own) < 0 < len(shared)
    together = {reply.key: reply for reply in engine.reply(asked)}
    bare = {reply.key: reply for reply in open_folder(base, dtype="float32").reply(asked)}
    assert any(together[key].tokens != bare[key].tokens for key in bare)
    assert all(list(engine.reply([each])) == [together[each.key]] for each in asked)


def test_scores_follow_the_prompt_and_not_what_the_answer_repeats(
    base: Path, adapter: Path, invocation: tuple[int, ...]
) -> None:
    import transformers

    engine = open_folder(base, dtype="float32", adapter=adapter)
    (request,) = questions(2)[1:]
    output = [9, 33, *invocation, 14]
    found = engine.log_probabilities(request, output)
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reference = peft.PeftModel.from_pretrained(network, adapter).eval()
    prompt = engine.prompt_tokens(request)
    n_changed = len(prompt) - (find_last(prompt, invocation) or 0) + len(output)
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *output]])
        wanted = reference(ids, alora_offsets=[n_changed]).logits[0, len(prompt) - 1 :]
    torch.testing.assert_close(found, torch.log_softmax(wanted, -1), atol=1e-4, rtol=1e-4)
    logs = engine.token_logs(prompt, 0, 1)
    with torch.inference_mode():
        all_of_it = torch.log_softmax(reference(torch.tensor([prompt])).logits[0], -1)
    listed = [each.log for each in logs[1:-1]]
    wanted = all_of_it[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(listed), wanted, atol=1e-4, rtol=1e-4)


def test_a_changed_stream_of_states_keeps_the_adapter(base: Path, adapter: Path) -> None:
    engine = open_folder(base, dtype="float32", adapter=adapter)
    requests = questions(16)
    direction = engine.direction(requests[:8], requests[8:])
    changed, bare = engine.without(direction), open_folder(base, dtype="float32").without(direction)
    assert torch.equal(engine.until(2).state(requests[0]), engine.until(2).state(requests[0]))
    assert [r.tokens for r in changed.reply(requests[:4])] != [r.tokens for r in bare.reply(requests[:4])]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias"),
        ({"target_modules": ["lm_head", "q_proj"]}, "lm_head"),
        ({"task_type": None}, "CAUSAL_LM"),
    ],
)
def test_an_activated_adapter_of_another_form_is_refused_by_its_name(
    tmp_path: Path, more: dict[str, object], named: str
) -> None:
    base = make_model(tmp_path / "base", "qwen2")
    settings = {"target_modules": ["q_proj"], "alora_invocation_tokens": [5], **more}
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    with raises(Unavailable, "unavailable", mentions=[named]) as caught:
        read_adapter(adapter)
    assert "merge_and_unload" not in str(caught.value)


def test_what_cannot_apply_it_refuses_it_by_name(base: Path, adapter: Path, tmp_path: Path) -> None:
    (out := tmp_path / "merged").mkdir()
    with raises(Unavailable, "unavailable", mentions=["aLoRA", "--to adapter"]):
        merge(adapter, base, out)
    assert not list(out.iterdir())
    with raises(Unavailable, "unavailable", mentions=["vLLM", "aLoRA"]) as caught:
        check_adapter("tuned", adapter, base)
    assert "merge_adapter" not in str(caught.value)
