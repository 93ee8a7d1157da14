"""Other tools' clients, each in an environment of its own, ask `heredity serve`: its answers arrive whole.

Plain calls of OpenAI's Python client are tested with the server (tests/deploy/serve).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openai")
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("uvicorn")

from heredity.study import plan
from tests.deploy.clients import environments
from tests.deploy.clients.place import CITY, DRAWN, LAST, MESSAGES, QUESTIONS, Place, opened
from tests.support.errors import run_here
from tests.support.importer_files import responses

pytestmark = [pytest.mark.proof, pytest.mark.slow]
Played = Callable[[str], dict[str, Any]]
SHORT = {"max_tokens": DRAWN["max_tokens"]}
WARM = SHORT | {"temperature": DRAWN["temperature"]}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The servers."""
    if environments.folder() is None:
        pytest.skip(f"{environments.WHERE} names no folder with environments of clients")
    with opened(tmp_path_factory.mktemp("clients")) as found:
        yield found


@pytest.fixture
def played(place: Place) -> Callable[[str], dict[str, Any]]:
    """What a client of this name did: a value or what was raised, by part."""
    return lambda name: environments.play(name, place.given)


def value(found: dict[str, Any]) -> Any:
    """What a part gave. Fails with what it raised."""
    assert "value" in found, f"{found['raised'][0]}: {found['said']}"
    return found["value"]


def test_a_setting_that_is_lost_changes_the_answer(place: Place) -> None:
    """Otherwise a server that drops what a client sends would pass. Without `max_tokens` it answers 400."""
    answers = [place.said(**SHORT), place.said(**WARM), place.said(**DRAWN)]
    assert all(answers) and len(set(answers)) == len(answers)


@pytest.mark.parametrize(
    ("client", "part", "settings"),
    [
        ("openai", "chat", DRAWN),
        ("openai-npm", "chat", DRAWN),
        ("openai-npm", "responses", WARM),
        ("anthropic", "chat", SHORT),
        ("litellm", "chat", DRAWN),
        ("litellm", "anthropic", SHORT),
        ("langchain", "chat", DRAWN),
        ("langchain", "responses", SHORT),
        ("llama-index", "chat", DRAWN),
        ("inspect_ai", "chat", DRAWN),
        ("vercel-ai", "chat", DRAWN),
        ("promptfoo", "chat", DRAWN),
    ],
)
def test_an_answer_is_the_servers_own(
    place: Place, played: Played, client: str, part: str, settings: dict[str, Any]
) -> None:
    assert value(played(client)[part]) == place.said(**settings)


@pytest.mark.parametrize(
    ("client", "settings"),
    [
        ("openai-npm", DRAWN),
        ("anthropic", SHORT),
        ("litellm", DRAWN),
        ("langchain", DRAWN),
        ("llama-index", DRAWN),
        ("vercel-ai", DRAWN),
    ],
)
def test_a_stream_is_the_answer_in_parts(
    place: Place, played: Played, client: str, settings: dict[str, Any]
) -> None:
    parts = value(played(client)["stream"])
    assert len(parts) > 1 and "".join(parts) == place.said(**settings)


@pytest.mark.parametrize(
    "client",
    ["openai", "openai-npm", "anthropic", "litellm", "langchain", "llama-index", "inspect_ai", "vercel-ai"],
)
def test_an_agents_loop_goes_round(played: Played, client: str) -> None:
    """The client runs its tool with the city of the call, and the answer is that after the result."""
    assert value(played(client)["tools"]) == [CITY, LAST]


def test_promptfoo_reads_a_call(played: Played) -> None:
    assert value(played("promptfoo")["tools"]) == [CITY]


@pytest.mark.parametrize(
    ("client", "part"),
    [
        ("openai", "schema"),
        ("openai", "schema_stream"),
        ("openai", "responses_schema"),
        ("openai-npm", "schema"),
        ("anthropic", "schema"),
        ("litellm", "schema"),
        ("langchain", "schema"),
        ("llama-index", "schema"),
        ("inspect_ai", "schema"),
        ("vercel-ai", "schema"),
        ("promptfoo", "schema"),
    ],
)
def test_an_answer_matches_the_schema(played: Played, client: str, part: str) -> None:
    found = value(played(client)[part])
    assert list(found) == ["team"] and found["team"] in ("sales", "support")


@pytest.mark.parametrize(
    ("client", "part"),
    [
        ("openai-npm", "forced_tool"),
        ("anthropic", "forced_tool"),
        ("litellm", "forced_tool"),
        ("langchain", "schema_by_tool"),
        ("llama-index", "schema_by_tool"),
        ("inspect_ai", "forced_tool"),
        ("vercel-ai", "forced_tool"),
    ],
)
def test_a_demanded_call_is_made(played: Played, client: str, part: str) -> None:
    """Several frameworks ask for structured answers by a tool that must be called."""
    found = value(played(client)[part])
    assert list(found) == ["team"] and found["team"] in ("sales", "support")


@pytest.mark.parametrize("client", ["openai-npm", "litellm", "langchain", "llama-index", "vercel-ai"])
def test_embeddings_are_the_servers_own(place: Place, played: Played, client: str) -> None:
    found = np.array(value(played(client)["embeddings"]), np.float32)
    assert np.array_equal(found, place.embedded())


@pytest.mark.parametrize(
    ("client", "part", "raised"),
    [
        ("openai-npm", "too_long", "BadRequestError"),
        ("openai-npm", "unknown", "NotFoundError"),
        ("anthropic", "too_long", "anthropic.BadRequestError"),
        ("anthropic", "unknown", "anthropic.NotFoundError"),
        ("litellm", "too_long", "litellm.exceptions.ContextWindowExceededError"),
        ("litellm", "unknown", "litellm.exceptions.NotFoundError"),
        ("langchain", "too_long", "langchain_core.exceptions.ContextOverflowError"),
        ("langchain", "unknown", "openai.NotFoundError"),
        ("llama-index", "too_long", "openai.BadRequestError"),
        ("llama-index", "unknown", "openai.NotFoundError"),
        ("inspect_ai", "unknown", "openai.NotFoundError"),
        ("vercel-ai", "too_long", "AI_APICallError"),
        ("vercel-ai", "unknown", "AI_APICallError"),
        ("promptfoo", "too_long", "Error"),
        ("promptfoo", "unknown", "Error"),
    ],
)
def test_a_mistake_is_the_clients_own_exception(played: Played, client: str, part: str, raised: str) -> None:
    found = played(client)[part]
    assert raised in found.get("raised", ()), found
    words = "maximum context length" if part == "too_long" else "no model is named 'nowhere'"
    assert words in found["said"]


def test_llama_index_completes_a_text(place: Place, played: Played) -> None:
    body = {"model": "tiny", "prompt": place.said(**DRAWN), "temperature": 0, **SHORT}
    own = place.post("/completions", **body).json()["choices"][0]["text"]
    assert value(played("llama-index")["complete"]) == own


def test_inspect_scores_and_reads_log_probabilities(place: Place, played: Played) -> None:
    found = played("inspect_ai")
    assert value(found["score"]) == 1.0
    own = place.post("/chat/completions", model="tiny", messages=MESSAGES, logprobs=True, **DRAWN).json()
    logs = own["choices"][0]["logprobs"]["content"]
    assert value(found["logprobs"]) == [each["logprob"] for each in logs]


def test_a_context_that_is_full_ends_inspects_sample_as_such(played: Played) -> None:
    assert value(played("inspect_ai")["too_long"]) == "model_length"


def test_promptfoo_scores_an_answer(played: Played) -> None:
    assert value(played("promptfoo")["scored"]) is True


def test_lm_eval_scores_multiple_choice_as_the_server_does(place: Place, played: Played) -> None:
    """The log-likelihood of each choice is the sum over its tokens, which lm-eval sends as token ids."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(place.folder)
    found = value(played("lm-eval")["choice"])
    for question, scored in zip(QUESTIONS, found, strict=True):
        n_context = len(tokenizer(question["question"])["input_ids"])
        for choice, (log, _) in zip(question["choices"], scored, strict=True):
            whole = tokenizer(f"{question['question']} {choice}")["input_ids"]
            body = {"model": "tiny", "prompt": whole, "max_tokens": 1, "temperature": 0, "logprobs": 1}
            own = place.post("/completions", echo=True, **body).json()["choices"][0]["logprobs"]
            assert log == pytest.approx(sum(own["token_logprobs"][n_context:-1]), abs=1e-9)


def test_lm_eval_reads_generated_answers(place: Place, played: Played) -> None:
    assert value(played("lm-eval")["chat"]) == place.said(temperature=0, **SHORT)


def test_garak_needs_the_flag_within_an_application(played: Played) -> None:
    """It sends a temperature unasked. Refused, it makes no attempt, and says nothing of it."""
    found = played("garak")
    ignoring = value(found["in_application"])
    assert ignoring["n"] == len(ignoring["texts"]) > 0 and "temperature" in ignoring["ignored"]
    assert not value(found["refused"])["texts"]


def test_a_report_of_garak_is_imported(place: Place, played: Played, tmp_path: Path) -> None:
    """With the intent of its attempts. One of the eight of garak's own test has an empty prompt."""
    alone = value(played("garak")["alone"])
    assert alone["n"] == len(alone["texts"]) > 1 and not alone["ignored"]
    (tmp_path / "garak.1.report.jsonl").write_bytes(Path(alone["report"]).read_bytes())
    done = run_here("import", "garak.1.report.jsonl", "--out", "s", cwd=tmp_path)
    assert done.returncode == 0 and f"lacks 1 of the {alone['n']} attempts" in done.stderr, done.stderr
    answers = [row.exchanges[0].text for row in responses(tmp_path / "s")]
    assert len(answers) == alone["n"] - 1 and set(answers) <= set(alone["texts"])
    threats = {threat for probe in plan.read_plan(tmp_path / "s").probes for threat in probe.threats}
    assert len(threats) == 1 and threats.pop().startswith("garak:")
