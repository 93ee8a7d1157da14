"""A server on this machine that speaks the three services' shapes, and fails in whatever way it is told to.

It is a real HTTP server (asyncio, loopback): what the engine does on the wire is what is tested. `modes` are
taken one a request; when they run out, every answer is good.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.event_streams import EVENTS, events

APIS = ("openai", "anthropic", "gemini")
STALL_SECONDS = 3600.0  # a test that waits for it does not end


@dataclass
class Asked:
    """One request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def api(self) -> str:
        if self.path.endswith("/messages"):
            return "anthropic"
        return "gemini" if "enerateContent" in self.path else "openai"

    @property
    def is_streamed(self) -> bool:
        """Whether the answer is asked for in parts."""
        return bool(self.body.get("stream")) or self.path.endswith(":streamGenerateContent?alt=sse")


@dataclass
class FaultServer:
    """`say` makes the answer of a request; `modes` says how the next ones go wrong, "ok" for not at all."""

    modes: list[str] = field(default_factory=list)
    always: str = "ok"
    say: Callable[[Asked], str] = lambda asked: f"answer to {last_text(asked)}"
    limit: int = 10**9  # requests at once, past which the answer is 429
    delay: float = 0.0
    served: str = "tiny-1"
    asked: list[Asked] = field(default_factory=list)
    n_active: int = 0
    most_active: int = 0

    def __enter__(self) -> FaultServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._open(), self._loop)
        self.port: int = started.result(60)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def base_url(self, api: str) -> str:
        return f"{self.url}/v1" if api == "openai" else self.url

    async def _open(self) -> int:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        return int(self._server.sockets[0].getsockname()[1])

    async def _shut(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(3):  # the loop's own turns in which it closes sockets
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (asked := await _read(reader)) is not None:
                self.asked.append(asked)
                if not await self._answer(asked, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, asked: Asked, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False where the connection is over."""
        mode = self.modes.pop(0) if self.modes else self.always
        self.n_active += 1
        self.most_active = max(self.most_active, self.n_active)
        try:
            if self.n_active > self.limit:
                mode = "429"
            if self.delay:
                await asyncio.sleep(self.delay)
            return await self._act(mode, asked, writer)
        finally:
            self.n_active -= 1

    async def _act(self, mode: str, asked: Asked, writer: asyncio.StreamWriter) -> bool:
        good = json.dumps(shape(asked.api, self.say(asked), self.served)).encode()
        name, _, value = mode.partition("=")
        status, headers, body = 200, {"content-type": "application/json"}, good
        if asked.is_streamed and name in EVENTS:
            return await self._stream(mode, asked, writer)
        if name == "finish":  # ended for a reason of the service's own
            body = json.dumps(shape(asked.api, self.say(asked), self.served, value)).encode()
        elif name in EVENTS:
            pass
        elif name == "refuses-streams":
            if asked.is_streamed:
                status, body = int(value or 400), _error("no streams for this account")
        elif name.isdigit():
            status, body = int(name), _error(f"HTTP {name} it is")
            if value:
                headers["retry-after"] = value
        elif name == "date":  # a Retry-After as a date, so many seconds from now
            status, body = 429, _error("slow down")
            headers["retry-after"] = email.utils.formatdate(time.time() + float(value), usegmt=True)
        elif name == "quota":
            status, body = 429, _error("no money left", code="insufficient_quota")
        elif name == "azure-filter":
            status, body = 400, _error("the prompt was filtered", code="content_filter")
        elif name == "stall":
            await asyncio.sleep(STALL_SECONDS)
            return False
        elif name == "drop":
            return False
        elif name == "half":
            await _write(writer, 200, {**headers, "content-length": str(len(good))}, good[: len(good) // 2])
            return False
        elif name == "half-stall":
            await _write(writer, 200, {**headers, "content-length": str(len(good))}, good[: len(good) // 2])
            await asyncio.sleep(STALL_SECONDS)
            return False
        elif name == "garbage":
            body = bytes(range(256)) * 8
        elif name == "no-http":
            writer.write(b"\x00\xffgarbage instead of HTTP\r\n\r\n")
            await writer.drain()
            return False
        elif name == "html":
            headers, body = {"content-type": "text/html"}, b"<html><script>alert(1)</script>Gateway</html>"
        elif name == "wrong":
            body = json.dumps(json.loads(value) if value else {"hello": ["world"]}).encode()
        elif name == "empty":
            body = b""
        elif name == "gzip":
            headers["content-encoding"] = "gzip"
        elif name == "redirect":
            status, body = 307, b""
            headers["location"] = value or f"{self.url}/elsewhere"
        elif name in ("echo", "echo-401", "echo-ok"):
            status, body = _echo(name, asked, self.served)
        else:
            raise AssertionError(f"no mode {mode}")
        await _write(writer, status, {**headers, "content-length": str(len(body))}, body)
        return True

    async def _stream(self, mode: str, asked: Asked, writer: asyncio.StreamWriter) -> bool:
        """Answer in parts; `mode` says how the stream goes wrong."""
        text, finish = self.say(asked), mode.partition("=")[2]
        good = shape(asked.api, text, self.served, finish)
        head = b"HTTP/1.1 200 Said\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n"
        writer.write(head)
        for event in events(good, asked.api, text, mode, key_of(asked)):
            writer.write(event)
            await writer.drain()
            await asyncio.sleep(0)
        if mode == "stream-stalls":
            await asyncio.sleep(STALL_SECONDS)
        return False


def shape(api: str, text: str, served: str, finish: str = "") -> dict[str, Any]:
    """A good answer, as the service writes it. `finish`: its own word for the end."""
    n = len(text.split())
    if api == "openai":
        message = {"role": "assistant", "content": text}
        return {
            "id": "c-1", "object": "chat.completion", "created": 1,
            "model": served, "system_fingerprint": "fp_1",
            "choices": [{"index": 0, "message": message, "finish_reason": finish or "stop"}],
            "usage": {
                "prompt_tokens": 20, "completion_tokens": n, "total_tokens": 20 + n,
                "prompt_tokens_details": {"cached_tokens": 8},
            },
        }  # fmt: skip
    if api == "anthropic":
        return {
            "id": "m-1", "type": "message", "role": "assistant", "model": served,
            "content": [{"type": "text", "text": text}], "stop_reason": finish or "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 12, "output_tokens": n, "cache_read_input_tokens": 8},
        }  # fmt: skip
    if finish.startswith("block:"):
        return {"promptFeedback": {"blockReason": finish[6:]}, "usageMetadata": {"promptTokenCount": 20}}
    return {
        "candidates": [
            {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": finish or "STOP"}
        ],
        "usageMetadata": {
            "promptTokenCount": 20, "candidatesTokenCount": n, "totalTokenCount": 20 + n,
            "cachedContentTokenCount": 8,
        },
        "modelVersion": served,
    }  # fmt: skip


def last_text(asked: Asked) -> str:
    """The text of the last message of a request, whatever its API."""
    body = asked.body
    last = (body.get("messages") or body.get("contents"))[-1]
    content = last.get("content", last.get("parts"))
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", part.get("content", ""))) for part in content)


def key_of(asked: Asked) -> str:
    """The key that a request brought."""
    headers = asked.headers
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    return headers.get("x-api-key") or headers.get("x-goog-api-key") or bearer


def _echo(name: str, asked: Asked, served: str) -> tuple[int, bytes]:
    """The key said back, in an error or in an answer, also escaped as JSON may."""
    key = key_of(asked)
    escaped = "".join(f"\\u{ord(c):04x}" for c in key)
    if name == "echo-ok":
        good = json.dumps(shape(asked.api, f"your key is {key} or ESCAPED", f"{served} {key}"))
        return 200, good.replace("ESCAPED", escaped).encode()
    said = f'{{"error": {{"message": "wrong key {key}, {escaped}", "code": "{key}"}}}}'
    return (401 if name == "echo-401" else 500), said.encode()


def _error(message: str, code: str = "error") -> bytes:
    return json.dumps({"error": {"message": message, "code": code, "type": code}}).encode()


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    line = await reader.readline()
    if not line:
        return None
    path = line.split()[1].decode()
    headers = {}
    while (line := await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    data = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(path, headers, json.loads(data) if data else {})


async def _write(writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: bytes) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + body)
    await writer.drain()
