"""One HTTP request to a remote service: bounded, without redirects, and with the key removed from the answer.

Promises: a body longer than MOST_BYTES, a redirect or a compressed body is a failure; none is followed or
unpacked. Nothing that leaves this file holds the key, texts of exceptions included.
Leaves to others: retries (transport.py) and the JSON of an answer (apis/).
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import truststore

from heredity.core.sanitize import clean_text
from heredity.engines._heard import KeyMask
from heredity.engines._server_events import EventReader
from heredity.engines.remote.budget import NO_KEY, Calls
from heredity.engines.remote.messages import JsonObject, MalformedAnswer
from heredity.engines.remote.retry import retry_after

MOST_BYTES = 16 << 20  # of one response; a long answer has some hundred kilobytes
_SHOWN = 300  # characters of a service's message in ours
_TRANSIENT = frozenset({408, 409, 425, 429})
_LIMITS = frozenset({429, 503, 529})  # the service asks for fewer requests; 529 is Anthropic's
_FOR_ALL = frozenset({401, 402, 403, 404, 405})
_PERMANENT = frozenset({401, 402})
_EVENT_HEADERS = {"accept": "text/event-stream, application/json"}
_HEADERS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "connection": "keep-alive",
    "content-type": "application/json",
    "user-agent": "heredity",
}


class RequestFailure(Exception):
    """An attempt that brought no answer.

    is_transient: another attempt may succeed. is_limit: the service asks for fewer requests.
    is_for_all: no other request would fare better; is_permanent: even if some were answered before.
    after: seconds that the service asks to wait. code: its own word for the failure.
    may_cost: the service may have computed an answer. status: of the response; 0 without one.
    """

    def __init__(
        self,
        message: str,
        *,
        is_transient: bool = False,
        is_limit: bool = False,
        is_for_all: bool = False,
        is_permanent: bool = False,
        after: float | None = None,
        code: str = "",
        may_cost: bool = False,
        status: int = 0,
    ) -> None:
        super().__init__(message)
        self.message, self.is_transient, self.is_limit = message, is_transient, is_limit
        self.is_for_all, self.is_permanent = is_for_all, is_permanent
        self.after, self.code, self.may_cost, self.status = after, code, may_cost, status


class HttpResponse(NamedTuple):
    """A response without the key. `after` is its Retry-After header."""

    status: int
    after: str | None
    body: bytes


class HttpClient:
    """Posts JSON and reads each response whole, within bounds."""

    def __init__(self, calls: Calls, mask: KeyMask, key: str) -> None:
        quiet_loggers()
        n = calls.concurrency
        timeout = httpx.Timeout(calls.stall_seconds, connect=calls.connect_seconds, pool=None)
        self._client = httpx.AsyncClient(
            verify=_certificates(),
            timeout=timeout,
            limits=httpx.Limits(max_connections=n, max_keepalive_connections=n, keepalive_expiry=30.0),
            follow_redirects=False,
        )
        self._mask, self._has_key = mask, key != NO_KEY
        self._extensions = {"timeout": timeout.as_dict()}

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, object],
        receive: Callable[[bytes], bool] | None = None,
    ) -> HttpResponse:
        """Post a JSON body. Raises RequestFailure if no whole response comes back.

        receive: gets the data of each server-sent event, until it returns True or the response ends; the
        body is then empty. An error of it is a RequestFailure. Another response is read whole.
        """
        try:
            content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
            # Not client.build_request: it would add cookies of earlier responses.
            sent = {**_HEADERS, **({} if receive is None else _EVENT_HEADERS), **headers}
            request = httpx.Request("POST", url, headers=sent, content=content, extensions=self._extensions)
            response = await self._client.send(request, stream=True)
            try:
                if receive is None or not _is_event_stream(response):
                    data = self._masked(await _read(response))
                else:
                    data = await self._pass_on(response, receive)
            finally:
                await response.aclose()
        except RequestFailure:
            raise
        except Exception as error:
            raise _failure_of_error(error) from None
        return HttpResponse(response.status_code, response.headers.get("retry-after"), data)

    async def _pass_on(self, response: httpx.Response, receive: Callable[[bytes], bool]) -> bytes:
        """Pass the events of a response on. Returns b""."""
        reader = EventReader()
        async for part in _parts(response):
            for data in reader.feed(part):
                if receive(self._masked(data)):
                    return b""
        return b""

    def _masked(self, data: bytes) -> bytes:
        if not self._has_key:
            return data
        return self._mask(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _is_event_stream(response: httpx.Response) -> bool:
    is_event_stream = response.headers.get("content-type", "").lower().startswith("text/event-stream")
    return is_event_stream and 200 <= response.status_code < 300


async def _read(response: httpx.Response) -> bytes:
    return b"".join([part async for part in _parts(response)])


async def _parts(response: httpx.Response) -> AsyncIterator[bytes]:
    """The parts of a body as they come. Raises MalformedAnswer for a compressed or too long one."""
    coding = response.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise MalformedAnswer(f"the body is compressed ({coding[:20]!r}), which was not requested")
    n = 0
    async for part in response.aiter_raw():
        n += len(part)
        if n > MOST_BYTES:
            raise MalformedAnswer(f"the body is longer than {MOST_BYTES:,} bytes")
        yield part


def read_json(response: HttpResponse) -> JsonObject:
    """Return the object in a successful response. Raises RequestFailure for another, or MalformedAnswer."""
    if not 200 <= response.status < 300:
        raise _failure_of_status(response)
    return _decode(response.body, "the body")


def read_chunk(data: bytes) -> JsonObject:
    """Return the object in the data of an event. Raises RequestFailure for an error, or MalformedAnswer."""
    found = _decode(data, "a part of the stream")
    if found.get("error"):
        code, reason = _code_and_reason(data)
        message = "the service ended the stream" + (f": {reason}" if reason else "")
        raise RequestFailure(message, is_transient=True, code=code, may_cost=True)
    return found


def _decode(body: bytes, name: str) -> JsonObject:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        found = _repaired(body)
        if found is None:
            raise MalformedAnswer(f"{name} is not JSON ({str(error)[:80]})") from None
    if not isinstance(found, dict):
        raise MalformedAnswer(f"{name} is not a JSON object")
    return found


def _repaired(body: bytes) -> object:
    """Decode JSON with lone surrogates, which a model may write, as U+FFFD each. None if it is not JSON."""
    try:
        return msgspec.json.decode(clean_text(json.dumps(json.loads(body), ensure_ascii=False)))
    except (ValueError, RecursionError):
        return None


def broken_answer(error: MalformedAnswer) -> RequestFailure:
    """Return the failure of an attempt whose answer is malformed."""
    return RequestFailure(f"broken answer: {error}", is_transient=True, may_cost=True)


def _failure_of_status(response: HttpResponse) -> RequestFailure:
    status = response.status
    code, reason = _code_and_reason(response.body)
    message = f"HTTP {status}" + (f": {reason}" if reason else "")
    if 300 <= status < 400:
        return RequestFailure(f"{message} (a redirect, which is not followed)")
    if code in ("insufficient_quota", "billing_hard_limit_reached"):
        return RequestFailure(message, is_for_all=True, is_permanent=True, code=code)
    return RequestFailure(
        message,
        is_transient=status in _TRANSIENT or status >= 500,
        is_limit=status in _LIMITS,
        is_for_all=status in _FOR_ALL,
        is_permanent=status in _PERMANENT,
        after=retry_after(response.after, time.time()),
        code=code,
        status=status,
    )


def _failure_of_error(error: Exception) -> RequestFailure:
    """Return the failure of an attempt that raised. The text of the exception may hold anything: not used."""
    if isinstance(error, MalformedAnswer):
        return broken_answer(error)
    if isinstance(error, httpx.ConnectTimeout):
        return RequestFailure("no connection within the time for it", is_transient=True)
    if isinstance(error, httpx.TimeoutException):
        return RequestFailure("the service stalled", is_transient=True, may_cost=True)
    if isinstance(error, httpx.ConnectError):
        return RequestFailure("no connection to the service", is_transient=True)
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        return RequestFailure("the address cannot be used for a request", is_for_all=True)
    if isinstance(error, httpx.TransportError):
        name = type(error).__name__
        return RequestFailure(f"the connection broke ({name})", is_transient=True, may_cost=True)
    return RequestFailure(f"the request was not sent ({type(error).__name__})")


def _code_and_reason(body: bytes) -> tuple[str, str]:
    """Read code and message of an error body of any shape. Without JSON the message is the body's start."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", _short(body[: 4 * _SHOWN].decode("utf-8", "replace"))
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, list) and error and isinstance(error[0], dict):
        error = error[0].get("error", error[0])
    if not isinstance(error, dict):
        return "", _short(str(error))
    code = next((str(error[k]) for k in ("code", "type", "status") if isinstance(error.get(k), str)), "")
    return code[:80], _short(str(error.get("message") or error.get("status") or ""))


def _short(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split())[:_SHOWN]


def quiet_loggers() -> None:
    """Keep requests out of logs, whatever the environment asks for."""
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _certificates() -> ssl.SSLContext:
    """Return the system's certificates and those of SSL_CERT_FILE, so that a company's proxy works."""
    context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if (file := os.environ.get("SSL_CERT_FILE")) and Path(file).is_file():
        context.load_verify_locations(cafile=file)
    return context
