"""The HTTP API of a vLLM server: completions, health and models.

Promises: the body of a request holds every sampling parameter, whatever the defaults of the server. A
redirect is not followed. The key appears in no error.
Leaves to others: the prompt (engine.py) and the process of the server (server.py).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import NamedTuple

import httpx
import truststore

from heredity.core.errors import ContextOverflow, EngineFailure, Unavailable

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
            raise Unavailable(
                f"No server answers at {self.base_url} ({type(error).__name__}).", code="server-unreachable"
            ) from None
        if response.status_code == 401:
            raise Unavailable(
                f"The server at {self.base_url} wants a key. Set it: export VLLM_API_KEY=...",
                code="server-wants-key",
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
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise CompletionRefused(
                f"an answer of another shape than vLLM's ({type(error).__name__})"
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _refused(response: httpx.Response) -> CompletionRefused:
    """A refusal in one line; vLLM has no code for a prompt that is too long, only words."""
    try:
        found = response.json()
        error = found.get("error", found)
        message = str(error.get("message", error))
    except (ValueError, AttributeError):
        message = response.text
    plain = " ".join("".join(c if c.isprintable() else " " for c in message).split())[:300]
    if _TOO_LONG.search(plain):
        return CompletionRefused(f"context overflow: {plain}", ContextOverflow.code)
    return CompletionRefused(f"HTTP {response.status_code}: {plain}")
