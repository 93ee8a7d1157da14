"""Tests on a CUDA device: `pytest -m gpu`. A machine without one skips them.

HEREDITY_TEST_DEVICE=cpu runs them on the processor, to check the tests themselves.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu import GPU
from tests.support.tiny_models import any_model as any_model
from tests.support.tiny_models import tiny_llama as tiny_llama

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    torch = pytest.importorskip("torch")
    is_there = GPU.is_cpu or torch.cuda.is_available()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not is_there:
                item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))
