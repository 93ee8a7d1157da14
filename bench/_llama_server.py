"""llama.cpp's server, from the wheel of the extra `llamacpp`, with its own settings.

    python bench/_llama_server.py FILE.gguf --port N [--parallel 32] [--context 1024] [--threads 2]

It ends when it is terminated. Its context has room for `--parallel` callers of `--context` tokens each.
"""

from __future__ import annotations

import argparse
import signal
import sys

import xllamacpp


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=32)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.port, settings.hostnames = given.file, given.port, ["127.0.0.1"]
    settings.n_parallel, settings.n_ctx = given.parallel, given.parallel * given.context
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = given.threads
    settings.ui, settings.offline, settings.verbosity = False, True, 0
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()


if __name__ == "__main__":
    main()
