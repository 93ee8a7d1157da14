"""The request log: each conversation of callers with its answer, as a row that `heredity import` reads.

It is off unless the operator names its file, because it holds what people write. An application's secrets
and what looks like personal data are taken out; names and everything else stay.

Promises: only its owner can read the file. It never grows above its limit, and one older file is kept. An
answer is logged as it was sent, without what guards withheld. A disk that is full or slow delays no answer:
a row that cannot be written is counted and lost.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Literal, NamedTuple

import msgspec
from filelock import FileLock, Timeout

from heredity.application.guarded import without_spans
from heredity.application.guards import GuardFacts, GuardSpan, apart
from heredity.application.guards.personal_data import PersonalDataGuard
from heredity.application.guards.secrets import SecretGuard
from heredity.application.retrieval import without_passages
from heredity.application.spec import Application
from heredity.core.errors import Busy, UsageError
from heredity.core.records import Message, Reply, Request
from heredity.core.sanitize import clean_text

VERSION = 1
LARGEST = 64 << 20  # bytes of the file before it becomes FILE.1
_NO_LINKS = os.O_NOFOLLOW if sys.platform != "win32" else 0
_PENDING = 4096  # rows that wait for the disk
_LONGEST = 1 << 19  # characters of a row's texts: other answers wait while a longer one is searched
_log = logging.getLogger(__name__)


class LoggedCall(msgspec.Struct, frozen=True):
    """A tool call of an answer. arguments: as JSON text."""

    name: str
    arguments: str


class LoggedRemoval(msgspec.Struct, frozen=True):
    """A removal from an answer: of a secret by its name, or of personal data by its kind, e.g. "email"."""

    kind: Literal["secret", "personal"]
    name: str


class LoggedAnswer(msgspec.Struct, frozen=True):
    """A row. `prompt`: the messages of the caller, without those of the application.

    response: None if there is an `error`. guarded: what guards found in the question or the answer.
    removed: what the log took out of the answer and its calls, but not what the caller had written.
    """

    request_log: int
    id: str
    at: str
    model: str
    model_id: str
    application: str
    application_digest: str
    prompt: list[dict[str, str]]
    response: str | None
    error: str = ""
    tool_calls: tuple[LoggedCall, ...] = ()
    stop: str = "end"
    n_prompt_tokens: int = 0
    n_tokens: int = 0
    seed: int = 0
    decoding: Mapping[str, object] = {}
    guarded: tuple[str, ...] = ()
    removed: tuple[LoggedRemoval, ...] = ()


class LoggedModel(NamedTuple):
    """The model that answered, by name and id, and its application."""

    name: str
    id: str
    application: Application | None


class RequestLog:
    """Writes rows in a thread of its own. `n_lost`: rows that were not written.

    largest: bytes of the file before it is renamed to FILE.1, in place of an older one.
    Raises UsageError for a path that cannot be a file of this user, and Busy if another process writes it.
    """

    def __init__(self, path: Path, largest: int = LARGEST) -> None:
        self._path, self._largest = path.absolute(), largest
        if not self._path.parent.is_dir():  # the lock would make it
            raise UsageError(f"There is no folder {path.parent}.")
        self._holds = FileLock(f"{self._path}.lock", timeout=0, mode=0o600)
        try:
            self._holds.acquire()
        except Timeout:
            raise Busy(f"Another process writes {path}.") from None
        except OSError as error:
            raise _unwritable(path, error) from None
        self._pending, self._count = 0, Lock()
        self.n_lost, self._reasons = 0, set[str]()  # of losses that were reported
        try:
            self._file = self._open()
        except BaseException:
            self._holds.release()
            raise
        self._thread = ThreadPoolExecutor(1, "request-log")

    def answer(self, who: LoggedModel, request: Request, reply: Reply | None, error: str = "") -> None:
        """Log an answer, or its error. Returns at once."""
        answer = "" if reply is None else reply.text
        if (
            len(request.prefill) + len(answer) + sum(len(each.content) for each in request.messages)
        ) > _LONGEST:
            self._lose("long", f"its texts have over {_LONGEST:,} characters")
            return
        with self._count:
            is_full = self._pending >= _PENDING
            self._pending += not is_full
        if is_full:
            self._lose("full", f"{_PENDING:,} rows wait for the disk")
            return
        try:
            self._thread.submit(self._write, who, request, reply, error)
        except RuntimeError:
            self._lose("closed", "the log is closed")

    def close(self) -> None:
        """Write the rows that wait, and close the file."""
        self._thread.shutdown()
        os.close(self._file)
        self._holds.release()

    def _write(self, who: LoggedModel, request: Request, reply: Reply | None, error: str) -> None:
        try:
            line = msgspec.json.encode(_row(who, request, reply, error)) + b"\n"
            if os.fstat(self._file).st_size + len(line) > self._largest:
                with suppress(
                    FileNotFoundError
                ):  # moved away already, also where the new file could not be made
                    self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                old, self._file = self._file, self._open()
                os.close(old)
            before, left = os.fstat(self._file).st_size, memoryview(line)
            try:
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError:
                os.ftruncate(self._file, before)
                raise
        except Exception as failure:  # any: it would end in a future that nobody reads, and the row uncounted
            self._lose(type(failure).__name__, str(failure))
        finally:
            with self._count:
                self._pending -= 1

    def _lose(self, reason: str, words: str) -> None:
        """Count a row that is lost. The first one of each reason is reported: a later one says no more."""
        with self._count:
            self.n_lost += 1
            is_new = reason not in self._reasons
            self._reasons.add(reason)
        if is_new:
            _log.error("the request log lost a row: %s", words)

    def _open(self) -> int:
        """The file, made readable by its owner only. A line that a crash tore is ended."""
        how = os.O_RDWR | os.O_APPEND | os.O_CREAT | _NO_LINKS
        try:
            fd = os.open(self._path, how, 0o600)
        except OSError as error:
            raise _unwritable(self._path, error) from None
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            os.close(fd)
            raise UsageError(f"{self._path} is not a file.")
        os.fchmod(fd, 0o600)
        if about.st_size and os.pread(fd, 1, about.st_size - 1) != b"\n":
            os.write(fd, b"\n")
        return fd


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"The request log {path} cannot be written: {error.strerror}.")


def _row(who: LoggedModel, request: Request, reply: Reply | None, error: str) -> LoggedAnswer:
    layer = who.application

    def shown(text: str) -> str:
        return redacted(clean_text(text), layer)

    prompt = [
        {"role": message.role, "content": shown(message.content)} for message in callers_messages(request)
    ]
    head = LoggedAnswer(
        request_log=VERSION,
        id=secrets.token_hex(8),
        at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        model=who.name,
        model_id=who.id,
        application="" if layer is None else layer.name,
        application_digest="" if layer is None else layer.digest,
        prompt=prompt or [{"role": "user", "content": shown(request.prefill)}],
        response=None,
        error=shown(error) or "no answer",
        seed=request.seed,
        decoding=msgspec.to_builtins(request.decoding),
    )
    if reply is None or error:
        return head
    is_changed = reply.withheld is not None
    calls = reply.tool_calls if layer is None else layer.calls(request.prefill, reply)
    named = [(call.name, msgspec.json.encode(call.arguments).decode()) for call in calls]
    answer = (request.prefill if prompt else "") + reply.text
    return msgspec.structs.replace(
        head,
        response=shown(answer),
        error="",
        tool_calls=tuple(LoggedCall(name, shown(text)) for name, text in named),
        stop=reply.stop,
        n_prompt_tokens=reply.n_prompt_tokens,
        n_tokens=0 if is_changed else reply.n_answer_tokens,
        guarded=tuple(map(shown, reply.guarded or ())),
        removed=_removed([answer, *(text for _, text in named)], request, layer),
    )


def callers_messages(request: Request) -> Sequence[Message]:
    """The messages of a request that are the caller's conversation, without retrieved passages."""
    return [
        without_passages(message, lambda _: True) if message.role == "user" else message
        for message in request.messages[request.n_shared :]
    ]


def redacted(text: str, application: Application | None = None) -> str:
    """A text without secrets of the application, and without what looks like personal data."""
    return without_spans(text, apart([span for _, span in _spans(text, application)]))


def _spans(
    text: str, application: Application | None
) -> list[tuple[Literal["secret", "personal"], GuardSpan]]:
    facts = GuardFacts() if application is None else application.facts
    return [
        *(("secret", span) for span in SecretGuard(action="redact").find(text, "answer", facts)),
        *(("personal", span) for span in PersonalDataGuard().find(text, "answer", facts)),
    ]


def _removed(
    texts: Sequence[str], request: Request, application: Application | None
) -> tuple[LoggedRemoval, ...]:
    """The removals from an answer's texts, without those of the caller's own words, which leak nothing.

    An earlier answer in the caller's messages does not count as the caller's own words.
    """
    own = [each.content for each in callers_messages(request) if each.role != "assistant"]
    known = {of for text in (*own, request.prefill) for of, _ in _removals(text, application)}
    removals = (each for text in texts for each in _removals(text, application))
    return tuple(dict.fromkeys(removal for of, removal in removals if of not in known))


def _removals(text: str, application: Application | None) -> Iterator[tuple[str, LoggedRemoval]]:
    """Each removal in a text, with what tells whether two are of the same."""
    text = clean_text(text)
    for kind, span in _spans(text, application):
        same = span.why if kind == "secret" else text[span.start : span.end].casefold()
        yield f"{kind} {same}", LoggedRemoval(kind, span.why)
