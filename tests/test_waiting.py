"""OpenMP's threads are told to wait briefly before torch, which reads that once, is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

CODE = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))

sys.meta_path.insert(0, Watch())
for name in sys.argv[1:]:
    importlib.import_module(name)
assert "torch" in sys.modules
"""


@pytest.mark.parametrize(
    "names",
    [
        ("heredity.engines.torch.engine",),
        ("heredity.engines.encoder",),
        ("heredity.train.loop",),
        ("heredity.train.data.teacher_logprobs",),
        ("heredity.recipes.pretrain.recipe", "heredity.recipes.pretrain.causal"),
        ("heredity.recipes.finetune", "heredity.train.models.causal_lm"),
    ],
)
def test_however_torch_is_reached_openmp_was_told_before(names: tuple[str, ...]) -> None:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    given["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", CODE, *names]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "5000"
