"""Chains of small operations as one pass over memory, compiled by torch's inductor.

On a CPU small operations are bound by memory. A norm, a gate or a loss takes five passes one by one, and one
or two compiled.

Promises: the numbers of the operations one by one, within rounding. No sum over tokens is compiled here, so
that bits do not depend on the size that came first. A chain that cannot be compiled is an error; it is never
run uncompiled in silence.
Leaves to others: the chains (patch.py, objectives/causal.py), and when compiling is
worth its time (recipes/pretrain/).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch

# What torch and the compiler raise without a compiler, its folder or its headers; anything else is a bug.
_COMPILER_ERRORS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
_RECOMPILE_LIMIT = 64  # recompilations of a chain, for dtypes, ranks and sizes of one


@cache
def compiled(chain: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, compiled for any number of tokens."""
    import torch._dynamo as dynamo
    from torch._inductor import config

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
    config.compile_threads = 1  # no pool of processes next to the training
    made: Callable[..., Any] = torch.compile(chain, dynamic=True, fullgraph=True)
    return made


@lru_cache(maxsize=1)
def why_unavailable() -> str:
    """Why compiling does not work on this machine; "" if a trial chain compiled and ran."""
    if not sys.platform.startswith("linux"):
        return "only supported on Linux"
    try:
        found = compiled(_probe)(torch.ones(3, 5))
    except _COMPILER_ERRORS as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return "" if bool((found == 3).all()) else f"a compiled sum is wrong ({os.uname().machine})"


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1
