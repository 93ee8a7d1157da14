"""Every parser of foreign bytes with 10,000 inputs each: it reads them, or refuses them in one line of text.

    python bench/fuzz.py [--n 10000]

TOML applications, rows, GGUF headers and safetensors headers. The noise is applied to a well-formed file,
so that it passes the first check. The tests check the same properties with fewer inputs.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heredity.application.spec import Application
from heredity.core.errors import HeredityError
from heredity.core.files import Rows
from heredity.core.records import Verdict, encode
from heredity.formats.gguf import read_gguf
from heredity.formats.safetensors_io import read_safetensors

EXAMPLE = Path(__file__).parent.parent / "examples" / "support-desk.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    n = parser.parse_args().n
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input"
        for name, seed, read in (
            ("toml", EXAMPLE.read_bytes(), Application.load),
            ("rows", row() * 3, lambda p: list(Rows(p, Verdict))),
            ("gguf", gguf(), read_gguf),
            ("safetensors", safetensors(), read_safetensors),
        ):
            fuzz(name, path, seed, read, n)


def fuzz(name: str, path: Path, seed: bytes, read: Callable[[Path], object], n: int) -> None:
    counts = {"read": 0, "refused": 0}
    change = st.tuples(st.integers(0, len(seed) - 1), st.binary(min_size=1, max_size=12))

    @settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(change, max_size=5), st.none() | st.integers(0, len(seed)))
    def one(changes: list[tuple[int, bytes]], cut: int | None) -> None:
        noisy = bytearray(seed)
        for at, what in changes:
            noisy[at : at + len(what)] = what
        path.write_bytes(bytes(noisy[:cut]))
        try:
            read(path)
            counts["read"] += 1
        except HeredityError as error:
            assert "\n" not in str(error)
            counts["refused"] += 1

    began = time.perf_counter()
    one()
    print(
        f"{name:<12}{sum(counts.values()):>7,} inputs: {counts}  {time.perf_counter() - began:.0f} s",
        flush=True,
    )


def row() -> bytes:
    return encode(Verdict(0, "trial", "rules", "held", "refusal", "no")) + b"\n"


def gguf() -> bytes:
    """The smallest honest file: one key, one tensor of 8 floats."""
    key = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"
    tensor = struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 1, 8, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + tensor
    return head + b"\0" * (-len(head) % 32) + b"\0" * 32


def safetensors() -> bytes:
    head = json.dumps({"w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}).encode()
    return struct.pack("<Q", len(head)) + head + b"\0" * 32


if __name__ == "__main__":
    main()
