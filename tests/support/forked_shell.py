"""`heredity` for a shell, forked and not started: to load it takes longer than most commands do.

    python -m tests.support.forked_shell SOCKET

A program of a shell hands its arguments, folder, variables and streams over. The server forks a process that
does what `python -m heredity ARGS...` does there, and the program ends with its exit code. The server loads
no torch, and ends with the process that started it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.support import forkserver

_ROOT = Path(__file__).parents[2]
_PRELOADED = (
    "heredity.cli.gate", "heredity.cli.label", "heredity.cli.power", "heredity.cli.report",
    "heredity.cli.study", "heredity.cli._findings", "heredity.core.terminal", "heredity.study.report.html",
    "heredity.study.study",
)  # fmt: skip
_CLIENT = """import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    given = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(given).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(given)
    sys.exit(server.recv(1)[0])
"""


@cache
def program() -> str:
    """The text of a program that does what `heredity` does. Its server is started once, and ends with us."""
    folder = Path(tempfile.mkdtemp(prefix="forked-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path, client = folder / "socket", folder / "client"
    client.write_text(_CLIENT.format(path=str(path)))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(_ROOT / "src"), str(_ROOT)]), "OPENBLAS_NUM_THREADS": "1"
    }  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked_shell", str(path)], env=environment, cwd=folder,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    atexit.register(server.communicate)  # closes its input, which ends it
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    return f'#!/bin/sh\nexec "{sys.executable}" -IS "{client}" "$@"\n'


def serve(path: str) -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)  # noqa: T201
        while sys.stdin not in (ready := select.select([listening, sys.stdin], [], [])[0]):
            assert ready == [listening]
            client, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _wait(client)
            client.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _wait(client: socket.socket) -> None:
    """In a process for one command: fork the command, and tell the program how it ended."""
    size, streams, *_ = socket.recv_fds(client, 4, 3)
    given = b""
    while len(given) < int.from_bytes(size, "big"):
        given += client.recv(1 << 16)
    arguments, folder, variables = json.loads(given)
    if not (pid := os.fork()):
        client.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            how = {"mode": "w", "buffering": 1} if number else {"mode": "r"}  # as a terminal
            setattr(sys, name, open(number, encoding="utf-8", closefd=False, **how))  # noqa: SIM115
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        forkserver.finish(["-m", "heredity", *arguments])
    for stream in streams:
        os.close(stream)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    client.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
