"""The vllm engine's handling of a server program, with a stand-in that speaks vLLM's API."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="needs heredity[remote]")

from heredity.engines import vllm
from heredity.errors import Unavailable
from heredity.records import Made, Message, Model, RecipeRecord, Request

STANDIN = Path(__file__).with_name("standin.py")
MODEL = Model(
    "0" * 32,
    "vllm:tiny",
    "f",
    "text",
    "x",
    "safetensors",
    (),
    RecipeRecord("engine", {"engine": "vllm"}),
    (),
    Made("", "", 0.0, {}),
)
ASKED = [Request(i, (Message("user", f"hello {i}"),)) for i in range(5)]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a program that is called as an environment's python is, and names it."""

    def make(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\nshift 2\n{script}\n")  # -m and the module
        path.chmod(0o755)
        monkeypatch.setenv(vllm.WHERE, str(path))

    return make


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def gone(pid: int) -> bool:
    for _ in range(100):
        if not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


def worker_of(log: Path) -> int:
    return int(log.read_text().split("worker ")[1].split()[0])


def test_a_server_is_started_asked_and_ended_with_its_workers(
    python: Callable[[str], None], tmp_path: Path
) -> None:
    python(f'exec {sys.executable} {STANDIN} "$@"')
    engine = vllm.load(MODEL, tmp_path, tmp_path / "t", start_seconds=60)
    worker = worker_of(tmp_path / "t.vllm.log")
    found = {reply.key: reply for reply in engine.reply(ASKED)}
    assert found[3].text == "tiny heard hello 3" and found[3].n_tokens == 4
    assert engine.server is not None and is_alive(worker)
    pid = engine.server.pid
    engine.close()
    assert gone(pid) and gone(worker)


def test_a_server_that_ends_while_it_starts_is_told_with_its_last_words(
    python: Callable[[str], None], tmp_path: Path
) -> None:
    python("echo no such device; exit 3")
    with pytest.raises(Unavailable, match=r"code 3 .*no such device"):
        vllm.load(MODEL, tmp_path, tmp_path / "t", start_seconds=30)


def test_a_server_that_is_never_ready_is_ended(python: Callable[[str], None], tmp_path: Path) -> None:
    python("echo worker $$; exec sleep 600")
    with pytest.raises(Unavailable, match="not ready within"):
        vllm.load(MODEL, tmp_path, tmp_path / "t", start_seconds=0.5)
    assert gone(worker_of(tmp_path / "t.vllm.log"))


def test_without_a_vllm_it_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm.WHERE, raising=False)
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="HEREDITY_VLLM"):
        vllm.load(MODEL, tmp_path)


def test_a_server_that_is_up_is_used_and_left_running(
    python: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python(f'exec {sys.executable} {STANDIN} "$@"')
    first = vllm.load(MODEL, tmp_path, tmp_path / "t", start_seconds=60)
    monkeypatch.setenv(vllm.WHERE, first._client.where.base_url)
    second = vllm.load(MODEL, tmp_path)
    assert [reply.text for reply in second.reply(ASKED[:1])] == ["tiny heard hello 0"]
    second.close()
    assert first.server is not None and is_alive(first.server.pid)
    first.close()
