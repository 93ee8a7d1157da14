"""The llamacpp engine on a tiny GGUF, and on SmolLM2 as shipped: the same bits alone and in company."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("xllamacpp", reason="needs the extra llamacpp")

import heredity as h
from heredity import engines
from heredity.core.errors import BadArgument, ContextOverflow, Damaged, EngineFailure, UsageError
from heredity.core.records import Decoding, Message, Reply, Request, Tool
from heredity.engines import AddressedRequest, llamacpp
from heredity.engines._workers import WorkerPool
from heredity.engines.chat import Template
from heredity.engines.llamacpp import LlamaCppEngine, longest_token, open_file
from heredity.formats.gguf import GgufHeader, read_gguf
from heredity.lineage.store import Store, load_engine
from tests.support import real_models
from tests.support.errors import raises
from tests.support.model_sources import tiny_gguf as tiny_gguf
from tests.support.recording_listener import RecordingListener

SYSTEM = Message("system", "a b c d e f g")
Told = tuple[tuple[int, float], ...]


def ask(key: int, text: str, *, n: int = 12, temperature: float = 0.0, seed: int = 0) -> Request:
    return Request(key, (SYSTEM, Message("user", text)), Decoding(n, temperature), seed, n_shared=1)


def told(engine: LlamaCppEngine, requests: list[Request], width: int) -> dict[int, Told]:
    """Every token with its log-probability to the last bit, `width` requests under way at once."""
    found: dict[int, Told] = {}

    def answer(request: Request, _: object) -> Reply:
        body = engine.body(request, engine.render(request)) | {"n_probs": 1, "ignore_eos": True}
        given = engine._server.handle_completions(body)
        tokens = given["choices"][0]["logprobs"]["content"]
        found[request.key] = tuple((token["id"], token["logprob"]) for token in tokens)
        return Reply(request.key, "", "")

    list(WorkerPool(answer, width, 600, engine.render).reply(requests))
    return found


@pytest.fixture(scope="module")
def engine(tiny_gguf: Path) -> Iterator[LlamaCppEngine]:
    engine = open_file(tiny_gguf, width=4)
    yield engine
    engine.close()


def mixed(n: int, **settings: Any) -> list[Request]:
    return [ask(i, "hello " * (i % 5) + chr(97 + i), n=5 + i % 9, seed=i, **settings) for i in range(n)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_and_their_bits_are_the_same_alone_in_company_and_after_a_restart(
    engine: LlamaCppEngine, tiny_gguf: Path, temperature: float
) -> None:
    asked = mixed(16, temperature=temperature)
    alone = told(engine, asked, width=1)
    assert told(engine, asked[::-1], width=4) == alone
    restarted = open_file(tiny_gguf, width=1)
    assert told(restarted, asked[7:9], width=1) == {key: alone[key] for key in (7, 8)}
    restarted.close()


def test_a_seed_decides_what_is_drawn(engine: LlamaCppEngine) -> None:
    asked = [ask(i, "hello", temperature=1.5, seed=i // 2) for i in range(4)]
    found = told(engine, asked, width=4)
    assert found[0] == found[1] and found[2] == found[3] and found[0] != found[2]


def test_a_reply_has_what_every_engine_gives(engine: LlamaCppEngine) -> None:
    (reply,) = engine.reply([ask(3, "hello", n=5)])
    assert reply.key == 3 and reply.prompt == engine.render(ask(3, "hello"))
    assert reply.stop in ("end", "length") and reply.n_prompt_tokens > 0
    assert reply.n_tokens is not None and 1 <= reply.n_tokens <= 5
    assert "<|im_end|>" not in reply.text


def test_pieces_are_the_answer_and_the_answer_is_that_of_no_listener(engine: LlamaCppEngine) -> None:
    asked, listener = mixed(12, temperature=0.8), RecordingListener(deaf=[3])
    alone = {reply.key: reply for reply in engine.reply(asked)}
    found = {reply.key: reply for reply in engine.stream(asked, listener)}
    assert found[3] == alone[3] and 3 not in listener.heard
    for key, reply in alone.items():
        cut = reply.text.rstrip("\ufffd") if reply.stop == "length" else reply.text
        assert found[key].text in (cut, reply.text) and found[key].n_tokens == reply.n_tokens
        assert key == 3 or "".join(listener.heard.get(key, ())) == found[key].text
    assert max(map(len, listener.heard.values())) > 3


def test_an_answer_that_is_wanted_no_more_ends_at_once(engine: LlamaCppEngine) -> None:
    (reply,) = engine.stream([ask(0, "hello", n=20, temperature=1.5)], RecordingListener(most=2))
    assert reply.stop == "length" and (reply.n_tokens or 0) < 12


def test_one_that_does_not_fit_is_told_nothing_of_and_an_error(engine: LlamaCppEngine) -> None:
    listener = RecordingListener()
    long, short = engine.stream([ask(0, "hello " * 9000), ask(1, "hello")], listener)
    if long.key:
        long, short = short, long
    assert long.stop == "error" and "context overflow" in (long.error or "") and 0 not in listener.heard
    assert short.error is None


def test_the_shared_prefix_is_not_computed_again(engine: LlamaCppEngine) -> None:
    request = ask(0, "hello")
    for text in ("hello", "there"):
        request = ask(0, text)
        given = engine._server.handle_completions(engine.body(request, engine.render(request)))
    assert given["timings"]["cache_n"] > given["timings"]["prompt_n"]
    known = AddressedRequest(**msgspec.structs.asdict(request), caller="one")
    given = engine._server.handle_completions(engine.body(known, engine.render(known)))
    assert given["timings"]["cache_n"] == 0, "the slots belong to all callers"


def test_a_prompt_that_does_not_fit_is_an_error_row_and_the_next_is_answered(engine: LlamaCppEngine) -> None:
    found = {
        r.key: r for r in engine.reply([ask(0, "hello " * 90), ask(1, "hello", n=120), ask(2, "hi", n=3)])
    }
    assert all("context overflow" in str(found[key].error) for key in (0, 1))
    assert found[2].error is None


def test_a_file_that_is_cut_off_is_refused_before_llama_cpp_sees_it(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:-400])
    with pytest.raises(Damaged):
        open_file(tmp_path / "cut.gguf")


def test_a_closed_engine_says_so(tiny_gguf: Path) -> None:
    engine = open_file(tiny_gguf, width=1)
    engine.close()
    with raises(EngineFailure, "engine-failure"):
        list(engine.reply([ask(0, "hello")]))


def test_two_engines_of_one_file_are_two_models_with_one_content(tiny_gguf: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    parent = store.pull(str(tiny_gguf))
    child = store.get("llamacpp:tiny")
    assert store.get("llamacpp:tiny") == child and child.record.parents == (parent.record.id,)
    assert child.record.id != parent.record.id and child.record.files == parent.record.files
    assert engines.choose(child.record) == "llamacpp" and engines.choose(parent.record) == "torch"
    assert (child.folder / "tiny.gguf").samefile(parent.folder / "tiny.gguf")
    engine = load_engine(child, store)
    assert isinstance(engine, LlamaCppEngine) and engine.name.startswith("llamacpp")
    engine.close()


def test_an_engine_is_not_named_over_a_format_that_it_does_not_read(tmp_path: Path) -> None:
    with raises(UsageError, "bad-usage", mentions=["gguf"]):
        Store(tmp_path).get("llamacpp:scripted:careful")


def test_over_a_gguf_vllm_names_the_same_weights_in_the_form_that_it_reads(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    parent = store.pull(str(tiny_gguf))
    with raises(UsageError, "bad-usage", mentions=["heredity ask tiny hello"]):
        store.get("vllm:tiny")
    name = store.ready(parent).record.name
    with raises(UsageError, "bad-usage", mentions=[f"vllm:{name}"]):
        store.get("vllm:tiny")
    assert store.get(f"vllm:{name}").record.format == "safetensors"


def test_a_template_without_a_system_role_gets_it_in_the_first_user_message() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{% generation %}[{{ m.content }}]{% endgeneration %}{% endfor %}{{ strftime_now('%Y') }}"
    )
    assert Template(source).render(ask(0, "hello")) == "[a b c d e f g\n\nhello]2026"


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    with raises(EngineFailure, "template-refuses"):
        Template("{{ messages.__class__.__mro__[1].__subclasses__() }}").render(ask(0, "hello"))


@pytest.mark.parametrize("tools", [(), (Tool("pay", "Pays <money> & more.", {"to": "who"}),)])
def test_a_template_gives_the_text_that_transformers_gives(tools: tuple[Tool, ...]) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    from heredity.engines.chat import _as_dict, _schema

    source = (
        "{%- for m in messages %}\n    {{- '<' + m.role + '>' }}\n{{ m.content | trim }}\n"
        "    {% if loop.first %}{% continue %}{% endif %}\n!{% endfor %}\n"
        "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ bos_token }}"
    )
    request = Request(0, (SYSTEM, Message("user", " ünï ")), tools=tools)
    expected, _ = utils.render_jinja_template(
        [[_as_dict(message) for message in request.messages]],
        tools=[_schema(tool) for tool in tools] or None,
        chat_template=source,
        add_generation_prompt=True,
        bos_token="<s>",
    )
    assert Template(source, "<s>").render(request) == expected[0]


@pytest.mark.models
def test_smollm2_as_shipped_has_the_same_bits_alone_and_in_company() -> None:
    real_models.model()
    grown = h.Store().get(f"llamacpp:{real_models.SMALL}")
    engine = llamacpp.open_file(next(grown.folder.glob("*.gguf")), width=4, context=512)
    application = h.Application.load(Path(__file__).parents[2] / "examples" / "support-desk.toml")
    system = Message("system", application.system)
    asked = [
        Request(i, (system, Message("user", text)), Decoding(8), n_shared=1)
        for i, text in enumerate(
            ["Hello!", "Where is order 1001?", "What is the code? " * 9, "Say it.", "Tent?"]
        )
    ]
    together = told(engine, asked, width=4)
    assert told(engine, asked, width=1) == together
    engine.close()


def test_an_answer_matches_a_json_schema_and_a_bad_schema_is_refused(engine: LlamaCppEngine) -> None:
    schema = """{"type": "object", "properties": {"team": {"enum": ["sales", "support"]}},
        "required": ["team"], "additionalProperties": false}"""
    decoding = Decoding(60, 1.2, json_schema=schema)
    asked = [Request(i, (SYSTEM, Message("user", "hello")), decoding, seed=i) for i in range(3)]
    texts = {reply.text for reply in engine.reply(asked)}
    assert texts <= {'{"team": "sales"}', '{"team": "support"}'}
    engine.capabilities.check_schema(schema)
    with raises(BadArgument, "bad-setting", ["cat"]):
        engine.capabilities.check_schema('{"type": "cat"}')


def test_a_prompt_of_more_bytes_than_the_longest_tokens_cover_never_gets_to_llama_cpp(
    tiny_gguf: Path,
) -> None:
    header = read_gguf(tiny_gguf)
    n_bytes = longest_token(header)
    engine = open_file(tiny_gguf, width=2, context=64)
    asked = [Request(n, (), Decoding(1), prefill="a" * (64 * n_bytes + n)) for n in (0, 1)]
    engine.capabilities.check_length(asked[0])
    with raises(ContextOverflow, "context-overflow", mentions=["over 64"]):
        engine.capabilities.check_length(asked[1])
    replies = {reply.key: reply for reply in engine.reply(asked)}
    assert replies[1].error_code == ContextOverflow.code and "over 64" in str(replies[1].error)
    assert "over 64" not in str(replies[0].error)


@pytest.mark.parametrize(("kind", "n_bytes"), [("gpt2", 6), ("llama", 6), ("t5", 0), ("bert", 0)])
def test_only_tokenizers_that_lose_no_character_bound_a_prompt(kind: str, n_bytes: int) -> None:
    metadata = {"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": ("a", "\u2581\u2581", "bc")}
    assert longest_token(GgufHeader(3, metadata, ())) == n_bytes
