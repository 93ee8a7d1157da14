"""Models that tests ask, in the store of this machine: pulled where they are not there yet."""

from __future__ import annotations

import pytest

from heredity.errors import Unavailable
from heredity.lineage import Store

ENCODER = "all-minilm-l6-v2"


def encoder() -> None:
    """What the judge `learned` reads with; a skip where no source of it is in reach."""
    pytest.importorskip("torch")
    try:
        Store().pull(ENCODER)
    except Unavailable as error:
        pytest.skip(f"no source of the model is in reach: {error}")
