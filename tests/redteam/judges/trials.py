"""Makes the probes and responses that these tests judge."""

from __future__ import annotations

from typing import Any

from heredity.core.records import Check, Exchange, Probe, Response, ToolCall


def probe(check: Check, *, kind: str = "breach", turns: tuple[str, ...] = ("Hello?",), **more: Any) -> Probe:
    return Probe("technique/one", "technique", kind, turns, check, "one", **more)  # type: ignore[arg-type]


def exchange(text: str, prefill: str = "", calls: tuple[ToolCall, ...] = ()) -> Exchange:
    return Exchange("", "rendered", prefill, text, calls, "end", 1, 1)


def response(*said: str | Exchange, error: str | None = None) -> Response:
    exchanges = tuple(exchange(s) if isinstance(s, str) else s for s in said)
    return Response(7, "trial", "m", "a", "technique/one", "direct", 0, 0, exchanges, "scripted", error)
