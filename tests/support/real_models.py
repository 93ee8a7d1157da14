"""Models that tests ask, in the store of this machine: pulled where they are not there yet."""

from __future__ import annotations

import pytest

from heredity.core.errors import Unavailable
from heredity.lineage.store import Store
from heredity.lineage.types import Grown

ENCODER = "all-minilm-l6-v2"  # what the judge `learned` reads with
SMALL = "smollm2-135m-instruct"


def model(name: str = SMALL) -> Grown:
    """As it is shipped; a skip where no source of it is in reach."""
    try:
        return Store().pull(name)
    except Unavailable as error:
        pytest.skip(f"no source of the model is in reach: {error}")
