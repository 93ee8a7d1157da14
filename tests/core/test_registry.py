"""What a file of an open folder declares is read from its syntax, and nothing is imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from heredity import recipes
from heredity.core import registry
from heredity.core.errors import Unavailable
from heredity.redteam import attacks
from tests.support.errors import raises


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


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an attack `zboom` that is still to be written."""
    path = tmp_path / "zboom.py"
    monkeypatch.setattr(attacks, "__path__", [*attacks.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "names", lambda _: ["zboom"])
    monkeypatch.setattr(registry, "source", lambda *_: path)
    return path


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('"""Boom."""\n\nraise RuntimeError("boom at import")\n', 3, "RuntimeError: boom at import"),
        ("import json\nsettings = json.loads('{')\n", 2, "JSONDecodeError"),
        ("x = 1\ndef broken(:\n", 2, "SyntaxError"),
    ],
)
def test_a_plugin_that_raises_while_it_loads_is_named_with_its_line(
    plugin: Path, text: str, line: int, what: str
) -> None:
    plugin.write_text(text)
    with raises(Unavailable, "plugin-broken", ["zboom", f"{plugin}:{line}", what]):
        registry.load("redteam.attacks", "zboom")


def test_a_listing_names_the_file_that_is_not_python(plugin: Path) -> None:
    plugin.write_text("x = 1\ndef broken(:\n")
    shown = registry.purposes("redteam.attacks")["zboom"]
    assert "zboom" in shown and f"{plugin}:2" in shown


def test_too_little_memory_is_no_fault_of_a_plugin(plugin: Path) -> None:
    plugin.write_text("raise MemoryError\n")
    with pytest.raises(MemoryError):
        registry.load("redteam.attacks", "zboom")


def test_a_package_that_a_plugin_lacks_stays_an_import_error(plugin: Path) -> None:
    plugin.write_text("import a_package_that_is_nowhere\n")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_nowhere"):
        registry.load("redteam.attacks", "zboom")


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
