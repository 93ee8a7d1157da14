"""The HTTP API of a vLLM server: completions, health and models.

Promises: the body of a request holds every sampling parameter, whatever the defaults of the server. A
redirect is not followed. The key appears in no error.
Leaves to others: the prompt (engine.py) and the process of the server (server.py).
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable, Mapping
from typing import NamedTuple

import httpx
import truststore

from heredity.core.errors import ContextOverflow, EngineFailure, Unavailable
from heredity.engines._server_events import EventReader

_OTHER_SHAPE = (ValueError, KeyError, IndexError, TypeError)
_CONNECT_SECONDS, _SHORT_SECONDS = 10.0, 15.0
# Of these vLLM takes other defaults from generation_config.json; a draw is by temperature and top_p alone.
NEUTRAL = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# vLLM 0.32 has several sentences for what does not fit; where max_tokens alone is more than the context, the
# second: before it has read the prompt.
_TOO_LONG = re.compile(r"context length|max_model_len|maximum model length")


class CompletionRefused(Exception):
    """The server answered, and not with an answer; the message says with what."""

    def __init__(self, message: str, code: str = EngineFailure.code) -> None:
        super().__init__(message)
        self.code = code


class CompletionLost(Exception):
    """No whole answer came back."""


class VllmCompletion(NamedTuple):
    """The continuation of a prompt; `why` is vLLM's word for its end."""

    text: str
    why: str
    n_prompt_tokens: int
    n_tokens: int


class Completions:
    """A server's address, with or without "/v1" at its end."""

    def __init__(self, base_url: str, key: str, width: int, seconds: float) -> None:
        self.base_url = base_url.rstrip("/")
        self._root = self.base_url.removesuffix("/v1")
        is_here = httpx.URL(self._root).host in ("127.0.0.1", "localhost", "::1")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(seconds, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=width + 1, max_keepalive_connections=width + 1),
            trust_env=not is_here,  # no proxy stands before this machine
            verify=truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    def version(self) -> str:
        """vLLM's version, "?" where the server does not tell it."""
        try:
            found = self._client.get(f"{self._root}/version", timeout=_SHORT_SECONDS).json()
            return str(found["version"])[:40]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return "?"

    def serves(self) -> list[str]:
        """Return the names of the served models. Raises Unavailable with the reason if they are unknown."""
        url = f"{self._root}/v1/models"
        try:
            response = self._client.get(url, timeout=_SHORT_SECONDS)
        except httpx.HTTPError as error:
            raise Unavailable(f"No server answers at {self.base_url} ({type(error).__name__}).") from None
        if response.status_code == 401:
            raise Unavailable(
                f"The server at {self.base_url} wants a key. Set it: export VLLM_API_KEY=...",
                code="key-unset",
            )
        try:
            return [str(model["id"]) for model in response.raise_for_status().json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            status = f"HTTP {response.status_code}"
            raise Unavailable(f"The server at {url} is not a vLLM server: {status}.") from None

    def is_well(self) -> bool:
        """Whether the server says that it can answer."""
        try:
            return self._client.get(f"{self._root}/health", timeout=_SHORT_SECONDS).status_code == 200
        except httpx.HTTPError:
            return False

    def go_on(self, body: Mapping[str, object]) -> VllmCompletion:
        """Return the continuation of a body's prompt. Raises CompletionRefused or CompletionLost."""
        try:
            response = self._client.post(f"{self._root}/v1/completions", json={**NEUTRAL, **body})
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: closed by another thread
            raise CompletionLost(f"{type(error).__name__}: {error}") from None
        if response.status_code != 200:
            raise _refused(response)
        try:
            found = response.json()
            choice, usage = found["choices"][0], found["usage"]
            return VllmCompletion(
                str(choice["text"]),
                str(choice["finish_reason"]),
                int(usage["prompt_tokens"]),
                int(usage.get("completion_tokens") or 0),
            )
        except _OTHER_SHAPE as error:
            raise _other_shape(error) from None

    def stream(self, body: Mapping[str, object], hear: Callable[[str], bool]) -> VllmCompletion:
        """Do the same as `go_on` and pass the text on as it comes.

        hear: takes the next part, and returns False to end the answer, whose reason is then "length".
        """
        asked = {**NEUTRAL, **body, "stream": True, "stream_options": {"include_usage": True}}
        growing, reader = _Growing(), EventReader()
        try:
            with self._client.stream("POST", f"{self._root}/v1/completions", json=asked) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refused(response)
                for data in (each for part in response.iter_bytes() for each in reader.feed(part)):
                    if data == b"[DONE]":
                        return growing.completion()
                    if not hear(growing.feed(data)):
                        return growing.completion()._replace(why="length")
        except (httpx.HTTPError, RuntimeError) as error:
            raise CompletionLost(f"{type(error).__name__}: {error}") from None
        raise CompletionLost("the stream ended without its end marker")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class _Growing:
    """A completion that arrives in parts."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._why = "no reason"
        self._n_prompt_tokens, self._n_tokens = 0, 0

    def feed(self, data: bytes) -> str:
        """Receive the data of an event; return the text that the answer grows by."""
        try:
            chunk = json.loads(data)
            if error := chunk.get("error"):
                raise CompletionRefused(f"vLLM ended the stream: {_short(str(error.get('message', error)))}")
            if usage := chunk.get("usage"):
                self._n_prompt_tokens = int(usage["prompt_tokens"])
                self._n_tokens = int(usage.get("completion_tokens") or 0)
            if not chunk["choices"]:
                return ""
            choice = chunk["choices"][0]
            self._why = str(choice.get("finish_reason") or self._why)
            self._texts.append(str(choice["text"]))
            return self._texts[-1]
        except (*_OTHER_SHAPE, AttributeError) as error:
            raise _other_shape(error) from None

    def completion(self) -> VllmCompletion:
        """Return the completion so far; one that was ended early has about a token in each part."""
        n_tokens = self._n_tokens or len(self._texts)
        return VllmCompletion("".join(self._texts), self._why, self._n_prompt_tokens, n_tokens)


def _other_shape(error: Exception) -> CompletionRefused:
    return CompletionRefused(f"an answer of another shape than vLLM's ({type(error).__name__})")


def _short(message: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in message).split())[:300]


def _refused(response: httpx.Response) -> CompletionRefused:
    """A refusal in one line; vLLM has no code for a prompt that is too long, only words."""
    try:
        found = response.json()
        error = found.get("error", found)
        message = str(error.get("message", error))
    except (ValueError, AttributeError):
        message = response.text
    plain = _short(message)
    if _TOO_LONG.search(plain):
        return CompletionRefused(f"context overflow: {plain}", ContextOverflow.code)
    return CompletionRefused(f"HTTP {response.status_code}: {plain}")
