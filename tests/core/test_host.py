"""The machine: what is set before torch loads, devices by name, the dtype, threads and memory."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from heredity.core import host
from heredity.core.errors import OutOfMemory, Unavailable, UsageError
from heredity.core.host import CPU, Device
from heredity.engines import cache_budget
from tests.support.clock import BusyClock
from tests.support.errors import raises

APPLICATION = str(Path(__file__).parents[2] / "examples" / "support-desk.toml")
SETTINGS = {"GOMP_SPINCOUNT": "5000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
# Prints both settings at the moment when torch is first looked for, and ends there.
WATCH = f"""
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch:", *(os.environ.get(each) for each in {list(SETTINGS)!r}), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
"""
REACHED = {
    "engine": "h.Store(); import heredity.engines.torch.engine",
    "training": "h.Store(); import heredity.train.loop",
    "pretrain": "h.Store(); import heredity.recipes.pretrain.causal",
    "loader": "engine_loader(scripted('scripted:leaky').record); import heredity.engines.encoder",
    "study": f"h.Study(h.StudySpec(['scripted:leaky'], {APPLICATION!r}));"
    " import heredity.engines.torch.engine",
    "command line": "main(['--version']); import heredity.engines.torch.engine",
}


def run(code: str, **given: str) -> list[str]:
    """The lines that a fresh process prints; it starts with the settings of `given` and no others."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_", "ONEDNN_"))
    }
    kept["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("entry", REACHED)
def test_every_entry_point_sets_openmp_and_onednn_before_torch_is_loaded(entry: str) -> None:
    pytest.importorskip("torch")
    names = """
import heredity as h
from heredity.cli import main
from heredity.lineage.store import engine_loader
from heredity.lineage.store import scripted
assert "torch" not in sys.modules
"""
    said = [line for line in run(f"{WATCH}{names}{REACHED[entry]}") if line.startswith("torch:")]
    assert said and said[0].split()[1:] == list(SETTINGS.values())


@pytest.mark.slow
def test_what_the_user_has_set_stays() -> None:
    code = "import os; from heredity.core import host; host.configure(); "
    shown = f"print(*(os.environ.get(each) for each in {[*SETTINGS]!r}))"
    assert run(code + shown, **dict.fromkeys(SETTINGS, "7")) == ["7 7"]
    assert run(code + shown, OMP_WAIT_POLICY="active") == ["None 128"]


@pytest.mark.slow
def test_importing_any_module_leaves_the_environment_as_it_is() -> None:
    code = """
import importlib, os, pkgutil
before = dict(os.environ)
import heredity
for name in heredity.__all__:
    getattr(heredity, name)
for found in pkgutil.walk_packages(heredity.__path__, "heredity."):
    if not found.name.endswith("__main__") and ".torch" not in found.name and ".train" not in found.name:
        try:
            importlib.import_module(found.name)
        except ImportError:
            pass
for each in (os.environ, before):
    each.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it in an import of its own
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
print("same")
"""
    assert run(code)[-1] == "same"


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", Device()),
        ("cuda", Device("cuda")),
        ("cuda:0", Device("cuda", 0)),
        (" CUDA:12 ", Device("cuda", 12)),
        ("mps", Device("mps")),
    ],
)
def test_a_device_is_named_as_it_is_parsed(text: str, device: Device) -> None:
    assert Device.parse(text) == device
    assert str(device) == text.strip().lower() and Device.parse(str(device)) == device
    assert device.is_cpu == (text == "cpu")


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "mps:1", "cuda:1:2"])
def test_what_is_no_device_is_refused_with_those_that_are_known(text: str) -> None:
    with raises(UsageError, "unknown-name", mentions=["cpu", "cuda:N", "mps"]):
        Device.parse(text)


def test_a_device_is_torchs_and_the_cpu_says_what_it_can() -> None:
    torch = pytest.importorskip("torch")
    assert CPU.torch == torch.device("cpu") and Device("cuda", 3).torch == torch.device("cuda", 3)
    name = host.machine_name()
    assert name.startswith(platform.machine())
    assert name.endswith(f"x{torch.get_num_threads()} torch {torch.__version__}")


def with_gpus(monkeypatch: pytest.MonkeyPatch, n: int, has_mps: bool = False) -> None:
    """Let torch find this many GPUs."""
    torch = pytest.importorskip("torch")
    monkeypatch.delenv(host.DEVICE_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7 + device.index, 80))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)


@pytest.mark.parametrize(("n_gpus", "chosen"), [(4, "cuda:1"), (1, "cuda:0"), (0, "cpu")])
def test_the_fastest_device_is_chosen_and_gpus_in_turn(
    monkeypatch: pytest.MonkeyPatch, n_gpus: int, chosen: str
) -> None:
    with_gpus(monkeypatch, n_gpus)
    device = host.choose_device(turn=1)
    assert str(device) == chosen
    assert device.total_memory() == (80 if n_gpus else host.total_memory())
    assert not n_gpus or device.free_memory() == 7 + (device.index or 0)
    assert device.title == (f"{chosen} Card {device.index}" if n_gpus else "cpu")


def test_a_named_device_comes_before_the_environment_and_both_before_the_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_gpus(monkeypatch, 0, has_mps=True)
    assert host.choose_device() == Device("mps")
    with_gpus(monkeypatch, 2)
    monkeypatch.setenv(host.DEVICE_VARIABLE, "cpu")
    assert host.choose_device() == CPU
    assert host.choose_device(Device("cuda", 1)) == Device("cuda", 1)
    monkeypatch.setenv(host.DEVICE_VARIABLE, "auto")
    assert host.choose_device() == Device("cuda", 0)
    monkeypatch.setenv(host.DEVICE_VARIABLE, "tpu")
    with raises(UsageError, "unknown-name", mentions=["tpu"]):
        host.choose_device()


@pytest.mark.parametrize("text", ["cuda:2", "mps"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with_gpus(monkeypatch, 2)
    with raises(Unavailable, "unavailable", mentions=[text, "cuda:0, cuda:1, cpu"]):
        host.choose_device(Device.parse(text))


def test_the_faster_product_is_found_though_the_machine_is_busy_at_first() -> None:
    clock = BusyClock(busy_until=1.5)
    found = host.shortest({"slow": lambda: clock.work(0.01), "fast": lambda: clock.work(0.002)}, clock)
    assert found == pytest.approx({"slow": 0.01, "fast": 0.002})


@pytest.mark.parametrize(
    ("can", "n_weights", "dtype"),
    [
        ((True, True), 576 * 1536, "bfloat16"),
        ((True, True), 64 * 96, "float32"),
        ((False, False), 576 * 1536, "float32"),
        ((False, True), 576 * 1536, None),
    ],
)
def test_a_busy_machine_has_no_say_in_the_dtype_where_the_processor_settles_it(
    monkeypatch: pytest.MonkeyPatch, can: tuple[bool, bool], n_weights: int, dtype: str | None
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(host.platform, "machine", lambda: "x86_64")
    for name, value in zip(("amx_tile", "avx512_bf16"), can, strict=True):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda value=value: value)
    monkeypatch.setattr(host, "shortest", lambda work: {"float32": 1.0, "bfloat16": 0.5})
    assert host._dtype_by_features(n_weights) == dtype
    monkeypatch.setattr(host.platform, "machine", lambda: "arm64")
    assert host._dtype_by_features(n_weights) is None


@pytest.mark.parametrize(("seconds", "dtype"), [(0.5, "bfloat16"), (0.95, "float32")])
def test_elsewhere_bfloat16_must_be_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: float, dtype: str
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(host.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(host, "shortest", lambda work: {"float32": 1.0, "bfloat16": seconds})
    assert host.choose_dtype(8, 16) == dtype


def test_torch_has_its_threads_again_after_an_error() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with pytest.raises(KeyError), host.torch_threads(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_throughput_is_measured_above_zero() -> None:
    torch = pytest.importorskip("torch")
    assert host.matmul_flops([(8, 16, 4), (16, 8, 4)], torch.float32) > 0
    assert host.memory_bandwidth(4, 16, torch.bfloat16) > 0


def test_an_allocation_that_fails_is_told_in_words_and_other_errors_stay_what_they_are() -> None:
    torch = pytest.importorskip("torch")
    with raises(OutOfMemory, "out-of-memory"), _explained():
        torch.empty(2**52)
    with raises(OutOfMemory, "out-of-memory", mentions=["MemoryError"]), _explained():
        raise MemoryError
    with raises(RuntimeError, mentions=["shapes"]), _explained():
        torch.ones(2, 3) @ torch.ones(2, 3)


@pytest.mark.parametrize(
    ("words", "device"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 8 GiB.", "cuda:1"),
        ("CUDA error: out of memory", "cuda"),
    ],
)
def test_an_allocation_that_fails_on_a_gpu_is_told_with_the_memory_of_the_gpu(
    monkeypatch: pytest.MonkeyPatch, words: str, device: str
) -> None:
    torch = pytest.importorskip("torch")
    asked: list[str] = []

    def free_and_total(of: Any) -> tuple[int, int]:
        asked.append(str(of))
        return 3 * 2**28, 8 * 2**30

    monkeypatch.setattr(torch.cuda, "mem_get_info", free_and_total)
    with raises(OutOfMemory, "out-of-memory", mentions=[f"0.75 GiB are free now on {device}"]), _explained():
        raise torch.OutOfMemoryError(words)
    assert asked == [device]


def test_without_a_driver_the_memory_of_a_gpu_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    def no_driver(of: Any) -> tuple[int, int]:
        raise RuntimeError(f"no driver for {of}")

    monkeypatch.setattr(torch.cuda, "mem_get_info", no_driver)
    assert Device("cuda", 0).free_memory() is None


def _explained() -> Any:
    return host.explain_out_of_memory("The work", "Lower it.")


def test_what_fits_is_not_refused() -> None:
    host.require_memory("It", {"a": 60, "b": 40}, "", limit=100)
    with pytest.raises(OutOfMemory):
        host.require_memory("It", {"a": 61, "b": 40}, "", limit=100)
    room = host.available_memory()
    assert room is None or room > 0
    assert re.search(r"a 1\.00, b 2\.00", _refused({"a": 2**30, "b": 2**31, "none": 0}))


def test_memory_that_this_process_freed_counts_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    room = [50]
    monkeypatch.setattr(host, "available_memory", lambda: room[0])
    monkeypatch.setattr(host, "trim_memory", lambda: room.__setitem__(0, 100))
    host.require_memory("It", {"a": 100}, "")
    with pytest.raises(OutOfMemory):
        host.require_memory("It", {"a": 101}, "")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc and /proc")
def test_trimming_returns_the_memory_that_the_heap_kept() -> None:
    words = (
        "from heredity.core import host\n"
        "kept = host.keep_freed_memory()\n"
        "blocks = [bytes(1 << 20) for _ in range(256)]; last = bytes(1 << 20)\n"
        "del blocks\n"
        "before = host.resident_memory(); host.trim_memory()\n"
        "print(kept, before - host.resident_memory())\n"
    )
    kept, returned = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, check=True
    ).stdout.split()
    assert kept == "False" or int(returned) > 200 << 20


def _refused(parts: dict[str, int]) -> str:
    with pytest.raises(OutOfMemory) as caught:
        host.require_memory("It", parts, "", limit=0)
    return str(caught.value)


def test_the_smaller_of_the_machines_and_the_containers_memory_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    machine, total = host.available_memory(), host.total_memory()
    (tmp_path / "memory.max").write_text("1000\n")
    assert host.total_memory() == 1000 and cache_budget() == 250
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 800\ninactive_file 60\nactive_file 40\n")
    assert host.available_memory() == 200
    (tmp_path / "memory.max").write_text("max\n")
    assert host.total_memory() == total
    assert (host.available_memory() is None) == (machine is None)
