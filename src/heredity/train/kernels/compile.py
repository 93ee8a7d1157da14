"""Chains of small steps as one pass over memory each, compiled on this machine by torch's inductor.

On a CPU a training's small steps are bound by memory: a norm, a gate or a loss that is five passes one by one
is one or two when it is compiled.

Promises: the numbers of the steps one by one, within rounding; nothing is summed over tokens here, so that
the bits hang on no size that happened to come first; a chain that cannot be compiled is an error, never taken
step by step in silence.
Leaves to others: which chains there are (norms.py, rotary.py, gates.py, objectives/causal.py), and when
compiling is worth its time (recipes/pretrain.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch

# What torch and the compiler raise where there is none, or no folder or header for it; all else is a fault.
_COMPILER_ERRORS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
_RECOMPILE_LIMIT = 64  # how often a chain may be compiled anew, for dtypes, ranks and sizes of one


@cache
def compiled(chain: Callable[..., Any]) -> Callable[..., Any]:
    """The same function in few passes, for any number of tokens."""
    import torch._dynamo as dynamo
    from torch._inductor import config

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
    config.compile_threads = 1  # the machine trains: no pool of processes beside it
    made: Callable[..., Any] = torch.compile(chain, dynamic=True, fullgraph=True)
    return made


@lru_cache(maxsize=1)
def why_unavailable() -> str:
    """Why nothing can be compiled here; "" where it can: a chain was, and ran."""
    if not sys.platform.startswith("linux"):
        return "tried on Linux alone"
    try:
        found = compiled(_probe)(torch.ones(3, 5))
    except _COMPILER_ERRORS as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return "" if bool((found == 3).all()) else f"a compiled sum is wrong ({os.uname().machine})"


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1
