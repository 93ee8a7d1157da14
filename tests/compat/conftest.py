"""The archives of the fixtures, extracted once; a test that writes works on a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import old_version as old


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old.unpack("studies", tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old.unpack("corpora", tmp_path_factory.mktemp("corpora"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: the users' files of 9797035, and an empty store."""
    for path in old.FILES.iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
