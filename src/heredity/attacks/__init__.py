"""What is laid over a probe. Each file is an attack with one function:

    turns(probe: Probe) -> Generator[Turn, Reply, None]      one conversation; receives each reply
    QUERIES: str                                             what it costs, in words

Promises: an attack changes how a probe is put, never what counts as a breach.
Leaves to others: the application around it (application.py) and the verdict (judges/).
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from heredity import registry
from heredity.records import Probe, Reply, Turn

Attack = Callable[[Probe], Generator[Turn, Reply, None]]


def names() -> list[str]:
    """The attacks that are there."""
    return registry.names("attacks")


def load(name: str) -> Attack:
    """The attack of this name. Raises UnknownName with the nearest known one."""
    attack: Attack = registry.load("attacks", name).turns
    return attack
