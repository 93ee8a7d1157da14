"""A served model and a caller of tools, for the programs of clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

from heredity.application.spec import Application
from heredity.core.records import Decoding
from heredity.deploy.serve.answers import Served
from heredity.deploy.serve.worker import EngineWorker
from heredity.lineage.store import Store, scripted
from tests.application.retrieval.test_dense import TinyEncoder
from tests.cli.test_serve import serving
from tests.deploy.serve.serving import Saying, listening, named
from tests.support.tiny_models import CHATML, make_model

TEAM = {"type": "string", "enum": ["sales", "support"]}
SCHEMA = {"type": "object", "properties": {"team": TEAM}, "required": ["team"], "additionalProperties": False}
MESSAGES = [{"role": "user", "content": "hello"}]
DRAWN: dict[str, Any] = {"max_tokens": 24, "temperature": 0.9, "seed": 5}
CITY, RESULT, LAST = "Bern", "12 degrees", "It is 12 degrees."
TEXTS = ["the heat pump", "green tea", "the refund of a parcel"]
DESK = Application("desk", "You help.", decoding=Decoding(24))
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{CITY}"}}}}\n</tool_call>'
QUESTIONS = [
    {"question": "the quick brown", "choices": ["fox", "owls from an old tree"]},
    {"question": "a lazy", "choices": ["dog", "oak", "tree"]},
]
SHOWS_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
IGNORED = "x-heredity-ignored"
N_CONTEXT = 512  # tokens of the tiny model


class Caller(Saying):
    """Calls the tool, and answers when it has the result."""

    def __init__(self) -> None:
        super().__init__("")
        self._answer = lambda script: LAST if RESULT in script.asked else CALL


class Place(NamedTuple):
    """A server over a tiny random model and a tiny encoder, and another over a caller of tools."""

    address: str
    agent_address: str
    ignoring_address: str  # an application around it, with --ignore-settings
    held_address: str  # the same without
    folder: str

    def post(self, path: str, **body: Any) -> httpx.Response:
        """The server's own answer."""
        return httpx.post(f"{self.address}{path}", json=body, timeout=300)

    def said(self, **settings: Any) -> str:
        """The text that the server answers to the messages."""
        body = {"model": "tiny", "messages": MESSAGES, **settings}
        text: str = self.post("/chat/completions", **body).json()["choices"][0]["message"]["content"]
        return text

    def embedded(self) -> np.ndarray:
        """The server's own embeddings of the texts, float32 (text, hidden)."""
        found = self.post("/embeddings", model="tiny-encoder", input=TEXTS).json()["data"]
        return np.array([each["embedding"] for each in found], np.float32)

    @property
    def given(self) -> str:
        """What a client's program is told, as JSON."""
        return json.dumps({
            "address": self.address, "model": "tiny", "encoder": "tiny-encoder", "folder": self.folder,
            "agent_address": self.agent_address, "ignoring_address": self.ignoring_address,
            "held_address": self.held_address, "header": IGNORED, "questions": QUESTIONS,
            "agent": "scripted:helpful", "messages": MESSAGES, "drawn": DRAWN, "schema": SCHEMA,
            "result": RESULT, "last": LAST, "texts": TEXTS, "long": "quick " * (3 * N_CONTEXT),
            "text": self.said(**DRAWN),
        })  # fmt: skip


@contextmanager
def opened(folder: Path) -> Iterator[Place]:
    """All servers. The first is the real command in a process of its own. folder: for models and store."""
    model = make_model(folder / "models" / "tiny", "llama", SHOWS_TOOLS + CHATML)
    store = Store(folder / "store")
    store.pull(str(model))
    store.grow(TinyEncoder(), [])
    caller = Served(scripted("scripted:helpful").record, EngineWorker(Caller()))
    with (
        serving(folder, "tiny", "tiny-encoder") as (_, address),
        listening(caller) as agent,
        listening(named("helpful", DESK, ignores=True)) as ignoring,
        listening(named("helpful", DESK)) as held,
    ):
        yield Place(address, *(f"{each}/v1" for each in (agent, ignoring, held)), str(model))
