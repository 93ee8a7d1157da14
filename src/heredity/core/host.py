"""What memory there is, and an error in words where it does not suffice.

Promises: loads no torch; a container's limit counts as well as the machine's; where neither is told, nothing
is refused.
Leaves to others: what a piece of work needs (train/_room.py, export/).
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from heredity.core.errors import OutOfMemory, first_line

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def before_torch() -> None:
    """Let OpenMP threads sleep after a short spin, and oneDNN forget. Counts only before these are loaded,
    with torch or others: the packages through which they are reached (engines, train) call it before
    anything else. What the user has set, stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def hush_transformers() -> None:
    """transformers says nothing and draws no bar: what it says of a model that we checked only alarms."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def before_transformers() -> None:
    """What is asked before one of transformers' models is loaded or made, to be run."""
    keep_large_buffers()
    hush_transformers()


def keep_large_buffers() -> bool:
    """Tell glibc to serve all memory from a heap that it does not trim. False: there is no glibc."""
    mallopt = _glibc("mallopt")
    asked = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20))
    return (
        all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in asked) if mallopt else False
    )


def give_back() -> None:
    """Return to the kernel what is free now: after a model was read, and after it was let go."""
    gc.collect()
    trim = _glibc("malloc_trim")
    if trim:
        trim(ctypes.c_size_t(0))


def _glibc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return function


GIB = 2**30
_GROUP = Path("/sys/fs/cgroup")
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")


def available() -> int | None:
    """Bytes that can be had without swapping; None where the system does not tell."""
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # a limit of "max" is none
        limit, used = (int((_GROUP / f"memory.{each}").read_text("ascii")) for each in ("max", "current"))
        cached = sum(
            int(line.split()[1])
            for line in (_GROUP / "memory.stat").read_text("ascii").splitlines()
            if line.startswith(("inactive_file ", "active_file "))
        )
        found.append(max(0, limit - used + cached))
    return min(found, default=None)


def resident() -> int | None:
    """Bytes of this process that lie in memory; None where the system does not tell."""
    return _of_process("VmRSS:")


def peak_resident() -> int | None:
    """The most of them since the process began, or since `forget_peak`."""
    return _of_process("VmHWM:")


def forget_peak() -> None:
    """Let the peak begin anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def _of_process(name: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def refuse_overfull(what: str, parts: Mapping[str, int], advice: str, has: int | None = None) -> None:
    """Raise OutOfMemory where the bytes of all parts together are more than there are.

    has: bytes that may be used; None: what is available.
    """
    room, needed = available() if has is None else has, sum(parts.values())
    if room is None or needed <= room:
        return
    said = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    raise OutOfMemory(
        f"{what} needs about {needed / GIB:.2f} GiB of memory ({said}), and {room / GIB:.2f} GiB are there."
        f" {advice}",
        code="memory-foreseen",
    )


@contextmanager
def explain_full_memory(what: str, advice: str) -> Iterator[None]:
    """Turn an allocation that failed, Python's or torch's, into OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(said in str(error).lower() for said in _SAID):
            raise
        room = available()
        there = "" if room is None else f"; {room / GIB:.2f} GiB are free now"
        raise OutOfMemory(f"{what} ran out of memory ({first_line(error)}{there}). {advice}") from error
