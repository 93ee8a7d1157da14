"""SmolLM2-135M behind llama.cpp's own server: the engine against something that was not written here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heredity.core.records import Decoding, Message, Reply, Request
from heredity.engines.remote import engine as remote
from heredity.lineage.store import Store
from tests.support.remote_models import Calls

pytest.importorskip("xllamacpp", reason="the wheel with llama.cpp's server is not installed")

from tests.support import real_models

pytestmark = pytest.mark.models
SERVE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = sys.argv[1], {"smollm2"}
params.n_ctx, params.n_parallel, params.warmup, params.port = 8192, 4, False, 0
params.hostnames = ["127.0.0.1"]
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
SLOW = Calls(concurrency=4, stall_seconds=200.0, total_seconds=300.0, patience_seconds=600.0)
SYSTEM = Message("system", "You answer in few words.")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    weights = next(real_models.model().folder.glob("*.gguf"))
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(weights)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdin is not None
        line = process.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:"), line
        yield f"{line}/v1"
        process.stdin.close()
        process.wait(60)


def answers(address: str, folder: Path, requests: list[Request], options: str = "") -> dict[int, Reply]:
    grown = Store(folder).get(f"remote:openai:smollm2@{address}{options}")
    engine = remote.load(grown.record, grown.folder, calls=SLOW)
    try:
        found = {reply.key: reply for reply in engine.reply(requests)}
        assert len(engine.account()["served"]) == 1
    finally:
        engine.close()
    assert all(reply.error is None for reply in found.values()), found
    return found


def ask(key: int, text: str, prefill: str = "", temperature: float = 0.0, n: int = 12) -> Request:
    return Request(key, (SYSTEM, Message("user", text)), Decoding(n, temperature), 11, prefill, n_shared=1)


def test_a_real_server_answers_several_at_once_and_the_same_again(address: str, tmp_path: Path) -> None:
    asked = [ask(i, f"What is {i} plus 2?") for i in range(4)]
    first, again = answers(address, tmp_path, asked), answers(address, tmp_path, asked[:1])
    assert sorted(first) == [0, 1, 2, 3] and all(reply.text for reply in first.values())
    assert all(0 < (reply.n_tokens or 0) <= 12 and reply.n_prompt_tokens > 10 for reply in first.values())
    assert again[0].text  # company may change a batched server's bits; the text is there either way


def test_a_real_server_goes_on_with_a_prefill_and_it_is_not_said_twice(address: str, tmp_path: Path) -> None:
    begun = "The capital of France is"
    found = answers(address, tmp_path, [ask(0, "What is the capital of France?", begun)], "?prefill=trailing")
    assert "Paris" in found[0].text and not found[0].text.startswith("The capital")


def test_a_real_server_s_cut_is_told(address: str, tmp_path: Path) -> None:
    found = answers(address, tmp_path, [ask(0, "Count from one to fifty in words.", n=5)])
    assert (found[0].stop, found[0].n_tokens) == ("length", 5)
