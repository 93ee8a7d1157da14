"""Which trials are leased, and which come next. No process, no clock and no file.

Promises: a trial is leased again only after it was given back. The first answer of a trial counts, and any
later one is dropped. Trials that a worker died of are asked again, at last each by itself.
Leaves to others: who gets a lease, and when one is late (driver.py).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from heredity.core.records import digest
from heredity.study.plan import Grid, TrialSet
from heredity.study.runner import StillToAsk
from heredity.study.workers.messages import Lease

SIZE = 32  # trials of a lease
_WITH_OTHERS = 2  # deaths of workers after which a trial is asked by itself
MOST_DEATHS = 3  # of workers that asked a trial by itself; then it is an error


@dataclass
class LeaseState:
    """A lease and its trials without an answer."""

    lease: Lease
    left: set[int]
    is_alone: bool  # it may only be answered by a worker that has nothing else
    is_started: bool = False


class _ModelQueue:
    """The trials of one model that no lease holds."""

    def __init__(self, new: Iterator[int], n_new: int) -> None:
        self.new, self.n_new = new, n_new
        self.returned: deque[tuple[int, ...]] = deque()
        self.alone: deque[int] = deque()
        self.n_left = n_new  # without an answer, leased ones included
        self.n_leased = 0  # in leases that are out

    def __len__(self) -> int:
        return self.n_new + sum(map(len, self.returned)) + len(self.alone)


class LeaseBook:
    """The leases of a study. `answered`: the trials that have a row; each new answer is added to it."""

    def __init__(self, grid: Grid, answered: TrialSet, size: int = SIZE) -> None:
        self._grid, self._answered, self._size = grid, answered, size
        self._queues: dict[int, _ModelQueue] = {}
        self._leases: dict[int, LeaseState] = {}
        self._holder: dict[int, int] = {}  # the lease that holds a trial
        self._deaths: Counter[int] = Counter()  # of workers, by trial
        self._deaths_alone: Counter[int] = Counter()
        self._n_leases = 0
        self._same_prompt = grid.plan.samples * len(grid.plan.probes)  # trials of one attack

    def add(self, work: Sequence[tuple[int, StillToAsk]]) -> None:
        """Add trials of models; there must be none left of an earlier call."""
        self._queues = {}
        for m, still_to_ask in work:
            self._queues[m] = _ModelQueue(still_to_ask(), sum(1 for _ in still_to_ask()))

    @property
    def is_done(self) -> bool:
        """Whether every trial has its answer."""
        return not any(queue.n_left for queue in self._queues.values())

    def waiting(self, m: int) -> int:
        """The number of trials of a model that can be leased."""
        return len(self._queues[m]) if m in self._queues else 0

    def models(self) -> list[int]:
        """The models that have trials to lease."""
        return [m for m in self._queues if self.waiting(m)]

    def left(self, m: int) -> int:
        """The number of trials of a model without an answer."""
        return self._queues[m].n_left if m in self._queues else 0

    def leased(self, m: int) -> int:
        """The number of trials of a model that leases hold."""
        return self._queues[m].n_leased if m in self._queues else 0

    def take(self, m: int, n_workers: int, is_idle: bool) -> Lease | None:
        """The next lease of a model; None if this worker gets no more now.

        n_workers: those that could ask the model; near the end leases get smaller, so that all have work.
        is_idle: whether the worker has no other lease, as a trial that must be asked by itself needs.
        """
        queue = self._queues[m]
        while queue.returned:
            if left := self._unanswered(queue.returned.popleft()):
                return self._lease(m, left)
        size = max(1, min(self._size, -(-queue.n_new // (2 * n_workers))))
        if queue.n_new and (found := self._unanswered(self._next_new(queue, size))):
            return self._lease(m, found)
        while is_idle and queue.alone:
            if left := self._unanswered([queue.alone.popleft()]):
                return self._lease(m, left, is_alone=True)
        return None

    def _next_new(self, queue: _ModelQueue, size: int) -> list[int]:
        """Up to `size` trials that were never leased, all of one attack."""
        found: list[int] = []
        while len(found) < size and queue.n_new:
            if found and (found[-1] + 1) % self._same_prompt == 0:
                break
            found.append(next(queue.new))
            queue.n_new -= 1
        return found

    def _unanswered(self, indices: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._answered.missing(indices))

    def _lease(self, m: int, indices: tuple[int, ...], is_alone: bool = False) -> Lease:
        self._n_leases += 1
        lease = Lease(self._n_leases, m, indices, digest_trials(self._grid, indices))
        self._leases[lease.number] = LeaseState(lease, set(indices), is_alone)
        self._holder.update(dict.fromkeys(indices, lease.number))
        self._queues[m].n_leased += len(indices)
        return lease

    def is_alone(self, number: int) -> bool:
        """Whether a lease must be the only one of its worker."""
        return number in self._leases and self._leases[number].is_alone

    def start(self, number: int) -> None:
        """Note that the first trial of a lease is asked."""
        if number in self._leases:
            self._leases[number].is_started = True

    def answer(self, index: int) -> bool:
        """Note an answer. False if the trial had one already: drop this one."""
        state = self._leases.get(self._holder.pop(index, 0))
        if state is not None:
            state.left.discard(index)
            self._queues[state.lease.model].n_leased -= 1
            if not state.left:
                del self._leases[state.lease.number]
        if not self._answered.add(index):
            return False
        queue = self._queues.get(index // self._grid.plan.n_per_model)
        if queue is not None:
            queue.n_left -= 1
        return True

    def is_out(self, number: int) -> bool:
        """Whether a lease still waits for answers."""
        return number in self._leases

    def give_back(self, number: int, is_death: bool = False) -> tuple[int, ...]:
        """Take a lease back; its trials are leased again. It returns the trials that must become errors.

        is_death: its worker died, which any of its trials may have caused. A trial that was asked by itself
        when MOST_DEATHS workers died is not asked again, and has to become an error.
        """
        state = self._leases.pop(number, None)
        if state is None:
            return ()
        queue = self._queues[state.lease.model]
        queue.n_leased -= len(state.left)
        left = tuple(sorted(state.left))
        for index in left:
            del self._holder[index]
        if not (is_death and state.is_started):
            self._put_back(queue, left, state.is_alone)
            return ()
        counts = self._deaths_alone if state.is_alone else self._deaths
        counts.update(left)
        if state.is_alone:
            over = tuple(index for index in left if counts[index] >= MOST_DEATHS)
            queue.alone.extend(index for index in left if counts[index] < MOST_DEATHS)
            return over
        is_suspect = any(counts[index] >= _WITH_OTHERS for index in left)
        self._put_back(queue, left, is_suspect)
        return ()

    def _put_back(self, queue: _ModelQueue, left: tuple[int, ...], is_alone: bool) -> None:
        if is_alone:
            queue.alone.extend(left)
        elif left:
            queue.returned.append(left)


def digest_trials(grid: Grid, indices: Sequence[int]) -> str:
    """The digest over the ids of trials by which a lease names them."""
    return digest([grid.trial(index).id for index in indices])
