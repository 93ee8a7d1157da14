"""Keep glibc from handing large buffers back to the kernel after every operation.

By default glibc maps each large tensor afresh and pays its page faults again at every step.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_large_buffers() -> bool:
    """Tell glibc to serve every allocation from a heap that it does not trim. False: there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    asked = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in asked)
