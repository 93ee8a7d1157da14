"""Faster ways of transformers' modules on a CPU: how one takes the place of a module's forward.

Leaves to others: which modules, and what is faster (norms.py, rotary.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn


class KernelPatch:
    """A forward in the place of a module's own, which stays for what it is not made for."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._usual = module.forward


def replace_forwards(
    model: nn.Module, known: Sequence[str], way: Callable[[Any], Callable[..., Any]]
) -> None:
    """Put it in the place of every forward of the model whose class has one of these names."""
    for module in model.modules():
        if type(module).__name__ in known:
            module.forward = way(module)


def apply_function(function: Any, *given: Any) -> Any:
    """What an autograd function makes of these: torch gives its `apply` no types."""
    return function.apply(*given)
