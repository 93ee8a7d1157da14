"""The transformers engine against transformers' own `generate`: alone, in company, in parts, restarted."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import (
    ContextOverflow,
    Damaged,
    EngineFailure,
    HeredityError,
    OutOfMemory,
    Unavailable,
)
from heredity.core.records import Decoding, Message, Reply, Request
from heredity.engines import transformers as rows
from heredity.engines.transformers import TransformersEngine, open_folder
from tests.support import architectures, peft_adapters
from tests.support.errors import raises
from tests.support.marks import or_proof
from tests.support.recording_listener import RecordingListener
from tests.support.tiny_models import WORDS

# Decoded together where the probe finds equal bits. The others have experts, states, or attention of
# their own.
TOGETHER = (
    "cohere",
    "gemma2",
    "glm4",
    "gpt2",
    "gpt_neox",
    "granite",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "stablelm",
    "starcoder2",
)
KINDS = architectures.ARCHITECTURES.keys() - architectures.VARIANTS


def ask(key: int, text: str, n: int = 12, temperature: float = 0.0, seed: int = 0) -> Request:
    return Request(key, (Message("user", text),), Decoding(n, temperature), seed)


def questions(n: int, temperature: float = 0.0) -> list[Request]:
    stream = random.Random(3)
    return [
        ask(
            i, " ".join(stream.choices(WORDS, k=stream.randint(1, 30))), stream.randint(4, 16), temperature, i
        )
        for i in range(n)
    ]


def answers(engine: TransformersEngine, requests: list[Request]) -> dict[int, Reply]:
    return {reply.key: reply for reply in engine.reply(requests)}


@pytest.mark.parametrize("name", or_proof(sorted(architectures.ARCHITECTURES), KINDS))
def test_greedy_tokens_equal_generate_alone_and_in_company(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = architectures.make(tmp_path, name)
    engine = open_folder(folder, dtype="float32")
    requests = questions(4)
    together = answers(engine, requests)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for request in requests:
        ids = torch.tensor([engine.codec.encode(engine.render(request))])
        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=request.decoding.max_tokens,
            eos_token_id=[2, 0],
            pad_token_id=0,
        )
        assert together[request.key].tokens == tuple(out[0, ids.shape[1] :].tolist())
    assert answers(engine, requests[3:4])[3] == together[3]
    assert answers(engine, requests[::-1]) == together
    assert engine.width == 1 or (name in TOGETHER and engine.width == rows.WIDTH)


def test_it_has_the_capabilities_that_it_names(tmp_path: Path) -> None:
    engine = open_folder(architectures.make(tmp_path, "phi3"), dtype="float32")
    assert engine.capabilities.streamer is engine is engine.capabilities.scorer


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architectures.make(tmp_path_factory.mktemp("phi3"), "phi3", max_position_embeddings=256)


@pytest.fixture(scope="module")
def engine(phi: Path) -> TransformersEngine:
    return open_folder(phi, dtype="float32")


def test_a_sampled_answer_depends_on_its_seed_only(engine: TransformersEngine) -> None:
    requests = questions(4, temperature=1.0)
    together = answers(engine, requests)
    assert answers(engine, requests[::-1]) == together
    assert answers(engine, requests[2:3])[2] == together[2]
    (other,) = engine.reply([ask(2, requests[2].messages[0].content, 24, 1.0, seed=99)])
    assert other.tokens[:4] != together[2].tokens[:4]


def test_a_listener_hears_the_answer_in_parts_and_can_end_it(engine: TransformersEngine) -> None:
    request = ask(1, "the quick brown fox", 20)
    (whole,) = engine.reply([request])
    listener = RecordingListener()
    (heard,) = engine.stream([request], listener)
    assert heard == whole and "".join(listener.heard[1]) == whole.text
    (cut,) = engine.stream([request], RecordingListener(most=3))
    assert cut.stop == "length" and len(cut.tokens) < len(whole.tokens)


def test_what_cannot_be_answered_is_an_error_of_its_own(engine: TransformersEngine) -> None:
    long, short = ask(1, "dog " * 300), ask(2, "a dog", 4)
    found = answers(engine, [long, short])
    assert found[1].error_code == "context-overflow" and found[2].error is None
    with raises(ContextOverflow, "context-overflow"):
        engine.score(long, ["dog"])


def test_scores_are_the_models_own_and_tell_greedy_texts(engine: TransformersEngine, phi: Path) -> None:
    from transformers import AutoModelForCausalLM

    request = ask(1, "the lazy dog", 6)
    (reply,) = engine.reply([request])
    mine, other = engine.score(request, [reply.text, "owls watch"])
    assert mine.is_greedy and not other.is_greedy
    prompt, text = engine.codec.encode(engine.render(request)), engine.codec.continuation("owls watch")
    reference = AutoModelForCausalLM.from_pretrained(phi, dtype=torch.float32)
    with torch.inference_mode():
        logs = torch.log_softmax(reference(torch.tensor([prompt + text])).logits[0], dim=-1)
    expected = [float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(text)]
    assert other.logs == pytest.approx(expected, abs=1e-4)


def test_a_plain_text_is_continued(tmp_path: Path) -> None:
    engine = open_folder(architectures.make(tmp_path, "gpt2", template=None), dtype="float32")
    assert engine.capabilities.is_base
    (reply,) = engine.reply([Request(0, (), Decoding(8), prefill="the quick brown")])
    assert reply.prompt == "the quick brown" and len(reply.tokens) == 8


def test_settings_of_the_folder_do_not_change_the_sampling(phi: Path, tmp_path: Path) -> None:
    shutil.copytree(phi, tmp_path / "other")
    place = tmp_path / "other" / "generation_config.json"
    place.write_text(
        json.dumps({"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "eos_token_id": 2})
    )
    requests = questions(2)
    assert answers(open_folder(tmp_path / "other", dtype="float32"), requests) == answers(
        open_folder(phi, dtype="float32"), requests
    )


def test_a_missing_tensor_is_an_error_and_no_random_number(phi: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(phi, tmp_path / "other")
    place = tmp_path / "other" / "model.safetensors"
    tensors = load_file(place)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, place, {"format": "pt"})
    with raises(Damaged, "damaged", mentions=["model.layers.1.mlp.down_proj.weight"]):
        open_folder(tmp_path / "other")


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"model_type": "bert"}, "unavailable"),
        ({"model_type": "t5"}, "architecture-unsupported"),
        ({"model_type": "no-such-model"}, "architecture-unsupported"),
        ({}, "damaged"),
        ({"model_type": "phi3", "num_hidden_layers": "many"}, "damaged"),
    ],
)
def test_a_folder_without_a_causal_model_is_refused_by_name(
    config: dict[str, object], code: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with raises(HeredityError, code):
        open_folder(tmp_path)


@pytest.mark.parametrize("loads", ["AutoConfig", "AutoModelForCausalLM"])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_no_damage_of_a_model(
    phi: Path, monkeypatch: pytest.MonkeyPatch, loads: str, error: Exception
) -> None:
    import transformers

    def fail(*args: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(getattr(transformers, loads), "from_pretrained", fail)
    with raises(OutOfMemory, "out-of-memory", mentions=[str(phi)]):
        open_folder(phi)


def test_names_carry_what_can_change_the_bits(engine: TransformersEngine, phi: Path) -> None:
    import transformers

    for text in (engine.name, engine.numerics):
        assert f"transformers {transformers.__version__}" in text
        assert f"torch {torch.__version__}" in text and "float32" in text
    assert open_folder(phi, dtype="float32").numerics == engine.numerics
    assert open_folder(phi, dtype="bfloat16").numerics != engine.numerics


def test_a_closed_engine_says_so(phi: Path) -> None:
    engine = open_folder(phi, dtype="float32")
    engine.close()
    with raises(EngineFailure, "engine-failure"):
        list(engine.reply([ask(1, "a dog")]))


def test_rows_that_mix_are_found_out(phi: Path) -> None:
    engine = open_folder(phi, dtype="float32", is_probed=False)
    assert engine.width == 1
    if not rows.prove(engine.model):
        pytest.skip("this machine proves no width for this model")

    def mix(_: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + 1e-4 * output.mean(0, keepdim=True)

    engine.model.model.layers[1].mlp.register_forward_hook(mix)
    assert not rows.prove(engine.model)


def test_a_rotary_embedding_that_depends_on_the_longest_row_is_not_batched(tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    folder = architectures.make(tmp_path, "stablelm", rope_parameters=scaling)
    assert open_folder(folder, dtype="float32").width == 1


def test_a_shared_prefix_leaves_every_answer_as_it_is_by_itself(phi: Path) -> None:
    engine = open_folder(phi, dtype="float32")
    system = Message("system", "watch the old oak tree " * 4)
    requests = [
        Request(i, (system, Message("user", text)), Decoding(9), n_shared=1) for i, text in enumerate(WORDS)
    ]
    together = answers(engine, requests)
    for request in requests[::5]:
        assert answers(engine, [request])[request.key] == together[request.key]
    plain = [Request(each.key, each.messages, each.decoding) for each in requests]
    assert {key: reply.tokens for key, reply in answers(engine, plain).items()} == {
        key: reply.tokens for key, reply in together.items()
    }


def test_the_result_of_the_probe_is_kept(phi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_folder(phi, tmp_path / "tuning", dtype="float32")
    monkeypatch.setattr(rows, "prove", lambda model: pytest.fail("probed again"))
    again = open_folder(phi, tmp_path / "tuning", dtype="float32")
    assert again.width == first.width and again.numerics == first.numerics


@pytest.mark.parametrize("name", ["phi3", "gpt2"])
def test_an_adapter_gives_the_logits_of_peft(name: str, tmp_path: Path) -> None:
    targets = {"phi3": ["qkv_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}[name]
    base = architectures.make(tmp_path / "base", name)
    adapter = peft_adapters.make_adapter(base, tmp_path / "adapter", target_modules=targets)
    expected = torch.log_softmax(peft_adapters.peft_logits(base, adapter), -1)
    engine = open_folder(base, dtype="float32", adapter=adapter)
    with torch.inference_mode():
        found = engine._log_probabilities(tuple(peft_adapters.IDS), ())[0]
        bare = open_folder(base, dtype="float32")._log_probabilities(tuple(peft_adapters.IDS), ())[0]
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(bare, expected, atol=1e-2)


def test_an_adapter_that_must_be_merged_says_how(tmp_path: Path) -> None:
    base = architectures.make(tmp_path / "base", "phi3")
    adapter = peft_adapters.make_adapter(base, tmp_path / "adapter", target_modules=["o_proj"], use_dora=True)
    with raises(Unavailable, "unavailable", mentions=["merge_adapter"]):
        open_folder(base, dtype="float32", adapter=adapter)


@pytest.mark.parametrize("name", ["phi3", "gpt2"])
def test_an_activated_adapter_answers_as_in_peft_alone_and_together(name: str, tmp_path: Path) -> None:
    """Prompts with and without the invocation, one of them in the prefix that all share."""
    import peft
    import transformers

    targets = {"phi3": ["qkv_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}[name]
    base = architectures.make(tmp_path / "base", name)
    bare = open_folder(base, dtype="float32", is_probed=False)
    tokens = bare.codec.continuation(" owls")
    adapter = peft_adapters.make_adapter(
        base, tmp_path / "adapter", target_modules=targets, alora_invocation_tokens=[*tokens]
    )
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reference = peft.PeftModel.from_pretrained(network, adapter).eval()
    single = open_folder(base, dtype="float32", adapter=adapter, is_probed=False)
    joint = single.batched(4)
    texts = ("seven wise owls watch from an old oak", "a lazy dog", "the fox owls", "an oak tree while")
    systems = ("the quick brown fox", "old owls jump over")
    asked = [
        Request(i, (Message("system", systems[i % 2]), Message("user", text)), Decoding(7), n_shared=1)
        for i, text in enumerate((*texts, *reversed(texts)))
    ]
    replies = {each.key: each for each in joint.reply(asked)}
    n_other = 0
    for request in asked:
        (alone,) = single.reply([request])
        ids = torch.tensor([single.codec.encode(alone.prompt)])
        out = reference.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False,
            eos_token_id=sorted(single._reader.stops), pad_token_id=0,
        )  # fmt: skip
        assert alone.tokens == tuple(out[0, ids.shape[1] :].tolist()) == replies[request.key].tokens
        n_other += [each.tokens for each in bare.reply([request])] != [alone.tokens]
        scores = single.log_probabilities(request, alone.tokens[:3])
        with torch.inference_mode():
            whole = torch.cat([ids, torch.tensor([alone.tokens[:3]])], 1)
            logits = reference(whole).logits[0, ids.shape[1] - 1 :]
        torch.testing.assert_close(scores, torch.log_softmax(logits, -1), atol=1e-4, rtol=1e-4)
    assert n_other >= 2, "the adapter changes nothing"
