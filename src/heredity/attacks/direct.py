"""The probe as it stands: the baseline that every other attack is read against. One query a user turn."""

from __future__ import annotations

from collections.abc import Generator

from heredity.records import Probe, Reply, Turn

QUERIES = "one a user turn"


def turns(probe: Probe) -> Generator[Turn, Reply, None]:
    """Say each turn of the probe in order."""
    for text in probe.turns:
        yield Turn(text)
