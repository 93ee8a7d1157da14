"""How a faster forward replaces the one of a transformers module.

Leaves to others: which modules, and what is faster (rms_norm.py, rotary.py, swiglu.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn


class KernelPatch:
    """A replacement for a module's forward. The original handles inputs that this one does not support."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._usual = module.forward


def replace_forwards(
    model: nn.Module, known: Sequence[str], way: Callable[[Any], Callable[..., Any]]
) -> None:
    """Replace the forward of every module whose class has one of these names."""
    for module in model.modules():
        if type(module).__name__ in known:
            module.forward = way(module)
