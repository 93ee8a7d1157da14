"""What this process asks of glibc, OpenMP and oneDNN before a model runs in it: keep buffers, spin only
briefly, keep few products ready.

By default glibc maps each large tensor afresh and pays its page faults again at every step. And OpenMP's
threads spin long at every barrier, which is fast alone but starves both beside another busy process. Sleeping
at once (OMP_WAIT_POLICY=PASSIVE) is no answer: on a quiet machine it took 1.6 times as long. oneDNN keeps
what it made ready for the last 1,024 sizes of a product, half a MiB each; hardly any comes again.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable

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
