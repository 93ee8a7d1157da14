"""The threads that OpenMP keeps for a thread of ours that computed with torch.

A thread that computes in parallel gets helpers of its own, one less than there are cores. They stay until it
ends. If a process has more of them than cores, libgomp lets all of them sleep between two operations. Then
a step of a small model takes 1.6 times as long on two cores. So a thread that waits ends its helpers. It gets
new ones by its next operation, in less than a millisecond.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

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
