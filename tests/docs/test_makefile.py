"""The Makefile completes an environment that a person made, and repairs one that it began itself.

Leaves to others: pip and venv, which a program of this test stands for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.documents import ROOT

pytestmark = pytest.mark.slow

# Stands for each Python: logs how it was called; `-m venv` makes an environment with itself as Python.
PYTHON = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
test "$1 $2" = "-m venv" || exit 0
for folder; do :; done
mkdir -p "$folder/bin"
test ! -e fails || exit 1
cp "$0" "$folder/bin/python"
printf '#!/bin/sh\\necho heredity >> "$LOG"\\n' > "$folder/bin/heredity"
chmod +x "$folder/bin/heredity"
"""


class Clone:
    """A folder with the Makefile, and programs that log their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.venv = folder, folder / "log", folder / ".venv"
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        self.python = folder / "programs" / "python-of-the-machine"
        self.python.parent.mkdir()
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)

    def make(self, *words: str, **environment: str) -> int:
        self.log.write_text("")
        env = {"PATH": os.environ["PATH"], "LOG": str(self.log), **environment}
        command = ["make", "--no-print-directory", f"PYTHON={self.python}", *words]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, check=False).returncode

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    def environment(self, folder: Path) -> Path:
        """An environment that a person made, with a file of theirs in it."""
        subprocess.run([self.python, "-m", "venv", folder], env={"LOG": os.devnull}, check=True)
        (folder / "mine").touch()
        return folder / "mine"


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


@pytest.mark.parametrize("target", ["study", "clean"])
def test_an_environment_of_a_person_is_never_deleted(clone: Clone, target: str) -> None:
    mine = clone.environment(clone.venv)
    assert clone.make(target) == 0
    assert mine.exists() and not any(" -m venv " in call for call in clone.calls)


def test_an_environment_of_a_person_is_completed_once_with_what_view_needs(clone: Clone) -> None:
    clone.environment(clone.venv)
    assert clone.make("study") == 0
    assert any("pip install" in call and ".[torch,serve]" in call for call in clone.calls)
    assert clone.calls[-1] == "heredity"
    assert clone.make("study") == 0 and clone.calls == ["heredity"]


def test_an_environment_of_a_person_without_python_is_left_alone(clone: Clone) -> None:
    mine = clone.environment(clone.venv)
    (clone.venv / "bin" / "python").unlink()
    assert clone.make("study") == 2 and mine.exists() and clone.calls == []


def test_a_bare_clone_gets_an_environment_and_clean_removes_it(clone: Clone) -> None:
    assert clone.make("study") == 0 and clone.calls[0].endswith("-m venv .venv")
    assert clone.make("clean") == 0 and not clone.venv.exists()


def test_an_environment_that_make_began_is_made_again(clone: Clone) -> None:
    assert clone.make("study") == 0
    (clone.venv / ".made").unlink()
    (clone.venv / "torn").touch()
    assert clone.make("study") == 0 and clone.calls[0].endswith("-m venv .venv")
    assert not (clone.venv / "torn").exists() and (clone.venv / ".made").exists()


def test_an_environment_that_cannot_be_made_leaves_nothing(clone: Clone) -> None:
    (clone.folder / "fails").touch()
    assert clone.make("study") == 2 and not clone.venv.exists()


def test_an_active_environment_elsewhere_is_left_alone(clone: Clone) -> None:
    mine = clone.environment(clone.folder / "other")
    before = sorted(mine.parent.rglob("*"))
    assert clone.make("study", VIRTUAL_ENV=str(mine.parent)) == 0
    assert sorted(mine.parent.rglob("*")) == before and clone.venv.exists()
