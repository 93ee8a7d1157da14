"""The machine that this process runs on: devices, threads, memory, and the dtype that is fast on it.

Promises: importing this loads no torch and changes nothing. `configure` is the only function that writes to
the environment, and it keeps the user's settings. A container's memory limit counts as well as the
machine's. Nothing is refused if the system does not report its memory.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from heredity.core.errors import OutOfMemory, Unavailable, UsageError, first_line

if TYPE_CHECKING:
    import torch

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")
_FAILED_ALLOCATION = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cannot allocate memory",
)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
DEVICE_VARIABLE, AUTO = "HEREDITY_DEVICE", "auto"
_DEVICE = re.compile(r"(cpu|mps)|cuda(?::(\d+))?")
_CUDA_INDEX = re.compile(r"\bGPU (\d+)\b")  # in torch's message of a failed allocation
_FEW_WEIGHTS = 2**16  # of a matrix; its dtype hardly matters below that
_REPEATS, _LEAST_REPEATS, _LONG_SECONDS = 40, 16, 4.0  # timings of `shortest`: fewer if they take long
_TRIES = 5  # timings of a throughput

# While transformers loads a model, torch's default dtype and device are those of that model in every thread.
LOADING = threading.Lock()

Clock = Callable[[], float]

# --- before torch is loaded ---


def configure() -> None:
    """Let OpenMP's threads sleep after a short spin, and bound oneDNN's cache of primitives.

    Both libraries read their settings once, when torch loads them. Each entry point therefore calls this
    first: the command line, Store, Study and the loading of an engine. Importing heredity does not.
    Variables that the user has set stay.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    os.environ.setdefault("USE_HUB_KERNELS", "NO")  # transformers would load compiled code from a hub


def prepare_transformers() -> None:
    """Call this before one of transformers' models is loaded or made in order to run it."""
    keep_freed_memory()
    quiet_transformers()


def quiet_transformers() -> None:
    """Turn off the warnings and progress bars of transformers: its models are checked here already."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


# --- devices ---


@dataclass(frozen=True, slots=True)
class Device:
    """A device that computes: "cpu", "mps", "cuda" (the current GPU) or "cuda:N".

    Examples:
        >>> Device.parse("cuda:1")
        Device(kind='cuda', index=1)
        >>> str(Device("cuda", 1)), str(Device("cpu"))
        ('cuda:1', 'cpu')
    """

    kind: Literal["cpu", "cuda", "mps"] = "cpu"
    index: int | None = None  # of a GPU; None: the current one

    @classmethod
    def parse(cls, text: str) -> Device:
        """The device that a text names. Raises UsageError if it names none."""
        match = _DEVICE.fullmatch(text.strip().lower())
        if match is None:
            raise UsageError(f"'{text}' is not a device. Known: cpu, cuda, cuda:N, mps.", code="unknown-name")
        if match[1]:
            return cls(cast(Literal["cpu", "mps"], match[1]))
        return cls("cuda", None if match[2] is None else int(match[2]))

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"

    @property
    def is_cpu(self) -> bool:
        """Whether it is the processor, whose memory all processes share."""
        return self.kind == "cpu"

    @property
    def torch(self) -> torch.device:
        """The same device for torch."""
        import torch

        return torch.device(self.kind) if self.index is None else torch.device(self.kind, self.index)

    @property
    def title(self) -> str:
        """The device for people: "cpu", or "cuda:0 NVIDIA H100 80GB HBM3"."""
        return f"{self} {name}" if (name := self.card) else str(self)

    @property
    def suffix(self) -> str:
        """The end of the name of an engine: " on " and the title; "" for the processor."""
        return "" if self.is_cpu else f" on {self.title}"

    @property
    def card(self) -> str:
        """The name of the GPU; "" for other devices."""
        if self.kind != "cuda":
            return ""
        import torch

        return torch.cuda.get_device_name(self.torch)

    def free_memory(self) -> int | None:
        """Bytes that can be allocated there now; None if the system does not report it."""
        return self._card_memory()[0] if self.kind == "cuda" else available_memory()

    def total_memory(self) -> int | None:
        """Bytes of memory of the device; None if unknown. An mps device shares the machine's."""
        return self._card_memory()[1] if self.kind == "cuda" else total_memory()

    def _card_memory(self) -> tuple[int, int] | tuple[None, None]:
        """Free and all bytes of a GPU."""
        import torch

        with suppress(RuntimeError, AssertionError):  # no driver; a torch without CUDA
            free, everything = torch.cuda.mem_get_info(self.torch)
            return int(free), int(everything)
        return None, None


CPU = Device()


def read_device(text: str) -> Device | None:
    """The device that a text names; None for "auto". Raises UsageError if it names none."""
    return None if text.strip().lower() == AUTO else Device.parse(text)


def cards() -> tuple[Device, ...]:
    """The GPUs that torch finds, in order; () on a machine without one."""
    import torch

    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(Device("cuda", i) for i in range(n))


def choose_device(wanted: Device | None = None, turn: int = 0) -> Device:
    """The device to compute on: `wanted`, else that of HEREDITY_DEVICE, else the fastest that torch finds.

    The order is a GPU, mps, the processor. turn: with several GPUs and none named, the n-th in turn.
    Raises Unavailable if this machine does not have the device, UsageError if HEREDITY_DEVICE names none.
    """
    import torch

    wanted = wanted or read_device(os.environ.get(DEVICE_VARIABLE) or AUTO)
    if wanted is not None and wanted.is_cpu:
        return wanted
    gpus, has_mps = cards(), torch.backends.mps.is_available()
    if wanted is None:
        return gpus[turn % len(gpus)] if gpus else Device("mps") if has_mps else CPU
    is_there = has_mps if wanted.kind == "mps" else (wanted.index or 0) < len(gpus)
    if not is_there:
        known = ", ".join(map(str, (*gpus, *([Device("mps")] if has_mps else ()), CPU)))
        raise Unavailable(f"torch finds no device '{wanted}' on this machine. There are: {known}.")
    return wanted


def prepare_device(device: Device) -> None:
    """Compute in full on a GPU: without TF32, and without sums of bfloat16 in less than float32."""
    if device.kind != "cuda":
        return
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has computed what it was given; the processor always has."""
    import torch

    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def machine_name(device: Device = CPU) -> str:
    """The hardware and torch, as far as they can change a result or its speed."""
    import torch

    if not device.is_cpu:
        return f"{device.card or device.kind} torch {torch.__version__} cuda {torch.version.cuda}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability} x{torch.get_num_threads()} torch {torch.__version__}"


# --- threads ---


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Inside, torch computes in `n` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that a child process can be given, as CUDA_VISIBLE_DEVICES names them; [] for none.

    It loads no torch. The variable itself limits them if it is set.
    """
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(n) for n in range(len(list(folder.iterdir())))] if folder.is_dir() else []


# --- dtype and speed ---


def choose_dtype(hidden_size: int, ffn_size: int, n_rows: int = 128, device: Device = CPU) -> str:
    """Return "bfloat16" if its matrix product is clearly faster at the model's shape, else "float32".

    The processor's features decide if they settle it: a clock errs on a busy machine, and the dtype is part
    of every answer. Otherwise both products are timed. A GPU that has bfloat16 takes it.
    """
    if not device.is_cpu:
        import torch

        # Ampere is the first with a bfloat16 product. On mps float32 is the dtype that every operation has.
        is_new = device.kind == "cuda" and torch.cuda.get_device_capability(device.torch) >= (8, 0)
        return "bfloat16" if is_new else "float32"
    if (known := _dtype_by_features(hidden_size * ffn_size)) is not None:
        return known
    import torch

    def product(name: str) -> Callable[[], object]:
        dtype = getattr(torch, name)
        x, w = torch.ones(n_rows, hidden_size, dtype=dtype), torch.ones(ffn_size, hidden_size, dtype=dtype)
        return lambda: torch.nn.functional.linear(x, w)

    seconds = shortest({name: product(name) for name in ("float32", "bfloat16")})
    return "bfloat16" if seconds["bfloat16"] < 0.9 * seconds["float32"] else "float32"


def _dtype_by_features(n_weights: int) -> str | None:
    """The dtype that needs no clock. With AMX bfloat16 is 5 to 10 times as fast for a matrix that is not
    tiny. An x86 processor without a bfloat16 product is many times slower at it."""
    import torch

    features = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16")]
    if platform.machine().lower() not in ("x86_64", "amd64") or None in features:
        return None
    has_amx, has_product = (bool(each()) for each in features if each is not None)
    if n_weights < _FEW_WEIGHTS or not (has_amx or has_product):
        return "float32"
    return "bfloat16" if has_amx else None


def shortest(work: Mapping[str, Callable[[], object]], clock: Clock = time.perf_counter) -> dict[str, float]:
    """The least seconds of each piece of work over many tries, taken in turn."""
    seconds = dict.fromkeys(work, float("inf"))
    at_first = clock()
    for n in range(_REPEATS):
        if n >= _LEAST_REPEATS and clock() - at_first > _LONG_SECONDS:
            break
        for name, do in work.items():
            started = clock()
            do()
            seconds[name] = min(seconds[name], clock() - started)
    return seconds


def matmul_flops(
    products: Iterable[tuple[int, int, int]], dtype: torch.dtype, device: torch.device | None = None
) -> float:
    """FLOP/s of matmuls (inputs, outputs, rows), each forward and backward, measured now on a device."""
    all_of_them = list(products)
    seconds = {size: _fastest(_forward_and_backward(*size, dtype, device)) for size in set(all_of_them)}
    return sum(6.0 * a * b * n for a, b, n in all_of_them) / sum(seconds[size] for size in all_of_them)


def memory_bandwidth(n_rows: int, width: int, dtype: torch.dtype) -> float:
    """Bytes/s of numbers that are read, changed and written, measured now."""
    import torch

    x = torch.ones(n_rows, width, dtype=dtype)
    y = torch.empty_like(x)
    return x.numel() * x.element_size() / _fastest(lambda: torch.mul(x, 2, out=y))


def _forward_and_backward(
    n_in: int, n_out: int, n_rows: int, dtype: torch.dtype, device: torch.device | None
) -> Callable[[], object]:
    import torch

    def ones(*size: int) -> torch.Tensor:
        return torch.ones(size, dtype=dtype, device=device)

    x, w, y = ones(n_rows, n_in), ones(n_out, n_in), ones(n_rows, n_out)

    def multiply() -> None:
        _ = x @ w.T, y @ w, y.T @ x
        synchronize(x.device)

    return multiply


def _fastest(do: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_TRIES):
        started = time.perf_counter()
        do()
        best = min(best, time.perf_counter() - started)
    return best


# --- memory ---


def total_memory() -> int | None:
    """Bytes of memory of this machine, or of its container if that has less; None if unknown."""
    sizes: list[int] = []
    with suppress(OSError, ValueError, AttributeError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # "max" means no limit
        sizes.append(int((_CGROUP / "memory.max").read_text("ascii")))
    return min(sizes, default=None)


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping; None if the system does not report it."""
    sizes: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        sizes += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # "max" means no limit
        limit, used = (int((_CGROUP / f"memory.{each}").read_text("ascii")) for each in ("max", "current"))
        cached = sum(
            int(line.split()[1])
            for line in (_CGROUP / "memory.stat").read_text("ascii").splitlines()
            if line.startswith(("inactive_file ", "active_file "))
        )
        sizes.append(max(0, limit - used + cached))
    return min(sizes, default=None)


def resident_memory() -> int | None:
    """Bytes of this process in memory; None if the system does not report it."""
    return _of_process("VmRSS:")


def peak_memory() -> int | None:
    """The most bytes of this process in memory, since it started or since `reset_peak_memory`."""
    return _of_process("VmHWM:")


def reset_peak_memory() -> None:
    """Count the peak from now on, if the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def _of_process(name: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def require_memory(
    what: str, parts: Mapping[str, int], advice: str, limit: int | None = None, held: int = 0
) -> None:
    """Raise OutOfMemory if the bytes of all parts together exceed the memory.

    limit: bytes that may be used; None: `held`, and what is available once this process has returned what
        it freed. held: bytes of the parts that it holds already.
    """
    room, needed = available_memory() if limit is None else limit - held, sum(parts.values()) - held
    if limit is None and room is not None and needed > room:
        trim_memory()
        room = available_memory()
    if room is None or needed <= room:
        return
    named = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    raise OutOfMemory(
        f"{what} needs about {(needed + held) / GIB:.2f} GiB of memory ({named}), and "
        f"{(room + held) / GIB:.2f} GiB are there."
        f" {advice}"
    )


@contextmanager
def explain_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Turn an allocation that failed, Python's or torch's, into OutOfMemory with the device's free memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error).lower()
        if not isinstance(error, MemoryError) and not any(each in words for each in _FAILED_ALLOCATION):
            raise
        device, index = CPU, _CUDA_INDEX.search(str(error))
        if "CUDA" in str(error):
            device = Device("cuda", int(index[1]) if index else None)
        free = device.free_memory()
        now = "" if free is None else f"; {free / GIB:.2f} GiB are free now on {device}"
        raise OutOfMemory(f"{what} ran out of memory ({first_line(error)}{now}). {advice}") from error


def keep_freed_memory() -> bool:
    """Tell glibc to serve all memory from a heap that it does not trim. False: there is no glibc."""
    mallopt = _glibc("mallopt")
    options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20))
    if mallopt is None:
        return False
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in options)


def trim_memory() -> None:
    """Return free memory to the kernel and to GPUs, after a model was read and after it was closed."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if trim := _glibc("malloc_trim"):
        trim(ctypes.c_size_t(0))


def _glibc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return function


# --- the threads that OpenMP keeps --------------------------------------------------------------------
# The threads that OpenMP keeps for a thread of ours that computed with torch.
#
# A thread that computes in parallel gets helpers of its own, one less than there are cores. They stay
# until it ends. If a process has more of them than cores, libgomp lets all of them sleep between two
# operations. Then a step of a small model takes 1.6 times as long on two cores. So a thread that waits
# ends its helpers. It gets new ones by its next operation, in less than a millisecond.

_SOFT = 1  # omp_pause_soft, OpenMP 5.0, section 3.2.44


def end_helpers() -> bool:
    """End the helpers of the calling thread. False: torch is not loaded, or its OpenMP cannot do it."""
    torch = sys.modules.get("torch")
    if torch is None or not sys.platform.startswith("linux"):
        return False
    pause = _pause(Path(str(torch.__file__)).parent / "lib" / "libtorch_cpu.so")
    return pause is not None and pause(_SOFT) == 0


@contextmanager
def temporary_helpers() -> Iterator[None]:
    """End the helpers of the calling thread after the block: for a thread that then waits."""
    try:
        yield
    finally:
        end_helpers()


@cache
def _pause(library: Path) -> Callable[[int], int] | None:
    try:
        function: Callable[[int], int] = ctypes.CDLL(str(library)).omp_pause_resource_all
    except (OSError, AttributeError):
        return None
    return function
