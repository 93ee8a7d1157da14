"""The server of the pages: routes, one stream of events, and what keeps others out.

    uvicorn.run(app(site, ViewSettings()))

Promises: a page runs only the script that ships and asks only this server, by the content policy of every
answer. On a loopback address only loopback host names are answered, so that a web page elsewhere cannot read
it by a name of its own. On any other address every request needs the token. A form is taken only from a page
of this server.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as Call
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heredity.core.errors import HeredityError, UnknownName, UsageError
from heredity.core.files import read_file
from heredity.view.places import StudyPlace, report_of
from heredity.view.site import Asked, Page, Site

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
LARGEST = 64 << 10  # bytes of a form
POLL = 1.0  # seconds between two looks at a study: the pages take little from a study that runs
_QUIET = 10.0  # seconds after which a stream without an event sends a comment
_COOKIE = "heredity_view"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_OF_REPORT = "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """How the pages are served. token: what readers must send, or "". is_local: at a loopback address."""

    token: str = ""
    is_local: bool = True
    is_closing: Callable[[], bool] = lambda: False  # then streams of events end


def app(site: Site, settings: ViewSettings | None = None) -> Starlette:
    """The pages as an ASGI application. Raises UsageError without a token if any machine could connect."""
    settings = settings or ViewSettings()
    if not settings.is_local and not settings.token:
        raise UsageError("Where any machine can connect, the pages need a token.")
    routes: list[BaseRoute] = [
        Route(page.path, _endpoint(site, page), methods=["GET", "POST"] if page.act else ["GET"])
        for page in site.pages
    ]
    routes.append(Route("/events", partial(_events, site, settings.is_closing)))
    routes.append(Route("/s/{study}/report.html", partial(_report, site)))
    routes.append(Route("/static/view.css", partial(_static, str(site.style), "text/css")))
    routes.append(Route("/static/view.js", partial(_static, str(site.script), "text/javascript")))
    guard = [Middleware(_Guard, token=settings.token)]
    if settings.is_local:
        guard.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK), www_redirect=False))
    return Starlette(routes=routes, middleware=guard, exception_handlers={404: partial(_lost, site)})


def run(site: Site, listening: socket.socket, token: str, is_local: bool) -> None:
    """Show the pages at a socket that is bound, until this process is interrupted or ended."""
    import uvicorn

    # Streams of events end when the server does; without that it would wait for them.
    settings = ViewSettings(token, is_local, is_closing=lambda: server.should_exit)
    config = uvicorn.Config(
        app(site, settings), log_level="warning", access_log=False, server_header=False, ws="none",
        timeout_graceful_shutdown=3,
    )  # fmt: skip
    server = uvicorn.Server(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def _endpoint(site: Site, page: Page) -> Callable[[Call], Awaitable[Response]]:
    def made(asked: Asked, form: Mapping[str, str] | None) -> Response:
        try:
            if form is not None and page.act:
                return RedirectResponse(page.act(site, asked, form), 303)
            return HTMLResponse(page.render(site, asked))
        except HeredityError as error:
            status = 404 if isinstance(error, UnknownName) else 400 if isinstance(error, UsageError) else 409
            return HTMLResponse(site.failure(asked, str(error)), status)

    async def answer(call: Call) -> Response:
        parts = {k: str(v) for k, v in call.path_params.items()}
        asked = Asked(call.url.path, parts, dict(call.query_params))
        return await run_in_threadpool(made, asked, await _form(call) if call.method == "POST" else None)

    return answer


async def _lost(site: Site, call: Call, _: Exception) -> Response:
    asked = Asked(call.url.path, {}, {})
    return HTMLResponse(site.failure(asked, "There is no such page."), 404)


async def _report(site: Site, call: Call) -> Response:
    """The report in the study's folder. A folder may come from anyone, so no script of it runs."""
    try:
        path = report_of(site.place.open(str(call.path_params["study"])))
    except HeredityError:
        path = None
    if path is None:
        return await _lost(site, call, HTTPException(404))
    text = await run_in_threadpool(read_file, path)
    return HTMLResponse(text, headers={"content-security-policy": _OF_REPORT})


async def _static(text: str, kind: str, _: Call) -> Response:
    return Response(text, media_type=kind, headers={"cache-control": "max-age=3600"})


async def _form(call: Call) -> dict[str, str]:
    body = b""
    async for piece in call.stream():
        body += piece
        if len(body) > LARGEST:
            break
    return dict(parse_qsl(body[:LARGEST].decode(errors="replace"), keep_blank_values=True))


# --- events ---------------------------------------------------------------------------------------


async def _events(site: Site, is_closing: Callable[[], bool], call: Call) -> Response:
    query = call.query_params
    stream = events(site.place, query.get("study", ""), query.get("seen", ""), POLL, is_closing)
    return StreamingResponse(stream, media_type="text/event-stream")


async def events(
    place: StudyPlace,
    key: str,
    seen: str,
    poll: float = POLL,
    is_closing: Callable[[], bool] = lambda: False,
) -> AsyncIterator[str]:
    """An event "rows" each time that a page would show something else.

    key: of the study; "" for the list of all. seen: the mark of what the page shows (OpenStudy.mark).
    """
    yield "retry: 2000\n\n"
    for n in itertools.count():
        if is_closing():
            return
        # Without a key every folder is looked into, which takes longer.
        now = await run_in_threadpool(_mark, place, key) if key or n % 4 == 0 else seen
        if now != seen:
            yield "event: rows\ndata: 1\n\n"
        elif n and n % round(_QUIET / poll) == 0:
            yield ": \n\n"  # a connection that its reader left ends here
        seen = now
        await asyncio.sleep(poll)


def _mark(place: StudyPlace, key: str) -> str:
    try:
        if not key:
            place.read(0.5)
            return place.mark()
        study = place.open(key)
        study.refresh(0.5)
        return study.mark()
    except (HeredityError, OSError) as error:
        return str(error)


# --- who may read ---------------------------------------------------------------------------------


class _Guard:
    """Asks for the token, refuses forms of other pages, and writes the headers of every answer."""

    def __init__(self, inner: ASGIApp, token: str) -> None:
        self._inner, self._token = inner, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refused(Call(scope))
        await (refused or self._inner)(scope, receive, with_headers)

    def _refused(self, call: Call) -> Response | None:
        if call.method not in ("GET", "HEAD") and not _is_own(call.headers):
            return PlainTextResponse("A form of another page is not taken.", 403)
        if not self._token:
            return None
        given = call.query_params.get("token", "")
        if given and self._is_token(given):
            left = call.url.remove_query_params("token")
            answer = RedirectResponse(left.path + (f"?{left.query}" if left.query else ""), 303)
            answer.set_cookie(_COOKIE, self._token, httponly=True, samesite="strict")
            return answer
        scheme, _, key = call.headers.get("authorization", "").partition(" ")
        if self._is_token(call.cookies.get(_COOKIE, "")) or (
            scheme.lower() == "bearer" and self._is_token(key)
        ):
            return None
        return PlainTextResponse("Open the address with the token that heredity view printed.", 401)

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "replace"), self._token.encode())


def _is_own(headers: Headers) -> bool:
    """Whether a form comes from a page of this server: browsers say so in Origin or Sec-Fetch-Site."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site == "same-origin"
    origin = headers.get("origin", "")
    return origin.partition("://")[2] == headers.get("host")
