"""What a file of an open folder declares is read from its syntax, and nothing is imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from heredity import recipes
from heredity.core import registry


@pytest.mark.parametrize(
    ("source", "is_declared"),
    [
        ("DERIVES = Lora\n", True),
        ("x = 1; DERIVES: type[Lora] = Lora\n", True),
        ("DERIVES=Lora", True),
        ("\r\nDERIVES = Lora\r\n", True),
        ('"""A recipe with\nDERIVES = Lora\nin its docstring."""\n', False),
        ("DERIVES: type[Lora]\n", False),
        ("def made():\n    DERIVES = Lora\n", False),
        ("print(DERIVES)\n", False),
        ("# DERIVES = Lora\n", False),
    ],
)
def test_an_assignment_at_the_top_declares(tmp_path: Path, source: str, is_declared: bool) -> None:
    path = tmp_path / "new.py"
    path.write_bytes(source.encode())
    assert registry._declares(path, "DERIVES") is is_declared


@pytest.mark.slow
def test_every_recipe_that_derives_is_listed_and_none_is_imported() -> None:
    known = [name for name in registry.names("recipes") if hasattr(registry.load("recipes", name), "DERIVES")]
    assert recipes.derivable() == known and "lora" in known
    code = (
        "import sys; from heredity import recipes; assert recipes.derivable();"
        "print([m for m in sys.modules if m.startswith(('torch', 'heredity.recipes.'))])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
