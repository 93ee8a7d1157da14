"""Any model in any application, behind an OpenAI-compatible API.

    POST /v1/chat/completions     messages in, an answer out, as a whole or as a stream of events
    POST /v1/completions          a plain text to go on from, where there is no application
    GET  /v1/models               what is served: each model's id, parents, recipe; the application's digest
    GET  /health                  200 while every model can answer

The application's system prompt, passages, few-shot turns and tools stand around every conversation, as in a
study: what was measured is what answers. A call of a tool is handed to the caller, who sends its result.

Promises: served answers are the engine's own, bit for bit those of a study on this machine; nothing that a
model writes is executed; no page in a browser can make it answer (JSON alone is taken, and of a loopback
address only its own names).
Leaves to others: one engine for many (service.py), the bodies (wire.py), and sending them (replying.py).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from heredity.core.errors import UsageError, did_you_mean
from heredity.core.records import Reply, encode
from heredity.deploy.serve import responses, schema
from heredity.deploy.serve.responses import Answer, Served
from heredity.deploy.serve.schema import Refusal

LARGEST = 4 << 20  # bytes of a body
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
T = TypeVar("T")


def app(served: Sequence[Served], key: str = "", is_local: bool = True) -> Starlette:
    """The API over these models, as an ASGI application.

    key: what callers must send as `Authorization: Bearer KEY`; "" for none. is_local: whether only callers
    that name a loopback address are answered.
    """
    desk = _Desk(tuple(served), key)
    guard = [Middleware(TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK))] if is_local else []
    routes = [
        Route("/v1/chat/completions", desk.chat, methods=["POST"]),
        Route("/v1/completions", desk.text, methods=["POST"]),
        Route("/v1/models", desk.models, methods=["GET"]),
        Route("/health", desk.health, methods=["GET"]),
    ]
    handlers: dict[Any, Any] = {Refusal: _refused, HTTPException: _not_here, ClientDisconnect: _left}
    return Starlette(routes=routes, middleware=guard, exception_handlers=handlers)


@dataclass(frozen=True)
class _Desk:
    """Takes what comes, and answers it."""

    served: tuple[Served, ...]
    key: str

    async def chat(self, call: Call) -> Response:
        """An answer to a conversation."""
        body = await self._body(call)
        one = self._named(body["model"])
        asked = _understood(lambda: schema.chat(body, one.application, one.may_draw))
        return await _answered(call, one, asked, responses.Chat(one))

    async def text(self, call: Call) -> Response:
        """What goes on from a text."""
        body = await self._body(call)
        one = self._named(body["model"])
        if not hasattr(one.service.engine, "is_base"):
            raise Refusal(400, f"'{one.model.name}' takes conversations alone", "not_supported")
        asked = _understood(lambda: schema.text(body, one.application is None))
        return await _answered(call, one, asked, responses.Text(one))

    async def models(self, call: Call) -> Response:
        """What is served, and where it came from."""
        self._admit(call)
        return _json({"object": "list", "data": [_about(one) for one in self.served]})

    async def health(self, call: Call) -> Response:  # noqa: ARG002 (open to whoever watches)
        """Whether all can answer, and how many requests each has open."""
        failed = {s.model.name: str(s.service.failure) for s in self.served if s.service.failure is not None}
        n_open = {one.model.name: one.service.n_open for one in self.served}
        return _json({"failed": failed, "open": n_open}, 503 if failed else 200)

    def _admit(self, call: Call) -> None:
        scheme, _, given = call.headers.get("authorization", "").partition(" ")
        is_right = secrets.compare_digest(given.strip().encode("latin-1"), self.key.encode("ascii"))
        if self.key and not (is_right and scheme.lower() == "bearer"):
            raise Refusal(401, "this server asks for a key: Authorization: Bearer KEY", "invalid_api_key")

    async def _body(self, call: Call) -> dict[str, Any]:
        self._admit(call)
        if call.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "send JSON, with content-type: application/json", "not_json")
        raw = bytearray()
        async for piece in call.stream():
            raw += piece
            if len(raw) > LARGEST:
                raise Refusal(413, f"a body has at most {LARGEST:,} bytes", "too_large")
        return _understood(lambda: schema.opened(bytes(raw)))

    def _named(self, name: str) -> Served:
        names = [one.model.name for one in self.served]
        for one in self.served:
            if name == one.model.id or (name == one.model.name and names.count(name) == 1):
                return one
        if name in names:
            raise Refusal(404, f"several models are called '{name}' here: say an id", "model_not_found")
        hint = did_you_mean(name[:200], names) or f" Here are: {', '.join(names)}."
        raise Refusal(404, f"no model is called '{name[:200]}' here.{hint}", "model_not_found")


async def _answered(call: Call, one: Served, asked: schema.Asked, shape: responses.Chat) -> Response:
    answers = [Answer(one, asked, i) for i in range(len(asked.requests))]
    if len(answers) > one.service.most:
        raise Refusal(400, f"at most {one.service.most} answers may be open here", "invalid_request")
    try:
        for answer in answers:
            answer.ask()
        if asked.is_streamed:
            told = responses.events(shape, answers, asked.with_usage)
            return StreamingResponse(told, media_type="text/event-stream")
        return _json(shape.whole(answers, await _unless_gone(call, answers)))
    except asyncio.CancelledError:  # the server has waited long enough for this answer, and closes
        _drop(answers)
        raise Refusal(503, "the server closes", "closing") from None
    except BaseException:
        _drop(answers)
        raise


def _drop(answers: Sequence[Answer]) -> None:
    for answer in answers:
        answer.drop()


async def _unless_gone(call: Call, answers: Sequence[Answer]) -> list[Reply]:
    """The replies. Raises ClientDisconnect where the caller goes away first."""
    gone = asyncio.ensure_future(_gone(call))
    replies = [asyncio.ensure_future(answer.reply()) for answer in answers]
    try:
        for reply in replies:
            both: set[asyncio.Future[Any]] = {gone, reply}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not reply.done():
                raise ClientDisconnect
        return [reply.result() for reply in replies]
    finally:
        for each in (gone, *replies):
            responses.forget(each)


async def _gone(call: Call) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass


def _about(one: Served) -> dict[str, Any]:
    model, layer = one.model, one.application
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": model.family,
        "heredity": {
            "id": model.id,
            "parents": model.parents,
            "recipe": model.recipe.kind,
            "licence": model.licence,
            "engine": one.service.engine.name,
            "application": None if layer is None else {"name": layer.name, "digest": layer.digest},
        },
    }


def _json(what: Any, status: int = 200) -> Response:
    return Response(encode(what), status, media_type="application/json")


def _understood(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except UsageError as error:
        raise Refusal(400, f"{error}.", "invalid_request") from None


async def _refused(call: Call, error: Refusal) -> Response:  # noqa: ARG001
    response = _json(error.body, error.status)
    if error.status == 429:
        response.headers["retry-after"] = "1"
    return response


async def _left(call: Call, error: ClientDisconnect) -> Response:  # noqa: ARG001
    """No one is there to read it."""
    return Response(status_code=499)


async def _not_here(call: Call, error: HTTPException) -> Response:
    message = f"{call.method} {call.url.path} is not served here"
    return _json(Refusal(error.status_code, message, "not_found").body, error.status_code)
