"""A machine with a GPU, imitated by torch's `meta` device: tensors without numbers, which run nowhere.

`OneDevice` fails at the first operation on tensors of two devices, which a GPU would refuse too, or would
wait for. Reading a number from a tensor of `meta` is an error of torch, so that a hidden wait is found as
well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heredity.formats import weights

GPU = torch.device("meta")
_COPIES = {torch.ops.aten._to_copy, torch.ops.aten.copy_}


class OneDevice(TorchDispatchMode):
    """Raises AssertionError for an operation on tensors of two devices. A scalar may be on any device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        devices = {each.device.type for each in given if each.dim()}
        if len(devices) > 1 and func.overloadpacket not in _COPIES:
            raise AssertionError(f"{func} on tensors of {sorted(devices)}")
        return func(*args, **(kwargs or {}))


class _File:
    """A safetensors file whose tensors are read onto the imitated GPU."""

    def __init__(self, path: Path, framework: str, device: str) -> None:
        assert device == str(GPU), "the weights are read onto another device first"
        self._file = safe_open(path, framework=framework)

    def keys(self) -> list[str]:
        names: list[str] = self._file.keys()
        return names

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name).to(GPU)


def _first_has_all(chosen: torch.Tensor, minlength: int) -> torch.Tensor:
    return torch.tensor([len(chosen)] + [0] * (minlength - 1))


def read_weights(folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> weights.Weights:
    """The weights of a folder on the imitated GPU.

    A mixture of experts must read how many rows each of them has: here the first has all.
    """
    monkeypatch.setattr(weights, "safe_open", _File)
    monkeypatch.setattr(weights, "_is_steady", lambda expert, x: True)
    monkeypatch.setattr(torch, "bincount", _first_has_all)
    return weights.read_weights(folder, dtype, GPU)
