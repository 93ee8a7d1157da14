"""What this process asks of glibc and OpenMP before a model runs in it: keep buffers, wait politely.

By default glibc maps each large tensor afresh and pays its page faults again at every step. And OpenMP's
threads spin at every barrier: beside other busy processes a step then takes several times as long.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def wait_politely() -> None:
    """Let OpenMP threads sleep at barriers. Counts only before torch is loaded; a set variable stands."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_large_buffers() -> bool:
    """Tell glibc to serve all memory from a heap that it does not trim. False: there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    asked = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in asked)
