"""Ten adapters over one base: memory and tokens per second, as ratios to the base by itself in one run.

    python bench/serve_adapters.py [--model NAME | --tiny] [--adapters 10] [--rank 8] [--rows 32] [--rounds 3]

The adapters are random and change every linear layer, or those of --targets. The engine answers the same
requests for the base by itself, and then for the adapters in turn. Rows of all of them are in one batch. The
two ways alternate, and the best round of each counts. Answers are drawn at temperature 1. With --prefix all
rows share an application of that many words; each adapter has its own keys and values of it.

Memory is that of the weights as the engine holds them: the bytes of the base and of all adapters, over those
of the base. The growth of the process is a figure of its own: it has what libraries and trials keep, too.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

from _commit import commit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STRENGTH = 0.02  # of the random matrices
WORDS = ("tent", "stove", "order", "refund", "boots", "leak", "rucksack", "delivery", "invoice", "sleeping")


def main() -> None:
    given = parse()
    import torch
    from tests.support.random_adapters import ALL, random_adapter

    from heredity.core import host
    from heredity.engines.torch.adapters import SharedBase
    from heredity.engines.torch.engine import open_folder

    print(
        f"machine {host.machine_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, commit {commit()}"
    )
    with tempfile.TemporaryDirectory() as home:
        folder = tiny(Path(home) / "base") if given.tiny else stored(given.model)
        before = resident()
        engine = open_folder(folder, dtype=given.dtype)
        base = resident() - before
        shared = SharedBase(engine)
        first = resident()
        members = []
        for i in range(given.adapters):
            adapter = random_adapter(
                folder, Path(home) / f"adapter-{i}", i, given.rank, given.targets or ALL, STRENGTH
            )
            members.append(shared.add(adapter, shared.read(adapter)))
        added, n_bytes = resident() - first, sum(each.n_bytes for each in members)
        weights = n_weights(folder) * engine.decoder.dtype.itemsize
        print(f"{engine.name}; widths {shared.base.pool.widths}, pass widths {shared.base.pool.pass_widths}")
        print(f"weights: base {mib(weights)}, {given.adapters} adapters of rank {given.rank} {mib(n_bytes)}")
        print(f"memory: {(weights + n_bytes) / weights:.3f} x the base (bytes of weights)")
        print(f"growth of the process: {mib(base)} with the base, then {mib(added)} with the adapters")
        alone, mixed = [], []
        for _ in range(given.rounds + 1):  # the first one warms up
            alone.append(rate(shared, given, 0))
            mixed.append(rate(shared, given, given.adapters))
        one, other = max(alone[1:]), max(mixed[1:])
        print(
            f"tokens/s: base alone {one:.1f}, {given.adapters} adapters mixed {other:.1f}, {given.rows} rows"
        )
        print(f"throughput: {other / one:.3f} x the base (best of {given.rounds} rounds each)")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tiny", action="store_true", help="a random model of 3 layers, to see it work")
    parser.add_argument("--adapters", type=int, default=10)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", nargs="+", default=())
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--prefix", type=int, default=0, help="words of an application that all rows share")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    return parser.parse_args()


def rate(shared: object, given: argparse.Namespace, n_adapters: int) -> float:
    """Tokens per second of all rows, half as many requests again waiting behind them."""
    import torch

    from heredity.core.records import Decoding, Message
    from heredity.engines import AddressedRequest
    from heredity.engines.torch.adapters import SharedBase

    assert isinstance(shared, SharedBase)
    text = " ".join(WORDS[i % 10] for i in range(given.prefix))
    system = (Message("system", text),) if given.prefix else ()
    decoding, requests = Decoding(given.tokens, 1.0), []
    for i in range(given.rows * 3 // 2):
        messages = (*system, Message("user", f"{WORDS[i % 10]} {i} " * (2 + i % 5)))
        number = i % n_adapters + 1 if n_adapters else 0
        requests.append(AddressedRequest(i, messages, decoding, i, n_shared=len(system), adapter=number))
    started = time.perf_counter()
    with torch.inference_mode():
        n = sum(len(reply.tokens) for reply in shared.reply(requests))
    return n / (time.perf_counter() - started)


def n_weights(folder: Path) -> int:
    """The number of weights in the files of a model."""
    from math import prod

    from safetensors import safe_open

    n = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            n += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return n


def tiny(folder: Path) -> Path:
    """A random model of the tests."""
    from tests.support.tiny_models import make_model

    return make_model(folder, "llama", hidden_size=256, intermediate_size=512, max_position_embeddings=1024)


def stored(name: str) -> Path:
    """The folder of a model of the store, in the form that the engine reads."""
    from heredity.lineage.store import Store

    store = Store()
    return store.ready(store.pull(name)).folder


def resident() -> int:
    """Bytes of this process in memory, once freed memory is given back."""
    import gc

    from heredity.core import host

    gc.collect()
    host.trim_memory()
    status = Path("/proc/self/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) << 10 if found else 0


def mib(n: int) -> str:
    return f"{n / (1 << 20):.1f} MiB"


if __name__ == "__main__":
    main()
