"""Requests per second of the remote engine, 64 in flight, against a server here that answers at once.

    python bench/remote.py [--n 2000]

The engine runs in one process, the server in another. With real services an answer takes a second or more,
and 64 requests in flight need at most 64 requests per second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from heredity.core.records import Message, Request
from heredity.engines.remote import engine as remote
from heredity.lineage.store import Store

SERVE = """
import sys
from tests.support.fault_server import FaultServer
with FaultServer() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""
SYSTEM = Message("system", "You are the support assistant of a shop. " * 20)


def requests(n: int) -> list[Request]:
    return [Request(i, (SYSTEM, Message("user", f"Question {i}?")), seed=i, n_shared=1) for i in range(n)]


def measure(api: str, url: str, n: int, folder: Path) -> str:
    base = f"{url}/v1" if api == "openai" else url
    grown = Store(folder).get(f"remote:{api}:tiny@{base}")
    engine = remote.load(grown.record, grown.folder)
    try:
        list(engine.reply(requests(200)))  # the pace is at its widest after these
        at, cpu = time.perf_counter(), time.process_time()
        n_good = sum(reply.error is None for reply in engine.reply(requests(n)))
        seconds, cpu = time.perf_counter() - at, time.process_time() - cpu
    finally:
        engine.close()
    return f"{api:10} {n_good / seconds:7.0f} requests/s  {1000 * cpu / n:5.2f} ms of CPU each"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=2000, help="requests to each API")
    n = parser.parse_args().n
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        url = server.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as folder:
            for api in ("openai", "anthropic", "gemini"):
                print(measure(api, url, n, Path(folder)), flush=True)
        server.stdin.close()


if __name__ == "__main__":
    main()
