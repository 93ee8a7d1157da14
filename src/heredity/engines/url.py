"""A web application over HTTP as a target: the body from a template, the answer by a JSON pointer.

Promises: keys come from environment variables and are removed from errors and answers. No redirect is
followed. An answer is read up to a limit. One of server-sent events is the text of all of them. A busy server
(HTTP 429, 502 to 504) is asked again. One that breaks (HTTP 500, a lost connection) is asked once more, if no
part of its answer was heard.
"""

from __future__ import annotations

import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import truststore

from heredity.core.errors import Damaged, EngineFailure, Unavailable, UsageError
from heredity.core.host import Device
from heredity.core.records import Model, Reply, Request, Stop
from heredity.engines import call
from heredity.engines._workers import (
    EventReader,
    KeyMask,
    PooledEngine,
    StreamedAnswer,
    conversation_id,
    conversation_text,
    error_row,
)
from heredity.engines.call import MAX_TEXT, NO_PREFILL, as_dicts
from heredity.engines.remote.engine import retry_after

SLOTS = ("messages", "text", "system", "conversation", "seed", "max_tokens", "temperature", "top_p")
_SLOT = re.compile(r"\$([a-z_]+)")
_BUSY, _BROKEN = {429, 502, 503, 504}, 500
_MAX_BYTES = 4 * MAX_TEXT
_PER_EVENT = 16  # bytes of a stream of events for each of a body: an event may hold one letter
_SHORTEST_KEY = 6  # characters; a shorter value of a header is no key
_UNREACHABLE_LIMIT = 8  # failed connections in a row: the server is down


class WebSettings(msgspec.Struct, frozen=True):
    """A web application as its recipe records it (recipes/targets/url.py)."""

    url: str
    body: object  # a template: JSON with slots such as "$text"
    answer: str  # a JSON pointer to the text
    timeout_seconds: float
    concurrency: int
    blocked: tuple[int, ...] = ()  # HTTP statuses by which the application refuses
    headers: dict[str, str] = {}  # header -> environment variable


class WebRequestFailed(Exception):
    """One request failed; its error row has the message."""


class WebAnswer(NamedTuple):
    """The answer of an application. `is_blocked`: one of its guards refused instead."""

    text: str
    is_blocked: bool


class _Lost(Exception):
    """The connection was lost before or during the answer."""


class _WebResponse(NamedTuple):
    """A response. after: seconds to wait (Retry-After). answer: the text of a stream of events, else None."""

    status: int
    after: float | None
    body: bytes
    answer: str | None = None


class WebEndpoint:
    """An address with its headers, body template and pointer to the answer."""

    def __init__(self, settings: WebSettings) -> None:
        self.url = settings.url
        self._body, self._pointer = settings.body, settings.answer
        self._blocked = frozenset(settings.blocked)
        self._timeout = settings.timeout_seconds
        self._headers = read_headers(settings.headers)
        values = {part for value in self._headers.values() for part in (value, value.rpartition(" ")[2])}
        self.mask = KeyMask(*(value for value in values if len(value) >= _SHORTEST_KEY))
        self._client = httpx.Client(
            timeout=self._timeout, verify=truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        )
        self._lock, self._n_unreachable, self._has_answered = threading.Lock(), 0, False

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, request: Request, conversation: str, heard: StreamedAnswer) -> WebAnswer:
        """Return the answer. heard: gets the parts of one that grows.

        Raises WebRequestFailed for this request, EngineFailure for all requests.
        """
        body = fill_template(self._body, slots(request, conversation))
        deadline, pause, is_first = time.monotonic() + self._timeout, 1.0, True
        while True:
            try:
                response = self._post(body, heard)
            except _Lost as lost:
                if not is_first or heard.is_started or time.monotonic() > deadline:
                    raise WebRequestFailed(str(lost)) from None
                is_first = False
                continue
            if response.status == _BROKEN and is_first:
                is_first = False
            elif response.status not in _BUSY:
                break
            # With jitter: threads that were refused together must not return together.
            delay = response.after if response.after is not None else random.uniform(0.5, 1.0) * pause
            if time.monotonic() + delay > deadline:
                break
            time.sleep(delay)
            pause *= 2
        text = self.mask(self._read(response))
        heard.finish(text)
        return WebAnswer(text, response.status in self._blocked)

    def _post(self, body: object, heard: StreamedAnswer) -> _WebResponse:
        """Return the response. Raises _Lost if a part is missing, and WebRequestFailed."""
        try:
            with self._client.stream("POST", self.url, json=body, headers=self._headers) as response:
                self._n_unreachable = 0
                if response.is_success and str(response.headers.get("content-type", "")).lower().startswith(
                    "text/event-stream"
                ):
                    answer = self._events(response, heard)
                    return _WebResponse(response.status_code, None, b"", answer)
                data = b"".join(_bounded(response, _MAX_BYTES))
                wait = retry_after(response.headers.get("retry-after"), time.time())
                return _WebResponse(response.status_code, wait, data)
        except httpx.ConnectError as error:
            with self._lock:
                self._n_unreachable += 1
                if self._n_unreachable >= _UNREACHABLE_LIMIT:
                    raise EngineFailure(self.mask(f"{self.url} cannot be reached: {error}")) from None
            raise WebRequestFailed(self.mask(f"cannot reach {self.url}: {error}")) from None
        except httpx.HTTPError as error:
            raise _Lost(self.mask(f"{type(error).__name__}: {error}")) from None

    def _events(self, response: httpx.Response, heard: StreamedAnswer) -> str:
        """Return the text of a stream of events, and pass it on as it grows."""
        reader, events = EventReader(), _EventTexts(self._pointer)
        pieces = _bounded(response, _PER_EVENT * _MAX_BYTES)
        for data in chain.from_iterable(map(reader.feed, pieces)):
            heard.hear(events.add(data))
            if events.is_ended or not heard.is_wanted:
                break
        if heard.is_wanted:
            events.refuse_empty()
        return events.text

    def _read(self, response: _WebResponse) -> str:
        if response.answer is not None:
            self._has_answered = True
            return response.answer
        status, text = response.status, response.body.decode("utf-8", "replace")
        if status in self._blocked:
            return f"[blocked by the application: HTTP {status}] {text[:2000]}".strip()
        if status == 401 or (status == 403 and not self._has_answered):
            raise EngineFailure(
                self.mask(f"{self.url} refuses access (HTTP {status}): {text[:200]}. See its keys")
            )
        if not 200 <= status < 300:
            raise WebRequestFailed(self.mask(f"HTTP {status}: {' '.join(text.split())[:300]}"))
        self._has_answered = True
        return answer_in(text, self._pointer)[:MAX_TEXT]


class _EventTexts:
    """The texts at a JSON pointer in the events of a stream. An event without one counts for nothing."""

    def __init__(self, pointer: str) -> None:
        self._pointer, self._texts, self._n = pointer, list[str](), 0
        self._why, self.is_ended = "it has no event", False

    def add(self, data: bytes) -> str:
        """Take the data of an event; return its text. Raises WebRequestFailed for an error."""
        event = data.decode("utf-8", "replace")
        if self.is_ended or event.strip() == "[DONE]":
            self.is_ended = True
            return ""
        _refuse_error(event)
        try:
            text = answer_in(event, self._pointer)[: MAX_TEXT - self._n]
        except WebRequestFailed as error:
            self._why = str(error)
            return ""
        self._texts.append(text)
        self._n += len(text)
        self.is_ended = self._n >= MAX_TEXT
        return text

    @property
    def text(self) -> str:
        """All texts."""
        return "".join(self._texts)

    def refuse_empty(self) -> None:
        """Raise WebRequestFailed if no event had a text."""
        if not self._texts:
            raise WebRequestFailed(f"no event of the answer has a text: {self._why}")


def _refuse_error(event: str) -> None:
    """Raise WebRequestFailed for an event that reports an error."""
    try:
        payload: object = json.loads(event)
    except (ValueError, RecursionError):
        return
    if isinstance(payload, dict) and payload.get("error"):
        raise WebRequestFailed(f"the application ended the stream: {_as_text(payload['error'])[:300]}")


def _bounded(response: httpx.Response, most: int) -> Iterator[bytes]:
    """The parts of a body as they come, until they have more than `most` bytes."""
    n = 0
    for part in response.iter_bytes():
        n += len(part)
        yield part
        if n > most:
            return


def read_headers(names: Mapping[str, str]) -> dict[str, str]:
    """Return header -> value, from the named environment variables. Raises Unavailable if one is unset."""
    headers = {}
    for header, variable in names.items():
        value = os.environ.get(variable, "").strip()
        if not value:
            raise Unavailable(
                f"The header '{header}' is read from the environment variable {variable}, which is not set."
                f" Set it: export {variable}=...",
                code="key-unset",
            )
        headers[header] = value
    return headers


def slots(request: Request, conversation: str) -> dict[str, object]:
    """Return the values that a body template can hold, by slot."""
    decoding, first = request.decoding, request.messages[0]
    return {
        "messages": as_dicts(request),
        "text": request.messages[-1].content,
        "system": first.content if first.role == "system" else "",
        "conversation": conversation,
        "seed": request.seed,
        "max_tokens": decoding.max_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
    }


def fill_template(template: object, values: Mapping[str, object]) -> object:
    """Replace "$name" in a template: by the value if the string is only that, otherwise as text."""
    if isinstance(template, Mapping):
        return {key: fill_template(value, values) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [fill_template(value, values) for value in template]
    if not isinstance(template, str):
        return template
    if (alone := _SLOT.fullmatch(template)) and alone[1] in values:
        return values[alone[1]]
    return _SLOT.sub(lambda slot: _as_text(values.get(slot[1], slot[0])), template)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def slots_in(template: object) -> set[str]:
    """Return the names of the slots in a template. Raises UsageError for an unknown one."""
    if isinstance(template, Mapping):
        return set().union(*map(slots_in, template.values()))
    if isinstance(template, list | tuple):
        return set().union(*map(slots_in, template))
    names = set(_SLOT.findall(template)) if isinstance(template, str) else set()
    if unknown := sorted(names - set(SLOTS)):
        raise UsageError(
            f"the body has no slot '${unknown[0]}'. There are: ${', $'.join(SLOTS)}.",
            code="unknown-name",
        )
    return names


def answer_in(text: str, pointer: str) -> str:
    """Return the answer in a body: the text at a JSON pointer (RFC 6901); all of it for the pointer ""."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        if pointer:
            raise WebRequestFailed(f"the answer is not JSON: {' '.join(text.split())[:120]!r}") from None
        return text
    if not pointer:
        return value if isinstance(value, str) else text
    for part in pointer.removeprefix("/").split("/"):
        value = _step(value, part.replace("~1", "/").replace("~0", "~"), pointer)
    if not isinstance(value, str):
        raise WebRequestFailed(f"{pointer} in the answer is {type(value).__name__}, not a text")
    return value


def _step(value: object, part: str, pointer: str) -> object:
    if isinstance(value, dict) and part in value:
        return value[part]
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    keys: Sequence[object] = list(value)[:8] if isinstance(value, dict) else ()
    there = f"; there are: {' '.join(', '.join(map(str, keys)).split())[:200]}" if keys else ""
    raise WebRequestFailed(f"the answer has no {pointer} ('{part}' is not there{there})")


def load(
    model: Model,
    folder: Path,  # noqa: ARG001 (there are no files)
    tuning: Path | None = None,  # noqa: ARG001
    device: Device | None = None,  # noqa: ARG001
) -> UrlEngine:
    """Load a recorded address. Raises Unavailable if the variable of a header is not set."""
    try:
        settings = msgspec.convert(model.recipe.settings, WebSettings)
    except msgspec.ValidationError as error:
        raise Damaged(f"The record of '{model.name}' does not read: {error}.") from None
    return UrlEngine(
        WebEndpoint(settings),
        takes_messages=_takes_messages(settings.body),
        width=settings.concurrency,
        timeout_seconds=settings.timeout_seconds,
    )


def refuse_text_only(model: Model) -> None:
    """Raise UsageError if the requests of a recorded address hold only the user's text."""
    if not _takes_messages(model.recipe.settings.get("body")):
        raise UsageError(
            f"{model.name} is sent only the user's text, so it would not see the application's system prompt."
            ' Put "$messages", or "$system" and "$text", into its `body`. If it is an application of its own,'
            ' write rendering = "theirs" in the application.'
        )


def _takes_messages(body: object) -> bool:
    return bool({"messages", "system"} & slots_in(body))


class UrlEngine(PooledEngine):
    """An address behind the Engine protocol. Only the answer of a stream of events is heard in parts."""

    def __init__(self, web: WebEndpoint, takes_messages: bool, width: int, timeout_seconds: float) -> None:
        # Later than the request's own limit, whose error names the cause.
        super().__init__(f"url {web.url} width {width}", width, timeout_seconds + 5, web.mask)
        self._web, self._takes_messages = web, takes_messages

    def render(self, request: Request) -> str:
        """Return the conversation as one text; the application's own prompt is unknown."""
        call.refuse_unseen(f"url:{self._web.url}", self._takes_messages, request)
        return conversation_text(request)

    def close(self) -> None:
        self._web.close()

    def _answer(self, request: Request, heard: StreamedAnswer) -> Reply:
        if request.prefill:
            return error_row(request, self.render, NO_PREFILL)
        try:
            answer = self._web.ask(request, conversation_id(self._nonce, request), heard)
        except WebRequestFailed as error:
            return error_row(request, self.render, self._web.mask(str(error)))
        stop: Stop = "filter" if answer.is_blocked else "end" if heard.is_wanted else "length"
        return Reply(request.key, self.render(request), answer.text, stop=stop)
