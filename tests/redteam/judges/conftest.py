"""The fixtures of every test of a judge."""

import pytest

from heredity.application.spec import Application
from tests.support.trials import make_application


@pytest.fixture
def application() -> Application:
    return make_application()
