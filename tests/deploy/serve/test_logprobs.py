"""Log-probabilities through the API are those of the engine; lm-eval's multiple choice reads them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
torch = pytest.importorskip("torch")

from heredity.core.records import Decoding, Message, Request
from heredity.deploy.serve.answers import Served
from heredity.deploy.serve.worker import EngineWorker
from heredity.engines.torch.engine import TorchEngine, open_folder
from heredity.engines.torch.session import PrefixCache
from heredity.lineage.store import scripted
from tests.deploy.serve.serving import HELLO, client, listening, named
from tests.support.errors import raises
from tests.support.tiny_models import make_model

TEXT = "the quick brown fox jumps over"
SCORED: dict[str, Any] = {"temperature": 0, "max_tokens": 0, "logprobs": 1, "echo": True}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


class Place(NamedTuple):
    address: str
    engine: TorchEngine
    own: TorchEngine  # the same, not served
    model: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = make_model(tmp_path_factory.mktemp("tiny") / "tiny", "llama")
    engines = [open_folder(folder, dtype="float32", is_probed=False) for _ in range(2)]
    model = scripted("scripted:helpful").record
    with listening(Served(model, EngineWorker(engines[0]))) as address:
        yield Place(address, *engines, model.name)


def parsed(choice: Any, n_context: int) -> tuple[float, bool]:
    """The sum and whether it is greedy, as lm-eval's `local-completions` reads a choice."""
    assert n_context > 0
    logs = choice["logprobs"]["token_logprobs"][n_context:-1]
    tops = choice["logprobs"]["top_logprobs"][n_context:-1]
    return sum(logs), all(log == max(top.values()) for log, top in zip(logs, tops, strict=True))


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_multiple_choice_is_scored_from_token_ids(place: Place, max_tokens: int) -> None:
    """The body is lm-eval's own: it sends 1; some harnesses send 0, and then there is no last token."""
    context = place.own.codec.encode(TEXT)
    greedy = next(iter(place.own.reply([Request(0, (), Decoding(4), prefill=TEXT)])))
    tails = [greedy.tokens[:3], place.own.codec.continuation(" lazy dog"), (7, 7, 300)]
    prompts = [[*context, *tail] for tail in tails]
    body = {"model": place.model, "prompt": prompts, "seed": 1234} | SCORED | {"max_tokens": max_tokens}
    choices = httpx.post(f"{place.address}/v1/completions", json=body, timeout=60).json()["choices"]
    for choice, tail, prompt in zip(choices, tails, prompts, strict=True):
        if not max_tokens:
            choice["logprobs"]["token_logprobs"].append(0)
            choice["logprobs"]["top_logprobs"].append({})
        total, is_greedy = parsed(choice, len(context))
        logs = place.own.log_probabilities(Request(0, (), prefill=TEXT), tail[:-1])
        assert total == pytest.approx(float(logs[range(len(tail)), tail].sum()), abs=1e-4)
        assert is_greedy == (tail == greedy.tokens[:3])
        assert choice["text"].startswith(place.own.codec.decode(tuple(prompt)))
        assert len(choice["logprobs"]["tokens"]) == len(prompt) + 1 - (not max_tokens)
    assert choices[0]["logprobs"]["token_logprobs"][0] is None


def test_a_text_is_echoed_with_its_answer(place: Place) -> None:
    ask = client(place.address).completions.create
    plain = ask(model=place.model, prompt=TEXT, **GREEDY).choices[0].text
    found = ask(model=place.model, prompt=TEXT, echo=True, logprobs=2, **GREEDY).choices[0]
    assert found.text == TEXT + plain and "".join(found.logprobs.tokens) == found.text
    for at, token in zip(found.logprobs.text_offset, found.logprobs.tokens, strict=True):
        assert found.text[at:].startswith(token)
    chunks = list(ask(model=place.model, prompt=TEXT, echo=True, stream=True, logprobs=2, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in chunks) == found.text
    assert chunks[-1].choices[0].logprobs == found.logprobs


def test_token_ids_are_continued_as_their_text_is(place: Place) -> None:
    ask = client(place.address).completions.create
    tokens = list(place.own.codec.encode(TEXT))
    by_text = ask(model=place.model, prompt=TEXT, **GREEDY).choices[0].text
    assert ask(model=place.model, prompt=tokens, **GREEDY).choices[0].text == by_text


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_has_the_logs_of_its_tokens(place: Place, is_streamed: bool) -> None:
    request = Request(0, (Message("user", "hello"),), Decoding(8))
    own = next(iter(place.own.reply([request])))
    made = client(place.address).chat.completions.create(
        model=place.model, messages=HELLO, logprobs=True, top_logprobs=3, stream=is_streamed, **GREEDY
    )
    logs = (list(made)[-1] if is_streamed else made).choices[0].logprobs.content
    assert "".join(each.token for each in logs) == own.text
    expected = place.own.log_probabilities(request, own.tokens)
    for i, each in enumerate(logs):
        assert each.logprob == pytest.approx(float(expected[i, own.tokens[i]]), abs=1e-4)
    for each in logs:
        assert len(each.top_logprobs) == 3
        assert each.top_logprobs[0].logprob == max(top.logprob for top in each.top_logprobs) == each.logprob


def test_a_stop_text_cuts_the_logs_too(place: Place) -> None:
    ask = client(place.address).chat.completions.create
    whole = ask(model=place.model, messages=HELLO, **GREEDY).choices[0].message.content
    cut = ask(model=place.model, messages=HELLO, stop=whole[5:7], logprobs=True, **GREEDY).choices[0]
    told = "".join(each.token for each in cut.logprobs.content)
    assert told.startswith(cut.message.content) and len(cut.message.content) <= len(told) < len(whole)


def test_scores_between_the_steps_of_answers_change_none_of_them(place: Place) -> None:
    texts = [f"the fox {'and the dog ' * (i % 5)} {i}" for i in range(16)]
    asked = [Request(0, (Message("user", text),), Decoding(24)) for text in texts]
    own = [next(iter(place.own.reply([request]))).text for request in asked]

    def ask(number: int) -> Any:
        asking = client(place.address)
        if number % 2:
            prompt = TEXT * (1 + number % 3)
            scored = asking.completions.create(model=place.model, prompt=prompt, **SCORED).choices[0]
            return scored.logprobs.token_logprobs[1:]
        said = [{"role": "user", "content": texts[number]}]
        return asking.chat.completions.create(
            model=place.model, messages=said, max_tokens=24, temperature=0
        ).choices[0].message.content  # fmt: skip

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(16)))
    assert found[::2] == own[::2]
    assert all(found[i] == ask(i) for i in range(1, 16, 2))


@pytest.mark.parametrize(
    ("body", "reason", "param"),
    [
        ({"prompt": [1, 2, 10**6], "echo": True, "max_tokens": 0}, "bad-usage", None),
        ({"prompt": [-1], "max_tokens": 4}, "bad-usage", None),
        ({"prompt": [1, "a"]}, "bad-usage", "prompt"),
        ({"prompt": [7] * 600}, "context-overflow", "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "bad-setting", "max_tokens"),
        ({"prompt": "a", "max_tokens": 0, "echo": True, "temperature": 1}, "bad-setting", "max_tokens"),
        ({"prompt": "a", "logprobs": 21}, "bad-setting", "top_logprobs"),
        ({"prompt": "a " * 900, "max_tokens": 0, "echo": True}, "context-overflow", None),
    ],
)
def test_what_cannot_be_scored_is_refused(
    place: Place, body: dict[str, Any], reason: str, param: str
) -> None:
    refused = raises(
        openai.BadRequestError,
        "context_length_exceeded"
        if reason in ("context-overflow", "context-overflow")
        else "invalid_request",
    )
    with refused as caught:
        client(place.address).completions.create(model=place.model, **({"temperature": 0} | body))
    assert (caught.value.body["reason"], caught.value.param) == (reason, param)


def test_a_full_context_is_said_in_the_words_that_clients_look_for(place: Place) -> None:
    """Agents rely on what litellm raises for the words, and LangChain for the code in them."""
    said = [{"role": "user", "content": "the fox " * 900}]
    for ask in (
        lambda: client(place.address).chat.completions.create(model=place.model, messages=said),
        lambda: client(place.address).completions.create(model=place.model, prompt=said[0]["content"]),
        lambda: client(place.address).completions.create(model=place.model, prompt=[7] * 600),
    ):
        with raises(openai.BadRequestError, "context_length_exceeded") as caught:
            ask()
        error = str(caught.value)
        assert "this model's maximum context length is" in error.lower()
        assert "context_length_exceeded" in error


def test_an_engine_without_scores_says_so() -> None:
    with listening(named("helpful")) as address, raises(openai.BadRequestError, "invalid_request") as caught:
        client(address).chat.completions.create(model="scripted:helpful", messages=HELLO, logprobs=True)
    assert (caught.value.body["reason"], caught.value.param) == ("bad-usage", "logprobs")


@pytest.mark.parametrize("keys", [("one",), ("one", "other")])
def test_what_one_key_sent_shortens_no_prompt_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...]
) -> None:
    copied, load = list[int](), PrefixCache.load

    def noted(self: PrefixCache, *given: Any) -> int:
        copied.append(load(self, *given))
        return copied[-1]

    monkeypatch.setattr(PrefixCache, "load", noted)
    engine = open_folder(make_model(tmp_path / "tiny", "llama"), dtype="float32")
    model = scripted("scripted:helpful").record
    told: list[Any] = [{"role": "system", "content": f"{TEXT} " * 60}, *HELLO]
    answers = set()
    with listening(Served(model, EngineWorker(engine)), keys=keys) as address:
        for key in (keys[0], keys[0], keys[-1], keys[-1]):
            asked = client(address, key).chat.completions
            found = asked.create(model=model.name, messages=told, max_tokens=4)
            answers.add(found.choices[0].message.content)
    assert [n > 0 for n in copied] == [False, True, len(keys) == 1, True]
    assert len(answers) == 1
