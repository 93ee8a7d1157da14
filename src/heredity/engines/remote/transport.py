"""The wire to a far service: bounded, without redirects, and with the key taken out of all that comes back.

The vendors' SDKs build and sign requests; every response is read here first, so that all three services fail
in the same few ways and no SDK's exception holds a key or an endless body.

Promises: a body past MOST_BYTES, a redirect or a compressed body is a failure, never followed or unpacked;
what leaves this file, exceptions' texts too, does not hold the key.
Leaves to others: retrying (_remote_line.py) and what an answer holds (_remote_openai.py and its like).
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from heredity.core.sanitize import clean_text
from heredity.engines.remote.budget import NO_KEY, Calls
from heredity.engines.remote.retry import retry_after

MOST_BYTES = 16 << 20  # of one response; a long answer is some hundred kilobytes
_SHOWN = 300  # characters of a service's message in ours
_HIDDEN = "[key]"
_PASSING = frozenset({408, 409, 425, 429})
_LIMITS = frozenset({429, 503, 529})  # of these "slow down" is said; 529 is Anthropic's
_FOR_ALL = frozenset({401, 402, 403, 404, 405})
_LASTING = frozenset({401, 402})
_SENT = frozenset({
    "host", "accept", "accept-encoding", "connection", "content-type", "content-length", "user-agent",
    "authorization", "x-api-key", "x-goog-api-key", "anthropic-version", "openai-organization",
    "openai-project",
})  # fmt: skip
_DROPPED = frozenset({"content-length", "transfer-encoding", "content-encoding", "location"})


class Failure(Exception):
    """One attempt did not bring an answer.

    is_passing: it may do so if tried again; is_limit: the service wants fewer requests; is_for_all: no other
    request would fare better, and is_lasting: even where some were answered before; after: seconds that the
    service asked to wait; code: its own word for it; may_cost: the service may have worked all the same.
    """

    def __init__(
        self,
        words: str,
        *,
        is_passing: bool = False,
        is_limit: bool = False,
        is_for_all: bool = False,
        is_lasting: bool = False,
        after: float | None = None,
        code: str = "",
        may_cost: bool = False,
    ) -> None:
        super().__init__(words)
        self.words, self.is_passing, self.is_limit, self.is_for_all = words, is_passing, is_limit, is_for_all
        self.after, self.code, self.may_cost, self.is_lasting = after, code, may_cost, is_lasting


class Broken(Exception):
    """An answer that is not what the service's documents say."""


@dataclass
class Seen:
    """The response to the request of this task, as it came, without the key."""

    status: int = 0
    after: str | None = None
    body: bytes = b""


SEEN: ContextVar[Seen] = ContextVar("SEEN")


def hide(key: str) -> Callable[[str], str]:
    """A function that takes the key out of a text, also where it is written in another way."""
    if key == NO_KEY:
        return str
    # a base64 of the key alone, its JSON and its URL spelling: what an echo may make of it
    import base64
    import json
    from urllib.parse import quote, quote_plus

    whole = base64.b64encode(key.encode()).decode()
    forms = {key, json.dumps(key)[1:-1], quote(key, safe=""), quote_plus(key), whole, whole.rstrip("=")}
    forms |= {form.replace("/", "\\/") for form in forms}
    in_order = sorted(forms, key=len, reverse=True)

    def hidden(text: str) -> str:
        for form in in_order:
            if form in text:
                text = text.replace(form, _HIDDEN)
        return text

    return hidden


class Client(httpx2.AsyncClient):
    """An HTTP client that reads each response whole, within bounds, and keeps it in SEEN."""

    def __init__(self, calls: Calls, hidden: Callable[[str], str], key: str) -> None:
        quiet()
        n = calls.concurrency
        super().__init__(
            verify=_certificates(),
            timeout=httpx2.Timeout(calls.stall_seconds, connect=calls.connect_seconds, pool=None),
            limits=httpx2.Limits(max_connections=n, max_keepalive_connections=n, keepalive_expiry=30.0),
            follow_redirects=False,
        )
        self._hidden, self._has_key = hidden, key != NO_KEY
        self._seconds = self.timeout.as_dict()

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        # An SDK's own timeouts and redirects would take the place of ours.
        request.extensions = {**request.extensions, "timeout": self._seconds}
        request.headers["accept-encoding"] = "identity"
        request.headers["user-agent"] = "heredity"
        for name in [name for name in request.headers if name not in _SENT or not request.headers[name]]:
            del request.headers[name]  # what an SDK tells about this machine, or found in the environment
        response = await super().send(request, stream=True, follow_redirects=False)
        try:
            body = await _read(response)
        finally:
            await response.aclose()
        if self._has_key:
            body = self._hidden(body.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        if (seen := SEEN.get(None)) is not None:
            seen.status, seen.after, seen.body = (
                response.status_code,
                response.headers.get("retry-after"),
                body,
            )
        headers = [(k, self._hidden(v)) for k, v in response.headers.items() if k.lower() not in _DROPPED]
        return httpx2.Response(response.status_code, headers=headers, content=body, request=request)


async def _read(response: httpx2.Response) -> bytes:
    coding = response.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise Broken(f"the body is compressed ({coding[:20]!r}), which was not asked for")
    parts, n = [], 0
    async for part in response.aiter_raw():
        parts.append(part)
        n += len(part)
        if n > MOST_BYTES:
            raise Broken(f"the body is longer than {MOST_BYTES:,} bytes")
    return b"".join(parts)


def read_json(seen: Seen) -> dict[str, Any]:
    """The object in a good response. Raises Failure for any other response."""
    if not 200 <= seen.status < 300:
        raise of_status(seen)
    try:
        found = msgspec.json.decode(seen.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        found = _mended(seen.body)
        if found is None:
            raise Broken(f"the body is not JSON ({str(error)[:80]})") from None
    if not isinstance(found, dict):
        raise Broken("the body is no JSON object")
    return found


def _mended(body: bytes) -> Any:
    """JSON that is whole but for halves of surrogates, which a model may write: U+FFFD each; else None."""
    try:
        return msgspec.json.decode(clean_text(json.dumps(json.loads(body), ensure_ascii=False)))
    except (ValueError, RecursionError):
        return None


def of_status(seen: Seen) -> Failure:
    """The failure that a response with another status than 2xx is."""
    status = seen.status
    code, said = _said(seen.body)
    words = f"HTTP {status}" + (f": {said}" if said else "")
    if 300 <= status < 400:
        return Failure(f"{words} (a redirect, which is not followed)")
    if code in ("insufficient_quota", "billing_hard_limit_reached"):
        return Failure(words, is_for_all=True, is_lasting=True, code=code)
    after = retry_after(seen.after, time.time())
    is_passing = status in _PASSING or status >= 500
    return Failure(
        words,
        is_passing=is_passing,
        is_limit=status in _LIMITS,
        is_for_all=status in _FOR_ALL,
        is_lasting=status in _LASTING,
        after=after,
        code=code,
    )


def of_error(error: Exception) -> Failure:
    """The failure that an exception of the wire or of an SDK is; its own text is not repeated: it may hold
    anything, headers too."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 8:
        chain.append(inner)
    for one in chain:
        if isinstance(one, Failure):
            return one
        if isinstance(one, Broken):
            return Failure(f"broken answer: {one}", is_passing=True, may_cost=True)
        if isinstance(one, httpx2.ConnectTimeout):
            return Failure("no connection within the time for it", is_passing=True)
        if isinstance(one, httpx2.TimeoutException):
            return Failure("the service stalled", is_passing=True, may_cost=True)
        if isinstance(one, httpx2.ConnectError):
            return Failure("no connection to the service", is_passing=True)
        if isinstance(one, (httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
            return Failure("the address is none that can be asked", is_for_all=True)
        if isinstance(one, httpx2.TransportError):
            return Failure(f"the connection broke ({type(one).__name__})", is_passing=True, may_cost=True)
    return Failure(f"the request was not sent ({type(error).__name__})")


def _said(body: bytes) -> tuple[str, str]:
    """Code and message in a service's error body, whatever its shape; the body's start where it has none."""
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


def quiet() -> None:
    """Keep the SDKs from writing requests and bodies into a log, whatever the environment asks for."""
    for name in (
        "openai",
        "anthropic",
        "google_genai",
        "google_genai.models",
        "httpx",
        "httpx2",
        "httpcore2",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


def _certificates() -> ssl.SSLContext:
    """The system's certificates and those of SSL_CERT_FILE, so that a company's proxy works."""
    import truststore

    context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if (file := os.environ.get("SSL_CERT_FILE")) and Path(file).is_file():
        context.load_verify_locations(cafile=file)
    return context
