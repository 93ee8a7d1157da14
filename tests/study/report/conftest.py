"""One made-up study for every test that only reads it."""

from pathlib import Path

import pytest

from tests.support.report_studies import make


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("study"))
