"""A server at twice its load: no answer is lost or mixed up, and memory stays flat.

    python bench/serve_overload.py [--model NAME] [--minutes 10] [--questions 64] [--tokens 64] [--times 2]

Each question is asked by itself first, for the text that it must get. Then `--fill` requests come at once,
which is as many as the server's queue holds. They fill the widest batch, and measure the requests per second
that the server carries. For the minutes that follow, requests come at `--times` this rate, whether or not
earlier ones are answered. An answer is

    right      status 200 and the text of the question by itself
    mixed      status 200 and another text
    refused    status 429 or 503: the server says that it is full
    lost       no answer, a cut one, or another status

Memory is what the server's process holds (resident): at the start, after the widest batch, each minute, and
when nobody has asked for 15 seconds. The exit code is 1 if an answer was lost or mixed. It is 1 too if memory
was ever more than a tenth above that after the widest batch.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

from _commit import commit
from serve import cpu, ours, questions, serving

FULL = (429, 503)
MAX_GROWTH = 1.1
IDLE_SECONDS = 15


def main() -> int:
    """Print each minute, and the sums."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--fill", type=int, default=256, help="requests at once at first")
    parser.add_argument("--times", type=float, default=2.0, help="the load, as a multiple of what it carries")
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {cpu()}, Python {platform.python_version()}")
    print(f"commit {commit()}, {given.model}, answers up to {given.tokens} tokens")
    asked = questions(given.questions)
    with serving(ours(given.model)) as address:
        return asyncio.run(overload(address, given, asked))


async def overload(address: str, given: argparse.Namespace, asked: list[str]) -> int:
    """The exit code."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=address, timeout=1800, limits=limits) as client:
        alone = [await answer(client, given, text) for text in asked]
        if bad := [status for status, _ in alone if status != 200]:
            raise SystemExit(f"asked by itself, a question has the status {bad[0]}")
        wanted = [text for _, text in alone]
        pid = await asyncio.to_thread(server_pid, address)
        at_first, started = resident(pid), time.perf_counter()
        await asyncio.gather(*(answer(client, given, asked[i % len(asked)]) for i in range(given.fill)))
        carried = given.fill / (time.perf_counter() - started)
        widest, rate = resident(pid), given.times * carried
        print(f"resident memory: {at_first:.2f} GiB with one caller, {widest:.2f} GiB with {given.fill}")
        print(f"it carries {carried:.2f} requests/s; sent from now on: {rate:.2f}/s", flush=True)
        code = await hold(client, given, asked, wanted, rate, pid, widest)
        await asyncio.sleep(IDLE_SECONDS)
        print(f"resident memory: {resident(pid):.2f} GiB after {IDLE_SECONDS} s without a request")
        return code


async def hold(
    client: httpx.AsyncClient,
    given: argparse.Namespace,
    asked: list[str],
    wanted: list[str],
    rate: float,
    pid: int,
    widest: float,
) -> int:
    """Send at a rate, count what comes back, and print it each minute."""
    ends: Counter[str] = Counter()
    memory: list[float] = []

    async def send(at: int) -> None:
        status, text = await answer(client, given, asked[at])
        right = "right" if text == wanted[at] else "mixed"
        ends[right if status == 200 else "refused" if status in FULL else "lost"] += 1

    started, n_sent, tasks = time.perf_counter(), 0, set[asyncio.Task[None]]()
    while (now := time.perf_counter() - started) < 60 * given.minutes:
        if n_sent < now * rate:
            task = asyncio.create_task(send(n_sent % len(asked)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            n_sent += 1
        else:
            await asyncio.sleep(0.02)
        if now >= 60 * (len(memory) + 1):
            memory.append(resident(pid))
            show(len(memory), n_sent, ends, len(tasks), memory[-1])
    await asyncio.gather(*tasks)
    memory.append(resident(pid))
    print(f"sent {n_sent}: {dict(ends)}; {n_sent - sum(ends.values())} without an end")
    growth = max(memory) / widest
    print(f"resident memory: {max(memory):.2f} GiB at most, {growth:.3f} x that after the widest batch")
    is_whole = not ends["lost"] and not ends["mixed"] and sum(ends.values()) == n_sent
    return 0 if is_whole and ends["right"] and growth <= MAX_GROWTH else 1


def show(minute: int, n_sent: int, ends: Counter[str], n_open: int, memory: float) -> None:
    print(f"{minute:3} min: sent {n_sent}, {dict(ends)}, {n_open} open, {memory:.2f} GiB", flush=True)


async def answer(client: httpx.AsyncClient, given: argparse.Namespace, text: str) -> tuple[int, str]:
    """The status and the text of an answer; status 0 without one."""
    body = {
        "model": given.model, "messages": [{"role": "user", "content": text}], "max_tokens": given.tokens,
        "temperature": 0,
    }  # fmt: skip
    try:
        reply = await client.post("/v1/chat/completions", json=body)
        found = reply.json()
        return reply.status_code, found["choices"][0]["message"][
            "content"
        ] if reply.status_code == 200 else ""
    except (httpx.HTTPError, ValueError, KeyError):
        return 0, ""


def server_pid(address: str) -> int:
    """The process that listens at the port of an address (Linux)."""
    port = f"{httpx.URL(address).port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    socket = next(each[9] for each in lines if each[1].endswith(f":{port}") and each[3] == "0A")
    return _owner(f"socket:[{socket}]")


def _owner(name: str) -> int:
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) == name:
                return int(link.parts[2])
        except OSError:
            continue
    raise SystemExit("the server's process was not found")


def resident(pid: int) -> float:
    """GiB."""
    said = Path(f"/proc/{pid}/status").read_text()
    return int(said.partition("VmRSS:")[2].split()[0]) / 2**20


if __name__ == "__main__":
    sys.exit(main())
