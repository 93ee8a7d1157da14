"""The torch engine against transformers' own arithmetic, and against itself: alone, in company, restarted."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import Damaged, EngineFailure, HeredityError, Unavailable
from heredity.core.records import Decoding, Message, Reply, Request, Tool
from heredity.engines.chat import ChatCodec, Template, _as_dict, _schema
from heredity.engines.torch import decoder as _decoder
from heredity.engines.torch.decoder import key_length
from heredity.engines.torch.engine import TorchEngine, open_folder
from heredity.formats import weights
from tests.support.batch_caches import caches
from tests.support.errors import raises
from tests.support.tiny_models import CHATML, WORDS, make_model, make_tokenizer

SYSTEM = Message("system", "the quick brown fox jumps over a lazy dog " * 3)


def ask(
    key: int, text: str, *, n: int = 12, temperature: float = 0.0, seed: int = 0, prefill: str = ""
) -> Request:
    messages = (SYSTEM, Message("user", text))
    return Request(key, messages, Decoding(n, temperature), seed, prefill, (), n_shared=1)


def questions(n: int, temperature: float = 0.0) -> list[Request]:
    stream = random.Random(3)
    return [
        ask(
            i, " ".join(stream.choices(WORDS, k=stream.randint(1, 40))), n=stream.randint(1, 40),
            temperature=temperature,
        )
        for i in range(n)
    ]  # fmt: skip


def answers(engine: TorchEngine, requests: list[Request]) -> dict[int, Reply]:
    return {reply.key: reply for reply in engine.reply(requests)}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request: pytest.FixtureRequest, tiny_llama: Path) -> TorchEngine:
    return open_folder(tiny_llama, dtype=request.param)


def test_logits_equal_transformers_with_and_without_a_prefix(any_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(any_model, dtype=torch.float32)
    tokens = tuple(torch.randint(3, 300, (70,), generator=torch.Generator().manual_seed(1)).tolist())
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0]
        decoder = _decoder.Decoder(weights.read_weights(any_model, torch.float32), torch.float32)
        for n_prefix in (0, 1, 33, 60):
            prefix, own = decoder.prefix(tokens[:n_prefix]), tokens[n_prefix:]
            slots = decoder.slots(4, 128)
            hidden = decoder.prefill(prefix, slots, 2, own[:-1])[: len(own) - 1]
            assert torch.allclose(decoder.logits(hidden), expected[n_prefix:-1], atol=2e-3, rtol=1e-3)
            at = torch.tensor([0, 0, len(own) - 1, 0])
            step = decoder.step(prefix, slots, torch.tensor([5, 6, own[-1], 7]), at)
            assert torch.allclose(step[2], expected[-1], atol=2e-3, rtol=1e-3)


def test_greedy_tokens_equal_transformers_generate(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    engine = open_folder(tiny_llama, dtype="float32")
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for request in questions(8):
        reply = answers(engine, [request])[request.key]
        ids = torch.tensor([engine.codec.encode(reply.prompt)])
        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.decoding.max_tokens,
            do_sample=False,
            eos_token_id=sorted(engine._reader.stops),
            pad_token_id=0,
        )
        assert tuple(out[0, ids.shape[1] :].tolist()) == reply.tokens


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_answer_is_bit_equal_alone_in_company_and_in_any_order(
    engine: TorchEngine, temperature: float
) -> None:
    requests = questions(70, temperature=temperature)
    together = answers(engine, requests)
    assert len(together) == 70
    backwards = answers(engine, requests[::-1])
    for request in requests[::7]:
        alone = answers(engine, [request])[request.key]
        assert alone == together[request.key] == backwards[request.key]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_keeps_its_bits_in_company_over_prefixes_of_every_length(any_kind: Path, dtype: str) -> None:
    engine = open_folder(any_kind, dtype=dtype)
    for n_words in (1, 40, 150):
        system = Message("system", " ".join(random.Random(n_words).choices(WORDS, k=n_words)))
        asked = [
            Request(i, (system, Message("user", " ".join(WORDS[i : i + 1 + i % 3]))), n_shared=1)
            for i in range(7)
        ]
        together, backwards = caches(engine, asked), caches(engine, asked[::-1])
        for request in asked:
            alone = caches(engine, [request])[request.key]
            assert torch.equal(alone, together[request.key]), (n_words, request.key)
            assert torch.equal(alone, backwards[request.key]), (n_words, request.key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_keeps_its_bits_however_long_the_caches_are(any_kind: Path, dtype: torch.dtype) -> None:
    """A long row makes everyone's cache longer, and with it what a softmax adds up."""
    decoder = _decoder.Decoder(weights.read_weights(any_kind, dtype), dtype)
    stream = torch.Generator().manual_seed(4)
    with torch.inference_mode():
        for n_prefix in (0, 1, 33, 61, 150, 251):
            prefix = decoder.prefix(tuple(torch.randint(3, 300, (n_prefix,), generator=stream).tolist()))
            rows = torch.randint(3, 300, (16, 63), generator=stream).tolist()
            last, found, first = torch.tensor([row[-1] for row in rows]), [], decoder.slots(16, 64)
            for n_cells in (64, 128, 192):
                slots = decoder.slots(16, n_cells) if found else first
                sides = (*slots.keys, *slots.values), (*first.keys, *first.values)
                for cache, short in zip(*sides, strict=True):
                    cache[:, :, :64] = short
                for slot, row in enumerate(rows[:4] if found else rows):  # some are filled in each
                    decoder.prefill(prefix, slots, slot, tuple(row[:-1]))
                found.append(decoder.step(prefix, slots, last, torch.full((16,), 62)))
            assert all(torch.equal(found[0], other) for other in found[1:]), n_prefix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_many_queries_a_head_keeps_its_bits_beside_longer_rows(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Seven queries a head are a matmul, whose order of sums may depend on the number of keys."""
    folder = make_model(
        tmp_path, "qwen2", hidden_size=448, intermediate_size=128, num_attention_heads=7,
        num_key_value_heads=1, num_hidden_layers=2, max_position_embeddings=1024,
    )  # fmt: skip
    decoder = _decoder.Decoder(weights.read_weights(folder, dtype), dtype)
    stream = torch.Generator().manual_seed(4)
    with torch.inference_mode():
        row, empty = torch.randint(3, 300, (184,), generator=stream).tolist(), decoder.prefix(())
        found = []
        for longest in (184, 200, 300, 400):
            slots = decoder.slots(4, key_length(longest))
            decoder.prefill(empty, slots, 0, tuple(row[:-1]))
            found.append(
                decoder.step(empty, slots, torch.tensor(row[-1:] * 4), torch.tensor([183, 0, 0, 0]))[0]
            )
        assert all(torch.equal(found[0], other) for other in found[1:])


def test_an_answer_is_bit_equal_after_a_restart_with_another_width(tiny_llama: Path, tmp_path: Path) -> None:
    requests = questions(40)
    first = answers(open_folder(tiny_llama, tmp_path / "t"), requests)
    again = open_folder(tiny_llama, tmp_path / "t", width=8)
    assert "width 8" in again.name
    assert answers(again, requests[25:]) == {key: first[key] for key in range(25, 40)}


def test_sampling_follows_the_trial_s_own_seed(engine: TorchEngine) -> None:
    def said(seed: int) -> tuple[int, ...]:
        return answers(engine, [ask(0, "seven wise owls", n=30, temperature=1.0, seed=seed)])[0].tokens

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(5)}) > 1


def test_a_temperature_next_to_nothing_draws_what_is_likeliest(engine: TorchEngine) -> None:
    greedy = answers(engine, [ask(0, "fox")])[0]
    for temperature in (1e-300, 5e-324):
        assert answers(engine, [ask(0, "fox", temperature=temperature)])[0].tokens == greedy.tokens


def test_a_stream_may_have_nothing_ready_and_bring_more_later(engine: TorchEngine) -> None:
    arrived: list[int] = []

    def stream() -> Iterator[Request | None]:
        yield ask(0, "an old oak tree", n=5)
        while not arrived:
            yield None
        yield ask(1, "a lazy dog", n=5)

    for reply in engine.reply(stream()):  # the stream waits for what is appended here
        arrived.append(reply.key)  # noqa: PERF401
    assert arrived == [0, 1]


def test_a_stream_that_never_brings_more_is_a_failure_not_a_hang(engine: TorchEngine) -> None:
    with raises(EngineFailure, "engine-failure"):
        list(engine.reply(iter([None])))


def test_a_prompt_past_the_context_is_an_error_reply_and_the_rest_go_on(engine: TorchEngine) -> None:
    replies = answers(engine, [ask(0, "fox " * 600), ask(1, "fox")])
    assert replies[0].stop == "error" and "context overflow" in (replies[0].error or "")
    assert replies[1].error is None


def test_a_prefill_begins_the_answer_and_is_not_in_the_text(engine: TorchEngine) -> None:
    reply = answers(engine, [ask(0, "what jumps over", prefill="the quick brown")])[0]
    assert reply.prompt.endswith("<|im_start|>assistant\nthe quick brown")
    assert not reply.text.startswith("the quick brown")


def test_log_probabilities_are_those_of_the_sequence(engine: TorchEngine, tiny_llama: Path) -> None:
    request = ask(0, "seven wise owls")
    reply = answers(engine, [request])[0]
    scored = engine.score(request, [" watch from an old oak tree"])[0].logs
    assert all(value <= 0 and math.isfinite(value) for value in scored)
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    said = engine.codec.continuation(" watch from an old oak tree")
    tokens = torch.tensor([engine.codec.encode(reply.prompt) + said])
    with torch.inference_mode():
        logs = torch.log_softmax(reference(tokens).logits[0].float(), -1)
    expected = [float(logs[-len(said) - 1 + i, token]) for i, token in enumerate(said)]
    tolerance = 0.02 if "float32" in engine.name else 1.0
    assert scored == pytest.approx(expected, abs=tolerance)


def test_two_applications_in_one_stream_each_get_their_own_prefix(engine: TorchEngine) -> None:
    other = Message("system", "an old oak tree watches seven wise owls " * 4)
    mixed = [
        ask(i, "a lazy dog")
        if i % 2
        else Request(i, (other, Message("user", "a lazy dog")), Decoding(9), n_shared=1)
        for i in range(6)
    ]
    replies = answers(engine, mixed)
    alone = {request.key: answers(engine, [request])[request.key] for request in mixed}
    assert replies == alone


def test_one_application_does_not_wait_for_the_end_of_anothers_requests(engine: TorchEngine) -> None:
    """As long as requests of one prefix came, the rows of another waited."""
    one = (SYSTEM, Message("user", "the dog"))
    other = Request(
        1, (Message("system", "a lazy dog watches"), Message("user", "the fox")), Decoding(4), n_shared=1
    )
    answered, n_asked = set[int](), 0

    def requests() -> Iterator[Request | None]:
        nonlocal n_asked
        yield Request(0, one, Decoding(4), n_shared=1)
        yield other
        while other.key not in answered and n_asked < 40 * engine.width:
            n_asked += 1
            yield Request(1 + n_asked, one, Decoding(4), n_shared=1)
            if n_asked % engine.width == 0:
                yield None

    for reply in engine.reply(requests()):
        answered.add(reply.key)
    assert other.key in answered and n_asked < 20 * engine.width


def test_a_base_model_gets_the_plain_template_and_stops_where_the_user_would_speak(tmp_path: Path) -> None:
    engine = open_folder(make_model(tmp_path, "llama", template=None))
    rendered = engine.render(ask(0, "what jumps"))
    assert rendered.endswith("User: what jumps\n\nAssistant:")
    assert engine.codec.stop_text == "\nUser:"


@pytest.mark.parametrize(("prefill", "end"), [("Sure", ": Sure"), (" Sure", ": Sure"), ("", ":")])
def test_a_base_model_s_prefill_stands_off_as_the_turns_before_it_do(
    tmp_path: Path, prefill: str, end: str
) -> None:
    chat = base_chat(tmp_path)
    messages = (SYSTEM, Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    rendered = chat.render(Request(0, messages, prefill=prefill))
    assert rendered.endswith(f"User: a\n\nAssistant: b\n\nUser: c\n\nAssistant{end}")
    assert Template("").render(Request(0, messages, prefill=prefill)) == rendered


def base_chat(folder: Path, template: str | None = None) -> ChatCodec:
    make_tokenizer(folder, template)
    return ChatCodec(folder)


def test_a_prompt_holds_one_fixed_day_and_no_clock(tmp_path: Path) -> None:
    chat = base_chat(
        tmp_path, "{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert chat.render(ask(0, "hello")) == f"01 January 2026{SYSTEM.content}hello"


@pytest.mark.parametrize("tools", [(), (Tool("pay", "Pays <money> & more.", {"to": "who"}),)])
def test_a_prompt_is_the_text_that_transformers_gives(tmp_path: Path, tools: tuple[Tool, ...]) -> None:
    template = (
        CHATML + "{{ eos_token }}{{ pad_token is defined }}{% if tools %}{{ tools | tojson }}{% endif %}"
    )
    chat = base_chat(tmp_path, template)
    request = msgspec.structs.replace(ask(0, " ünï <|im_end|> ", prefill="Sure"), tools=tools)
    expected = chat._tokenizer.apply_chat_template(
        [_as_dict(message) for message in request.messages],
        tools=[_schema(tool) for tool in tools] or None,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert chat.render(request) == expected + "Sure"


def test_a_template_without_a_system_role_gets_it_with_the_first_user_message(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    )
    engine = open_folder(make_model(tmp_path, "llama", template=template))
    assert engine.render(ask(0, "hello")) == f"[user]{SYSTEM.content}\n\nhello"


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "hidden_size": 8, "intermediate_size": 8}')
    with raises(Unavailable, "architecture-unsupported", mentions=["gpt2"]):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "gpt2", "n_embd": 8}', ("architecture-unsupported", ["gpt2"])),
        ('{"model_type": "llama"}', ("damaged", [])),
        ("[]", ("damaged", [])),
        ("{", ("damaged", [])),
        ('{"model_type": ["llama"]}', ("damaged", [])),
        (
            '{"model_type": "llama", "hidden_size": "big", "intermediate_size": 8}',
            ("damaged", ["hidden_size"]),
        ),
        ('{"model_type": "llama", "hidden_size": null}', ("damaged", ["hidden_size"])),
        ('{"model_type": "llama", "num_attention_heads": 0}', ("damaged", ["ZeroDivisionError"])),
        ('{"model_type": "gemma3", "text_config": 5}', ("damaged", ["text_config"])),
        (
            '{"model_type": "llama", "hidden_size": 8, "rope_scaling": {"rope_type": "nix"}}',
            ("damaged", []),
        ),
    ],
)
def test_an_odd_config_is_refused_in_one_line(
    tmp_path: Path, config: str, said: tuple[str, list[str]]
) -> None:
    (tmp_path / "config.json").write_text(config)
    with raises(HeredityError, *said) as refused:
        open_folder(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_config_that_is_not_that_of_the_tensors_is_refused(tmp_path: Path) -> None:
    path = make_model(tmp_path, "llama") / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 64', '"hidden_size": 128'))
    with raises(Damaged, "damaged", mentions=["hidden_size", "128"]):
        open_folder(tmp_path)


def test_numerics_name_the_rule_by_which_rows_meet(engine: TorchEngine) -> None:
    assert engine.numerics.endswith("rows apart")
