"""The socket that `heredity serve` and `heredity view` listen at.

Promises: an address that is taken is refused before anything is loaded.
Leaves to others: the pages and answers (view/, deploy/serve/).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket


def check_installed(reason: str) -> None:
    """Raise Unavailable if a package of a server is missing. reason: begins the message."""
    from heredity.core.errors import Unavailable, how_to_install

    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            raise Unavailable(f"{reason} {name}. {how_to_install('serve')}")


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound to the address but does not listen yet. Raises UsageError."""
    import socket

    from heredity.core.errors import UsageError

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
