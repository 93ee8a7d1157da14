"""Workers as Ray actors, on a cluster of our own and on one of two nodes that loses one.

Ray waits 15 seconds for the processes of a node: on a machine that is too busy for that, it does not start.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from heredity.core.errors import Refused, Unavailable, UsageError
from heredity.study import plan as plans
from heredity.study import workers
from heredity.study.study import Study
from heredity.study.workers import Workers
from tests.support import worker_engines
from tests.support.errors import raises
from tests.support.studies import by_index, drop_circumstances, plan, responses

ROOT = Path(__file__).parents[3]
TOKEN = "f" * 64
MADE = plan(["scripted:mixed", "scripted:flaky"], samples=3)
DRIVER = """
import sys
from pathlib import Path
from heredity.study.study import Study
from heredity.study.workers import Workers
Study.open(Path(sys.argv[1])).run(workers=Workers(3, on=sys.argv[2], loader=sys.argv[3]))
"""


@pytest.mark.parametrize("on", ["raz", "ray:", "ray://", "ray://host", "ray://host:0", "ray://host:port"])
def test_what_is_not_a_place_is_refused(on: str) -> None:
    with raises(UsageError, "bad-usage"):
        Workers(2, on=on)


def test_the_address_of_a_cluster_is_read() -> None:
    assert workers.address_of("ray") == ""
    assert workers.address_of("ray://10.0.0.1:6379") == "10.0.0.1:6379"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of nodes and drivers: loopback only, the token, and the package of the tests."""
    pytest.importorskip("ray")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "seconds").write_text("0.03")
    return os.environ | {
        worker_engines.FOLDER: str(tmp_path / "notes"),
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def node(environment: dict[str, str], *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node of a cluster, which ends with the block."""
    command = ["ray", "start", "--block", "--num-cpus=2", "--object-store-memory=100000000", *options]
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(port: int) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the node did not start")


def drive(folder: Path, on: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    loader = "tests.support.worker_engines:noting"
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), on, loader], env=environment, cwd=ROOT
    )


def n_rows(folder: Path) -> int:
    path = folder / "responses.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def assert_as_of_one_process(tmp_path: Path) -> None:
    plans.write_plan(tmp_path / "one", MADE)
    Study.open(tmp_path / "one").run()
    assert by_index(tmp_path / "several") == by_index(tmp_path / "one")
    assert len(responses(tmp_path / "several")) == MADE.n_trials
    assert drop_circumstances(tmp_path / "several") == drop_circumstances(tmp_path / "one")


@pytest.mark.proof
def test_a_cluster_of_our_own_comes_to_the_rows_of_one_process_and_ends(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    plans.write_plan(tmp_path / "several", MADE)
    assert drive(tmp_path / "several", "ray", environment).wait() == 0
    assert_as_of_one_process(tmp_path)


@pytest.mark.proof
def test_two_nodes_under_kills_of_actors_a_node_and_the_driver_come_to_the_rows_of_one_process(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder, port = tmp_path / "several", free_port()
    plans.write_plan(folder, MADE)
    head = ("--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false")
    with node(environment, *head):
        wait_for(port)
        with node(environment, f"--address=127.0.0.1:{port}", "--node-ip-address=127.0.0.1") as second:
            process = drive(folder, f"ray://127.0.0.1:{port}", environment)
            n_workers = 0
            for n, moment in enumerate(sorted(random.sample(range(20, MADE.n_trials * 3 // 4), 6))):
                while n_rows(folder) < moment and process.poll() is None:
                    time.sleep(0.01)
                assert process.poll() is None, process.returncode
                if n == 2:
                    os.killpg(second.pid, signal.SIGKILL)
                elif n == 4:
                    process.kill()
                    process.wait()
                    process = drive(folder, f"ray://127.0.0.1:{port}", environment)
                elif pids := alive(tmp_path / "notes"):
                    os.kill(random.choice(pids), signal.SIGKILL)
                    n_workers += 1
            assert process.wait() == 0 and n_workers
    assert_as_of_one_process(tmp_path)


def alive(notes: Path) -> list[int]:
    """The processes that have loaded a model and still run."""
    pids = {int(line.split()[1]) for line in (notes / "loaded").read_text().splitlines()}
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.proof
def test_a_cluster_that_asks_for_no_token_is_refused(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    head = ("--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false")
    with node(environment | {"RAY_AUTH_MODE": "disabled"}, *head):
        wait_for(port)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with raises(Refused, "refused", [port]):
            workers.require_token(f"127.0.0.1:{port}")


@pytest.mark.proof
def test_an_address_where_no_cluster_is_is_an_error(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with raises(Unavailable, "unavailable", [port]):
        workers.require_token(f"127.0.0.1:{port}")


@pytest.mark.proof
@pytest.mark.parametrize("is_imported", [False, True])
def test_one_process_starts_cluster_after_cluster_and_keeps_its_environment(
    tmp_path: Path, environment: dict[str, str], is_imported: bool
) -> None:
    """Ray reads its token once. A notebook has imported Ray before, or asks a second study."""
    program = TWICE.replace("# import", "import ray" if is_imported else "")
    plain = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    for name in ("first", "second"):
        plans.write_plan(tmp_path / name, MADE)
    command = [sys.executable, "-c", program, str(tmp_path), "tests.support.worker_engines:noting"]
    ran = subprocess.run(command, env=plain, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert by_index(tmp_path / "second") == by_index(tmp_path / "first")
    assert len(by_index(tmp_path / "first")) == MADE.n_trials


TWICE = """
import os, sys
from pathlib import Path
# import
from heredity.study.study import Study
from heredity.study.workers import SETTINGS
from heredity.study.workers import Workers
before = dict(os.environ)
for name in ("first", "second"):
    Study.open(Path(sys.argv[1]) / name).run(workers=Workers(2, on="ray", loader=sys.argv[2]))
    assert all(before.get(key) == os.environ.get(key) for key in SETTINGS)
"""


def test_a_process_that_is_connected_to_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = types.SimpleNamespace(is_initialized=lambda: True)
    monkeypatch.setitem(sys.modules, "ray", connected)
    with raises(Unavailable, "unavailable", mentions=["ray.shutdown()"]):
        workers.RayPlace("", 1, has_weights=False)
