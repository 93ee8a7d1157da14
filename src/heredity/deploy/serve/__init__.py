"""The settings of a server of models, as one value, and its socket. The server itself is in app.py."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from heredity.core.errors import Unavailable, UsageError, how_to_install
from heredity.core.records import flag

LOOPBACK = ("127.0.0.1", "::1", "localhost")
BODY_SECONDS = 30.0  # from a request's first byte after its headers to its last
MAX_BODY = 4  # MiB


@dataclass(frozen=True)
class ServerSettings:
    """How a server is run. Everything that opens something is off by default.

    body_seconds: time for a body to arrive. Raises UsageError for settings that do not fit together.
    """

    _: KW_ONLY
    applications: Sequence[Path] = field(default=(), metadata=flag(
        "Application for every conversation; several serve each model in each, as APPLICATION@MODEL.",
        "FILE", "application", is_path=True,
    ))  # fmt: skip
    free_decoding: bool = field(default=False, metadata=flag(
        "Let callers override the application's decoding settings.",
    ))  # fmt: skip
    ignore_settings: bool = field(default=False, metadata=flag(
        "Ignore sampling settings that are held or not supported, instead of refusing them.",
    ))  # fmt: skip
    host: str = field(default=LOOPBACK[0], metadata=flag("Address to listen on."))
    port: int = field(default=8000, metadata=flag("Port; 0 chooses a free one.", bounds=(0, 65535)))
    api_key_env: Sequence[str] = field(default=(), metadata=flag(
        "Environment variable with a key; callers must send one of the keys.", "NAME",
    ))  # fmt: skip
    max_queue: int = field(default=256, metadata=flag(
        "Maximum queued requests per model; beyond it the server answers 429.", "N", bounds=(1, None),
    ))  # fmt: skip
    requests_per_minute: int | None = field(default=None, metadata=flag(
        "Requests per minute for each key, or each address without keys.  [default: no limit]", "N",
        bounds=(1, None),
    ))  # fmt: skip
    max_body: int = field(default=MAX_BODY, metadata=flag(
        "Largest body of a request, in MiB.", "MIB", bounds=(1, 1024),
    ))  # fmt: skip
    cors: Sequence[str] = field(default=(), metadata=flag(
        "Let the scripts of this web page ask, e.g. https://app.example.com.", "ORIGIN",
    ))  # fmt: skip
    load_adapters: bool = field(default=False, metadata=flag(
        "Let callers load, replace and unload adapters of the store while the server runs.",
    ))  # fmt: skip
    metrics: bool = field(default=False, metadata=flag("Serve counts for Prometheus at /metrics."))
    access_log: bool = field(default=False, metadata=flag(
        "Print a line of JSON per request, without its contents.",
    ))  # fmt: skip
    request_log: Path | None = field(default=None, metadata=flag(
        "Write each conversation and its answer to FILE. It holds what callers write.", "FILE", is_path=True,
    ))  # fmt: skip
    request_log_size: int = field(default=64, metadata=flag(
        "Size at which FILE becomes FILE.1, in place of an older one.", "MIB", bounds=(1, None),
    ))  # fmt: skip
    body_seconds: float = BODY_SECONDS

    def __post_init__(self) -> None:
        """Refuse an open address without keys, and an origin that is not scheme://host:port."""
        for origin in self.cors:
            if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?", origin):
                raise UsageError(
                    f"--cors takes one origin, such as https://app.example.com, and not '{origin}'."
                )
        if not self.is_local and not self.api_key_env:
            raise UsageError(
                f"At {self.host} any machine could connect. Require a key from callers: --api-key-env NAME."
            )

    @property
    def is_local(self) -> bool:
        """Whether only requests are accepted whose Host header names a loopback address."""
        return self.host in LOOPBACK

    def keys(self) -> tuple[str, ...]:
        """Read the keys that callers may send from the environment. Raises UsageError."""
        keys = tuple(os.environ.get(name, "") for name in self.api_key_env)
        for name, key in zip(self.api_key_env, keys, strict=True):
            if not (key.isascii() and key.isprintable() and key == key.strip() and key):
                raise UsageError(f"The environment variable {name} holds no key of printable ASCII.")
        return keys


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound to the address but does not listen yet. Raises UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # TCP by name: otherwise asyncio does not set TCP_NODELAY, and answers wait for full packets.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        message = f"Cannot listen at {host}:{port}: {error.strerror}. Choose another --port."
        raise UsageError(message) from None
    return listener


def check_installed(reason: str) -> None:
    """Raise Unavailable if a package of a server is missing. reason: begins the message."""
    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            raise Unavailable(f"{reason} {name}. {how_to_install('serve')}")
