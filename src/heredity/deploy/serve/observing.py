"""The operator's view of a server: a line per request, and counts for Prometheus.

Promises: neither holds a word of a prompt, an answer, a key, or an address of a caller. A path is named by
its route, because callers write paths.
Leaves to others: which are on (app.py; both are off by default).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heredity.core.host import resident_memory
from heredity.core.records import encode

BOUNDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # seconds, of the histogram of requests
_GUARDED = "heredity_guarded_answers_total"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts of requests since the start, by route and status."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._within: Counter[tuple[str, float]] = Counter()
        self._seconds: Counter[str] = Counter()

    def note(self, route: str, status: int, seconds: float) -> None:
        """Count a request that ended."""
        self._requests[route, status] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]  # a sum, not a count
        for bound in BOUNDS:
            self._within[route, bound] += seconds <= bound

    def text(self, gauges: Mapping[str, Mapping[str, float]], guarded: Mapping[str, int]) -> str:
        """Return all counts in Prometheus' text format.

        gauges: further values by name and model. guarded: answers that each guard touched.
        """
        lines = list(_typed("heredity_requests_total", "counter"))
        for (route, status), n in sorted(self._requests.items()):
            lines.append(f'heredity_requests_total{{route="{route}",status="{status}"}} {n}')
        lines += _typed("heredity_request_seconds", "histogram")
        for route in sorted({route for route, _ in self._requests}):
            lines += self._histogram(route)
        for name, by_model in gauges.items():
            lines += _typed(name, "counter" if name.endswith("_total") else "gauge")
            lines += [f'{name}{{model="{_escaped(model)}"}} {value}' for model, value in by_model.items()]
        if guarded:
            lines += _typed(_GUARDED, "counter")
            lines += [f'{_GUARDED}{{guard="{_escaped(guard)}"}} {n}' for guard, n in sorted(guarded.items())]
        if (resident := resident_memory()) is not None:
            lines += [
                *_typed("process_resident_memory_bytes", "gauge"),
                f"process_resident_memory_bytes {resident}",
            ]
        return "\n".join(lines) + "\n"

    def _histogram(self, route: str) -> Iterable[str]:
        n = sum(count for (each, _), count in self._requests.items() if each == route)
        for bound in BOUNDS:
            count = self._within[route, bound]
            yield f'heredity_request_seconds_bucket{{route="{route}",le="{bound:g}"}} {count}'
        yield f'heredity_request_seconds_bucket{{route="{route}",le="+Inf"}} {n}'
        yield f'heredity_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}'
        yield f'heredity_request_seconds_count{{route="{route}"}} {n}'


def _typed(name: str, kind: str) -> Iterable[str]:
    yield f"# TYPE {name} {kind}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Observed:
    """ASGI middleware that notes each request when its response has ended.

    log: receives a line of JSON per request; None: no log.
    """

    def __init__(
        self, inner: ASGIApp, routes: list[BaseRoute], metrics: Metrics, log: Callable[[str], None] | None
    ) -> None:
        self._inner, self._routes, self._metrics, self._log = inner, routes, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, and note how it ended."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        started, status, n_bytes = time.monotonic(), 500, 0

        async def counted(message: Message) -> None:
            nonlocal status, n_bytes
            status = message.get("status", status)
            n_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._inner(scope, receive, counted)
        finally:
            seconds = time.monotonic() - started
            route = self._route(scope)
            self._metrics.note(route, status, seconds)
            if self._log is not None:
                self._log(_line(scope, route, status, seconds, n_bytes))

    def _route(self, scope: Scope) -> str:
        for each in self._routes:
            if isinstance(each, Route) and each.matches(scope)[0] != Match.NONE:
                return each.path
        return "other"


def _line(scope: Scope, route: str, status: int, seconds: float, n_bytes: int) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    method = scope["method"] if scope["method"] in ("GET", "POST", "OPTIONS", "HEAD") else "other"
    found = {"at": now, "method": method, "route": route, "status": status}
    return encode({**found, "seconds": round(seconds, 4), "bytes": n_bytes}).decode()
