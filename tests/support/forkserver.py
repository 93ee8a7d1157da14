"""Processes that begin with torch and transformers loaded: a test that starts and kills several is quick.

    python tests/support/forkserver.py

It reads requests and answers each in a line of JSON. {"argv": [...], "out": FILE, "err": FILE, "env": {...}}
forks a process that does what `python ARGV...` does; the answer is its id. {"pid": ID} is answered with its
exit code, or null while it runs. The server computes nothing and starts no thread, so that a fork is safe.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

_PRELOADED = ("torch", "transformers", "heredity.recipes.pretrain.causal", "heredity.deploy.export.hf")


class Process:
    """A process of the fork server. out, err: the files that its output goes to."""

    def __init__(self, argv: Sequence[str], out: Path, err: Path, **environment: str) -> None:
        self.out, self.err = out, err
        request = {"argv": list(argv), "out": str(out), "err": str(err), "env": environment}
        self.pid: int = _ask(request)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"pid": self.pid})
        return self.returncode

    def wait(self) -> int:
        """Its exit code, once it has one."""
        while (code := self.poll()) is None:
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def run(argv: Sequence[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *argv], capture_output=True)`. folder: for its output."""
    process = Process(argv, folder / "stdout", folder / "stderr", **environment)
    code = process.wait()
    out, err = (path.read_text("utf-8") for path in (process.out, process.err))
    return subprocess.CompletedProcess([sys.executable, *argv], code, out, err)


@cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, __file__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    server.communicate()  # closes its input, which ends it


def _ask(request: Mapping[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def serve() -> None:
    from heredity.core import host

    host.configure()
    for name in _PRELOADED:
        with contextlib.suppress(ImportError):
            __import__(name)
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "argv" in request:
            answer: int | None = os.fork()
            if answer == 0:
                _run(request)
        else:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)  # noqa: T201


def _run(request: Mapping[str, Any]) -> None:
    """In the new process: what `python ARGV...` does, to its end."""
    for number, path in enumerate((os.devnull, request["out"], request["err"])):
        os.dup2(os.open(path, os.O_RDONLY if not number else os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(request["env"])
    finish(request["argv"])


def finish(argv: Sequence[str]) -> NoReturn:
    """Do what `python ARGV...` does, and end this process as it would."""
    kind, what, *rest = argv
    sys.argv = [kind, *rest]
    code: object = 0
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter that ends
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve()
