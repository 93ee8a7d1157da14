"""`heredity serve`: a real process, asked over loopback, and ended as people and schedulers end it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

pytest.importorskip("uvicorn")

from heredity.cli import heredity, main
from heredity.deploy.serve import bound
from tests.support.cli import DESK
from tests.support.errors import check_refused, run_here

PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it says. An application `desk.toml` is written if there is none."""
    if not (folder / "desk.toml").exists():
        (folder / "desk.toml").write_text(DESK)
    command = [sys.executable, "-m", "heredity", "serve", *arguments, "--port", "0"]
    environment = os.environ | {"HEREDITY_STORE": str(folder / "store")}
    process = subprocess.Popen(command, cwd=folder, env=environment, text=True, **PIPES)
    try:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"http://[\w.:\[\]]+/v1", line):
                yield process, found[0]
                return
        raise AssertionError(said)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(tmp_path: Path, signal_: signal.Signals) -> None:
    with serving(tmp_path, "scripted:leaky", "--application", "desk.toml") as (process, address):
        body = {"model": "scripted:leaky", "messages": [{"role": "user", "content": "hello"}]}
        said = httpx.post(f"{address}/chat/completions", json=body, timeout=60).json()
        assert "ZEBRA-4417-KITE" in said["choices"][0]["message"]["content"]  # the application is around it
        process.send_signal(signal_)
        _, left = process.communicate(timeout=60)
        assert process.returncode == 0 and left == "closed\n"


def test_every_model_is_served_in_every_application(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text('name = "shop"\nsystem = "You sell."\n')
    layers = ("--application", "desk.toml", "--application", "shop.toml")
    with serving(tmp_path, "scripted:leaky", "scripted:helpful", *layers) as (_, address):
        found = [each["id"] for each in httpx.get(f"{address}/models", timeout=60).json()["data"]]
        body = {"model": found[1], "messages": [{"role": "user", "content": "hello"}]}
        said = httpx.post(f"{address}/chat/completions", json=body, timeout=60).json()["choices"][0][
            "message"
        ]["content"]
    desk = re.search(r'name = "(.*)"', DESK)[1]  # type: ignore[index]
    models = ("scripted:leaky", "scripted:helpful")
    assert found == [f"{layer}@{model}" for model in models for layer in (desk, "shop")]
    assert "You sell." in said and "ZEBRA" not in said


@pytest.mark.slow
def test_a_base_and_an_adapter_in_one_process_answer_as_each_does_alone(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from heredity.core.records import Decoding, Message, Request
    from heredity.lineage.store import Store, load_engine
    from heredity.recipes.adopt import adopt
    from tests.support.random_adapters import random_adapter
    from tests.support.tiny_models import make_model

    store = Store(tmp_path / "store")
    base = store.pull(str(make_model(tmp_path / "base", "llama")))
    models = {"base": base}
    for seed, name in enumerate(("tickets", "late")):
        models[name] = adopt(str(random_adapter(base.folder, tmp_path / name, seed, rank=8)), base, store)
    alone = {}
    for name, grown in models.items():
        engine = load_engine(grown, store, is_batched=False)
        (reply,) = engine.reply([Request(0, (Message("user", "the quick brown fox"),), Decoding(16))])
        alone[name] = reply.text
        engine.close()
    assert len(set(alone.values())) == 3

    def said(address: str, name: str) -> str:
        turns = [{"role": "user", "content": "the quick brown fox"}]
        body = {"model": name, "messages": turns, "max_tokens": 16, "temperature": 0}
        found = httpx.post(f"{address}/chat/completions", json=body, timeout=60).json()
        assert found["model"] == name
        return str(found["choices"][0]["message"]["content"])

    with serving(tmp_path, "base", "tickets", "--load-adapters") as (process, address):
        with ThreadPoolExecutor(4) as callers:  # in one batch
            asked = ["base", "tickets"] * 3
            found = list(callers.map(lambda name: said(address, name), asked))
        assert found == [alone[name] for name in asked]
        more = httpx.post(f"{address}/load_lora_adapter", json={"lora_name": "late"}, timeout=60)
        assert more.status_code == 200, more.text
        assert said(address, "late") == alone["late"]
        gone = httpx.post(f"{address}/unload_lora_adapter", json={"lora_name": "tickets"}, timeout=60)
        assert gone.status_code == 200, gone.text
        assert [each["id"] for each in httpx.get(f"{address}/models", timeout=60).json()["data"]] == [
            "base",
            "late",
        ]
        process.send_signal(signal.SIGINT)
        _, left = process.communicate(timeout=60)
        assert process.returncode == 0 and left.endswith("closed\n"), left


def test_what_an_operator_turns_on_is_on(tmp_path: Path) -> None:
    turned_on = ("--metrics", "--access-log", "--cors", "https://a.example", "--requests-per-minute", "60")
    with serving(tmp_path, "scripted:helpful", *turned_on) as (process, address):
        found = httpx.get(f"{address}/models", headers={"origin": "https://a.example"}, timeout=60)
        assert found.headers["access-control-allow-origin"] == "https://a.example"
        assert (
            "heredity_requests_total" in httpx.get(address.removesuffix("/v1") + "/metrics", timeout=60).text
        )
        process.send_signal(signal.SIGINT)
        lines, _ = process.communicate(timeout=60)
        assert [json.loads(line)["route"] for line in lines.splitlines()] == ["/v1/models", "/metrics"]


HALF = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: 1000\r\n\r\n{",
    b"GET /hea",
)


def test_who_leaves_in_the_middle_is_no_fault(tmp_path: Path) -> None:
    with serving(tmp_path, "scripted:helpful") as (process, address):
        where = httpx.URL(address)
        for half in HALF:
            with socket.create_connection((where.host, where.port)) as line:
                line.sendall(half)
        body = {"model": "scripted:helpful", "messages": [{"role": "user", "content": "hello"}]}
        assert httpx.post(f"{address}/chat/completions", json=body, timeout=60).status_code == 200
        process.send_signal(signal.SIGINT)
        _, left = process.communicate(timeout=60)
        assert left == "closed\n"


def test_an_answer_is_sent_at_once() -> None:
    """asyncio turns Nagle's wait off for sockets that are TCP's by name: else each answer waits 40 ms."""
    with bound("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scripted:helpfull"], "Did you mean 'scripted:helpful'"),
        (["scripted:helpful", "--host", "0.0.0.0"], "any machine could connect"),
        (["scripted:helpful", "--api-key-env", "NOWHERE_SET"], "NOWHERE_SET holds no key"),
        (["scripted:helpful", "--api-key-env", "ODD_KEY"], "ODD_KEY holds no key of printable ASCII"),
        (["scripted:helpful", "--host", "203.0.113.9", "--api-key-env", "HOME"], "Cannot listen"),
        (["scripted:helpful", "--application", "missing.toml"], "missing.toml"),
        (["scripted:helpful", *2 * ["--application", "desk.toml"]], "same name"),
        (["scripted:helpful", "--cors", "*"], "one origin"),
        (["scripted:helpful", "--cors", "https://a.example/page"], "one origin"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path))
    monkeypatch.setenv("ODD_KEY", "schlüssel")
    (tmp_path / "desk.toml").write_text(DESK)
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments]) == 2
    told = capsys.readouterr().err.splitlines()
    assert said in told[-1] and all(line.startswith("loading") for line in told[:-1])


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_here("serve", "scripted:helpful", "--port", str(port))
    check_refused(done, "bad-usage", [port, "--port"], after_progress=True)


def test_the_verbs_that_listen_share_their_options() -> None:
    declared = []
    for verb in ("serve", "view"):
        options = {each.name: each for each in heredity.get_command(click.Context(heredity), verb).params}
        declared.append([(options[name].opts, options[name].help) for name in ("host", "port")])
    assert declared[0] == declared[1]
