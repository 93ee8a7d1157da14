"""Embeddings through the API are those of the encoder, for OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("torch")

from heredity.application.retrieval.models import Embedder, open_embedder
from heredity.deploy.serve.embeddings import EmbeddingService, count_tokens
from heredity.lineage.store import Store
from tests.application.retrieval.test_dense import TinyEncoder
from tests.deploy.serve.serving import HELLO, client, listening, named
from tests.support.errors import raises

TEXTS = ["the heat pump", "green tea", "the refund of a parcel"]


class Place(NamedTuple):
    address: str
    encoder: Embedder
    service: EmbeddingService


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    store = Store(tmp_path_factory.mktemp("store"))
    store.grow(TinyEncoder(), [])
    encoder = open_embedder("tiny-encoder", store)
    service = EmbeddingService(open_embedder("tiny-encoder", store), most=4)
    with listening(named("helpful"), embedders=[service]) as address:
        yield Place(address, encoder, service)
    service.close()


def test_embeddings_are_the_encoders_own(place: Place) -> None:
    own = [place.encoder.embed(text) for text in TEXTS]
    found = client(place.address).embeddings.create(model="tiny-encoder", input=TEXTS)  # asks for base64
    floats = client(place.address).embeddings.create(
        model="tiny-encoder", input=TEXTS, encoding_format="float", dimensions=16, user="me"
    )
    for one in (found, floats):
        assert [each.index for each in one.data] == [0, 1, 2]
        for each, values in zip(one.data, own, strict=True):
            assert np.array_equal(np.array(each.embedding, np.float32), values)
    assert (
        found.usage.prompt_tokens
        == sum(count_tokens(place.encoder, text) for text in TEXTS)
        == found.usage.total_tokens
    )
    assert client(place.address).embeddings.create(model="tiny-encoder", input="green tea").data


def test_requests_take_turns_and_keep_their_own(place: Place) -> None:
    own = {text: place.encoder.embed(text).tolist() for text in TEXTS}

    def ask(number: int) -> bool:
        texts = [TEXTS[number % 3]] * (1 + 20 * (number % 2))
        found = client(place.address).embeddings.create(
            model="tiny-encoder", input=texts, encoding_format="float"
        )
        return all(each.embedding == own[texts[0]] for each in found.data)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(12)))
    assert place.service.n_open == 0


def test_an_encoder_is_listed_and_does_not_converse(place: Place) -> None:
    asking = client(place.address)
    assert [each.id for each in asking.models.list()] == ["scripted:helpful", "tiny-encoder"]
    assert asking.models.retrieve("tiny-encoder").owned_by == "bert"
    with raises(openai.BadRequestError, "not_supported"):
        asking.chat.completions.create(model="tiny-encoder", messages=HELLO)
    with raises(openai.BadRequestError, "not_supported", mentions=["scripted:helpful"]):
        asking.embeddings.create(model="scripted:helpful", input="x")
    with raises(openai.NotFoundError, "model_not_found"):
        asking.embeddings.create(model="x", input="x")


@pytest.mark.parametrize(
    ("body", "reason", "param"),
    [
        ({"input": [1, 2]}, "bad-usage", "input"),
        ({"input": [[1, 2]]}, "bad-usage", "input"),
        ({"input": []}, "bad-usage", "input"),
        ({"input": ["a", ""]}, "bad-usage", "input"),
        ({"input": ["a"] * 2049}, "bad-usage", "input"),
        ({"input": "tea " * 40}, "context-overflow", "input"),
        ({"dimensions": 8}, "bad-setting", "dimensions"),
        ({"encoding_format": "int8"}, "unknown-name", "encoding_format"),
        ({"temprature": 1}, "unknown-key", "temprature"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    place: Place, body: dict[str, Any], reason: str, param: str
) -> None:
    sent = {"model": "tiny-encoder", "input": "tea"} | body
    found = httpx.post(f"{place.address}/v1/embeddings", json=sent, timeout=30)
    error = found.json()["error"]
    assert (found.status_code, error["reason"], error["param"]) == (400, reason, param)
    assert place.service.n_open == 0


def test_more_than_may_be_open_are_told_to_come_again(place: Place) -> None:
    for _ in range(4):
        place.service.admit()
    try:
        with pytest.raises(openai.RateLimitError):
            client(place.address).embeddings.create(model="tiny-encoder", input="tea")
    finally:
        place.service.n_open = 0
