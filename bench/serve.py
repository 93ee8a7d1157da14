"""Tokens per second for many callers at once: `heredity serve` compared with other servers.

    python bench/serve.py [--model NAME] [--requests 64] [--at-once 1 8 32] [--transformers PROGRAM]
        [--peer "NAME=COMMAND"]

The same callers ask both servers over loopback. Each caller sends its next question when its answer is
complete. Answers are streamed and greedy. A first round warms each server and is not counted.

    heredity, in the application     the server holds the application; callers send the question only
    heredity, the same messages      callers send the application's messages each time
    heredity, the question alone     as the first, without an application
    transformers serve               the same messages; once more with --continuous-batching
    NAME                             the same messages, then the question alone

PROGRAM is the `transformers` of an environment with its extra `serving`. COMMAND starts a server with the
API of OpenAI: in it `{folder}` is the model's folder, and ` --port N` is added. Two examples:

    --peer "vLLM=ENV/bin/python -m vllm.entrypoints.openai.api_server --model {folder} --dtype float32"
    --peer "llama.cpp=python bench/_llama_server.py FILE.gguf"

The ratios are of tokens per second, in this run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from _commit import commit
from heredity.application.spec import Application
from heredity.lineage.store import Store

HELD, SENT, ALONE = "in the application", "the same messages", "the question alone"
Way = tuple[str, Sequence[str], str, dict[str, list[dict[str, str]]]]
APPLICATION = Path(__file__).parents[1] / "examples" / "support-desk.toml"


class Answer(NamedTuple):
    """One caller's answer. `first`: seconds until its first piece."""

    text: str
    first: float


class Load(NamedTuple):
    """The server, the messages before each question, and the limits."""

    address: str
    model: str
    before: list[dict[str, str]]
    tokens: int
    at_once: int


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--at-once", type=int, nargs="+", default=[16], help="callers, a round for each")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--transformers", metavar="PROGRAM", help="where transformers[serving] is")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="another server")
    given = parser.parse_args()
    store = Store()
    folder = store.ready(store.pull(given.model)).folder
    print(f"{platform.processor() or platform.machine()}, {cpu()}, Python {platform.python_version()}")
    layer = Application.load(APPLICATION)
    before = [{"role": m.role, "content": m.content} for m in layer.messages()]
    asked = questions(given.requests)
    count = counter(folder)
    print(f"commit {commit()}, {given.requests} questions, answers up to {given.tokens} tokens")
    with tempfile.TemporaryDirectory() as home:
        held = Path(home) / "held.toml"
        held.write_text(APPLICATION.read_text().replace("max_tokens = 96", f"max_tokens = {given.tokens}"))
        rates: dict[tuple[str, int], float] = {}
        for name, command, model, said in ways(given, folder, before, held):
            with serving(command) as address:
                for kind, messages in said.items():
                    for at_once in given.at_once:
                        load = Load(address, model, messages, given.tokens, at_once)
                        ask(load, questions(at_once, 1000))
                        rates[f"{name}, {kind}", at_once] = show(
                            f"{name}, {kind}", load, asked[: 8 * at_once], count
                        )
    for kind in (SENT, ALONE):
        for at_once in given.at_once:
            own = rates[f"heredity, {kind}", at_once]
            for (name, n), rate in rates.items():
                if n == at_once and name.endswith(kind) and not name.startswith("heredity"):
                    print(f"{own / rate:6.2f} x {name}, {at_once} at once")


def ways(given: argparse.Namespace, folder: Path, before: list[dict[str, str]], held: Path) -> Iterator[Way]:
    """Each server: its name, its command, the name of the model there, and the messages before a question."""
    both = {SENT: before, ALONE: []}
    yield "heredity", ours(given.model, "--application", str(held)), given.model, {HELD: []}
    yield "heredity", ours(given.model), given.model, both
    for how in ((), ("--continuous-batching",)) if given.transformers else ():
        command = [given.transformers, "serve", str(folder), "--dtype", "bfloat16", *how]
        yield " ".join(("transformers serve", *how)), command, str(folder), both
    for peer in given.peer:
        name, _, command = peer.partition("=")
        yield name, shlex.split(command.format(folder=folder)), str(folder), both


def ours(model: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "heredity", "serve", model, *more]


def questions(n: int, start: int = 0) -> list[str]:
    """Different ones, of different lengths."""
    things = ("tent", "sleeping bag", "pair of boots", "stove", "rucksack")
    return [
        f"I bought a {things[i % 5]} last week, order {4100 + 7 * i}. " * (1 + i % 3)
        + "What can I do if it leaks?"
        for i in range(start, start + n)
    ]


@contextmanager
def serving(command: Sequence[str]) -> Iterator[str]:
    """A server in a process of its own, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    quiet = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, env=quiet)
        except OSError as error:
            raise SystemExit(f"{command[0]} cannot run: {error}") from None
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode()[-2000:])
                try:
                    if httpx.get(f"{address}/health", timeout=2).status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def ask(load: Load, texts: Sequence[str]) -> list[Answer]:
    """The answers to all texts, `at_once` at a time."""
    limits = httpx.Limits(max_keepalive_connections=0)  # llama.cpp's server closes what it kept
    with ThreadPoolExecutor(load.at_once) as pool, httpx.Client(timeout=600, limits=limits) as client:
        return list(pool.map(lambda text: _one(client, load, text), texts))


def _one(client: httpx.Client, load: Load, text: str) -> Answer:
    body: dict[str, Any] = {
        "model": load.model, "messages": [*load.before, {"role": "user", "content": text}], "stream": True,
        "max_tokens": load.tokens, "temperature": 0,
    }  # fmt: skip
    started, first, said = time.perf_counter(), 0.0, []
    with client.stream("POST", f"{load.address}/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise SystemExit(reply.read().decode()[:500])
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise SystemExit(line)
            if event.get("choices") and (more := (event["choices"][0].get("delta") or {}).get("content")):
                first = first or time.perf_counter() - started
                said.append(more)
    return Answer("".join(said), first)


def counter(folder: Path) -> Any:
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: len(words.encode(text, add_special_tokens=False).ids)


def show(name: str, load: Load, texts: Sequence[str], count: Any) -> float:
    """Print what came, and give tokens a second."""
    started = time.perf_counter()
    found = ask(load, texts)
    seconds = time.perf_counter() - started
    n_tokens = sum(count(answer.text) for answer in found)
    firsts = sorted(answer.first for answer in found)
    late = firsts[int(0.9 * len(firsts))]
    print(
        f"{name:44} {load.at_once:3} at once, n {len(found):3} {n_tokens / seconds:8.1f} tokens/s   "
        f"first piece {statistics.median(firsts):5.2f} s, nine in ten {late:5.2f} s",
        flush=True,
    )
    return n_tokens / seconds


def cpu() -> str:
    said = shutil.which("lscpu") and subprocess.run(["lscpu"], capture_output=True, text=True).stdout
    found = re.search(r"Model name:\s*(.+)", said or "")
    return f"{found[1] if found else 'unknown CPU'}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
