"""A pool whose workers are threads of the test: driver and workers are real, only the pipes are not."""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue

from heredity.study.workers.pool import Arrived
from heredity.study.workers.worker import serve


class ThreadChannel:
    def __init__(self, number: int, arrived: SimpleQueue[Arrived]) -> None:
        self._number, self._arrived = number, arrived
        self.incoming: SimpleQueue[bytes] = SimpleQueue()

    def receive(self, wait: bool) -> bytes | None:
        with suppress(Empty):
            return self.incoming.get(block=wait)
        return None

    def send(self, frame: bytes) -> None:
        self._arrived.put(Arrived(self._number, frame))


class ThreadPool:
    """Threads cannot be killed: `kill` and `close` let them be."""

    place = "this test"

    def __init__(self, *_: object, **__: object) -> None:
        self._arrived: SimpleQueue[Arrived] = SimpleQueue()
        self.channels: list[ThreadChannel] = []

    def start(self) -> int:
        number = len(self.channels)
        channel = ThreadChannel(number, self._arrived)
        self.channels.append(channel)

        def run() -> None:
            serve(channel)
            self._arrived.put(Arrived(number, None, "its thread has ended"))

        threading.Thread(target=run, daemon=True).start()
        return number

    def send(self, worker: int, frame: bytes) -> None:
        self.channels[worker].incoming.put(frame)

    def receive(self, seconds: float) -> Arrived | None:
        with suppress(Empty):
            return self._arrived.get(timeout=seconds) if seconds > 0 else self._arrived.get_nowait()
        return None

    def kill(self, worker: int) -> None:
        pass

    def close(self) -> None:
        pass
