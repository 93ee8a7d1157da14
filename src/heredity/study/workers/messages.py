"""The messages between the driver of a study and its workers, each one frame of MessagePack.

Promises: a frame is decoded into one of these types or refused; no code is in it.
Leaves to others: how a frame travels (pool.py).
"""

from __future__ import annotations

import msgspec

from heredity.application.toolbox import RecordedResult
from heredity.core import errors
from heredity.core.errors import Damaged, EngineFailure, HeredityError
from heredity.core.progress import Unit
from heredity.core.records import Model, Response
from heredity.engines.remote.budget import Price
from heredity.study.attack_context import SearchResult
from heredity.study.plan import Plan
from heredity.study.storage import PromptPrefix, RunRecord

MOST_BYTES = 256 << 20  # of one frame


class RemoteSettings(msgspec.Struct, frozen=True):
    """How workers call models behind an API (engines/remote). Keys stay in each worker's environment.

    keys         environment variable with the key, by model name; "" for all others
    concurrency  requests in flight of one worker
    """

    keys: dict[str, str] = {}
    prices: dict[str, Price] = {}
    concurrency: int = 64


class Setup(msgspec.Struct, frozen=True, tag=True):
    """Driver to worker, first: everything about the study that does not change.

    models  the records of the plan's models and of its attacker; a worker refuses other files under their ids
    store   the folder of the store, which the worker must see under the same path
    folder  the study's folder, for messages only
    loader  "package.module:function" that makes an Engine of a Grown model; "" for the usual one
    device  where models answer; "" for the fastest that a worker finds
    results  of tools, in a replay; None if no tool of the application runs
    """

    plan: Plan
    plan_seal: str
    models: tuple[Model, ...]
    store: str
    folder: str
    host: str  # of the driver; a worker there uses the store's cache of answers
    version: str
    found: tuple[SearchResult, ...] = ()
    remote: RemoteSettings = RemoteSettings()
    loader: str = ""
    device: str = ""
    results: tuple[RecordedResult, ...] | None = None


class Lease(msgspec.Struct, frozen=True, tag=True):
    """Driver to worker: answer these trials of one model. `digest` is over the ids of the trials."""

    number: int
    model: int
    indices: tuple[int, ...]
    digest: str
    found: tuple[SearchResult, ...] = ()  # results of searches by other workers since the last lease


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Driver to worker: close the model and end."""


class Hello(msgspec.Struct, frozen=True, tag=True):
    """Worker to driver, first: where it runs."""

    machine: str
    host: str
    pid: int
    version: str


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """Worker to driver: model number `model` is loaded."""

    model: int
    numerics: str
    prefix: PromptPrefix


class Preparing(msgspec.Struct, frozen=True, tag=True):
    """Worker to driver: a phase of the model that is being loaded, such as "measuring widths".

    n_done, n_total: its parts; 0, 0 if they are not counted.
    """

    phase: str
    n_done: int
    n_total: int
    unit: Unit


class Began(msgspec.Struct, frozen=True, tag=True):
    """Worker to driver: an engine is about to answer. `run` numbers the engines of this worker."""

    run: int
    model: int
    record: RunRecord


class Started(msgspec.Struct, frozen=True, tag=True):
    """Worker to driver: the first trial of a lease is asked, so another lease may come."""

    lease: int


class Answered(msgspec.Struct, frozen=True, tag=True):
    """Worker to driver: one response."""

    run: int
    response: Response


class Found(msgspec.Struct, frozen=True, tag=True):
    """Worker to driver: the result of a search on a model's weights."""

    result: SearchResult


class Closed(msgspec.Struct, frozen=True, tag=True):
    """Worker to driver: an engine has answered its last trial."""

    run: int
    account: dict[str, object]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Worker to driver, last: an error that ends this worker. `kind` is its class in core/errors.py."""

    kind: str
    code: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> Failed:
        """The message about an error."""
        if isinstance(error, HeredityError):
            return cls(type(error).__name__, error.code, str(error))
        return cls(EngineFailure.__name__, EngineFailure.code, errors.first_line(error))

    def error(self) -> HeredityError:
        """The same error, to be raised in the driver."""
        return _ERRORS.get(self.kind, HeredityError)(self.message, code=self.code)


# Classes whose constructor takes a message and a code only.
_ERRORS: dict[str, type[HeredityError]] = {
    kind.__name__: kind
    for kind in (
        errors.UsageError, errors.Refused, errors.WrongHash, errors.NotComparable, errors.Damaged,
        errors.Unavailable, errors.Busy, errors.OutOfMemory, errors.EngineFailure, errors.BudgetSpent,
    )
}  # fmt: skip
_ERRORS["UnknownName"] = _ERRORS["BadInput"] = errors.UsageError

ToWorker = Setup | Lease | Stop
ToDriver = Hello | Loaded | Preparing | Began | Started | Answered | Found | Closed | Failed

encode = msgspec.msgpack.Encoder().encode
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_driver: msgspec.msgpack.Decoder[ToDriver] = msgspec.msgpack.Decoder(ToDriver)


def for_worker(frame: bytes) -> ToWorker:
    """The message in a frame that a worker received. Raises Damaged."""
    try:
        return _to_worker.decode(frame)
    except msgspec.DecodeError as error:
        raise Damaged(f"A message to a worker cannot be read: {error}.", code="worker-message") from None


def for_driver(frame: bytes) -> ToDriver:
    """The message in a frame that the driver received. Raises Damaged."""
    try:
        return _to_driver.decode(frame)
    except msgspec.DecodeError as error:
        raise Damaged(f"A message of a worker cannot be read: {error}.", code="worker-message") from None
