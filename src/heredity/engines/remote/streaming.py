"""An answer that arrives in parts: what its listener hears of it.

Promises: a beginning that the server repeats is not heard. No part holds the key, even if a service splits
it.
Leaves to others: the events (_server_events.py), sending them (transport.py), and their JSON (apis/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from heredity.core.records import Request
from heredity.engines.protocols import Listener

if TYPE_CHECKING:
    from heredity.engines.remote.http_client import KeyMask


class PrefillRemover:
    """Removes a repeated prefill from an answer in parts. prefill: "" if the server repeats none."""

    def __init__(self, prefill: str) -> None:
        self._prefill, self._unread = prefill, ""

    def __call__(self, more: str) -> str:
        """Return the text that the answer grows by; nothing while all of it may be the prefill."""
        if not self._prefill:
            return more
        self._unread += more
        if len(self._unread) < len(self._prefill) and self._prefill.startswith(self._unread):
            return ""
        found, self._prefill = self._unread.removeprefix(self._prefill), ""
        return found


class HeardAnswer:
    """The parts of an answer that its listener has heard, with the key masked."""

    def __init__(self, request: Request, listener: Listener, mask: KeyMask) -> None:
        self._key, self._listener, self._mask = request.key, listener, mask
        self._held = ""  # what may be the beginning of the key
        self._heard: list[str] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._heard)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return self._listener.is_wanted(self._key)

    @property
    def is_asked_for(self) -> bool:
        """Whether the answer is wanted in parts."""
        return self._listener.is_heard(self._key)

    def hear(self, more: str) -> None:
        """Pass on the text that the answer grows by."""
        text = self._mask(self._held + more)
        n_held = self._mask.n_begun(text)
        self._held = text[len(text) - n_held :]
        self._pass_on(text[: len(text) - n_held])

    def finish(self, text: str) -> None:
        """Pass on the rest of the answer, which is `text` as a whole."""
        self._pass_on(text[len(self.text) :])

    def _pass_on(self, text: str) -> None:
        if text:
            self._heard.append(text)
            self._listener.hear(self._key, text)
