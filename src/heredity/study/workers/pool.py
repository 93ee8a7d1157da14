"""A pool: where workers run, and how frames travel to and from them.

Promises: frames of one worker arrive in the order in which it sent them, then its loss, if it ends.
Leaves to others: the content of frames (messages.py), and the answer to a loss (driver.py).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Arrived(NamedTuple):
    """A frame of a worker; or no frame and the reason why the worker is lost."""

    worker: int
    frame: bytes | None
    lost: str = ""


class Pool(Protocol):
    """Starts workers, carries frames, and stops workers. Numbers of workers are never used again."""

    @property
    def place(self) -> str:
        """Where its workers run, for messages: "this machine"."""

    def start(self) -> int:
        """Start a worker and return its number. Raises HeredityError if none can be started."""

    def send(self, worker: int, frame: bytes) -> None:
        """Send a frame; one to a lost worker is dropped, because its loss arrives."""

    def receive(self, seconds: float) -> Arrived | None:
        """The next frame or loss of any worker; None after this time."""

    def kill(self, worker: int) -> None:
        """End a worker at once; its loss arrives."""

    def close(self) -> None:
        """End all workers at once. No process stays."""


class Channel(Protocol):
    """The worker's side: frames from the driver and to it."""

    def receive(self, wait: bool) -> bytes | None:
        """The next frame; without `wait` None if no frame is there."""

    def send(self, frame: bytes) -> None:
        """Send a frame to the driver."""
