"""Streaming callbacks: forwards parts of an answer with keys masked.

Promises: no part holds a key, even if a service splits it. Nothing is heard after the end of an answer.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from urllib.parse import quote, quote_plus

from heredity.core.records import Request
from heredity.engines import Listener, n_started

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventReader:
    """Splits a stream of bytes into the data of its events. Comments and other fields are skipped."""

    def __init__(self) -> None:
        self._line: list[bytes] = []  # parts of a line that has not ended
        self._is_held = False  # a carriage return, which may be half of a line's end
        self._data: list[bytes] = []

    def feed(self, more: bytes) -> list[bytes]:
        """Receive the next bytes; return the data of the events that are complete with them."""
        text = b"\r" * self._is_held + more
        self._is_held = text.endswith(b"\r")
        first, *others = _LINE_END.split(text[: len(text) - self._is_held])
        self._line.append(first)
        if not others:
            return []
        *lines, rest = b"".join(self._line), *others
        self._line = [rest]
        return [data for line in lines if (data := self._end_line(line)) is not None]

    def _end_line(self, line: bytes) -> bytes | None:
        """Take a line; return the data of the event that it ends."""
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        data, self._data = self._data, []
        return b"\n".join(data) if data else None


_MASK = "[key]"


class KeyMask:
    """Removes keys from texts, their encoded spellings included."""

    def __init__(self, *keys: str) -> None:
        forms = set[str]().union(*map(_spellings, keys))
        self._forms = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without the keys."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, _MASK)
        return text

    def n_started(self, text: str) -> int:
        """Return how many characters at the end of a text may be the beginning of a key."""
        return max((n_started(text, form) for form in self._forms), default=0)


def _spellings(key: str) -> set[str]:
    """The key, its base64, its JSON and its URL spelling: forms that an echo may have."""
    encoded = base64.b64encode(key.encode()).decode()
    forms = {key, json.dumps(key)[1:-1], quote(key, safe=""), quote_plus(key), encoded, encoded.rstrip("=")}
    return forms | {form.replace("/", "\\/") for form in forms}


class StreamedAnswer:
    """The parts of an answer, passed to its listener with the keys masked. listener None: nobody listens."""

    def __init__(self, request: Request, listener: Listener | None, mask: KeyMask) -> None:
        self._key, self._listener, self._mask = request.key, listener, mask
        self._held = ""  # what may be the beginning of a key
        self._heard: list[str] = []
        self._is_over, self._lock = False, threading.Lock()

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._heard)

    @property
    def is_started(self) -> bool:
        """Whether any of it came: another attempt would begin again."""
        return bool(self._heard or self._held)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self._is_over and (self._listener is None or self._listener.is_wanted(self._key))

    @property
    def is_asked_for(self) -> bool:
        """Whether the answer is wanted in parts."""
        return self._listener is not None and self._listener.is_heard(self._key)

    def hear(self, more: str) -> None:
        """Pass on the text that the answer grows by."""
        text = self._mask(self._held + more)
        n_held = self._mask.n_started(text)
        self._held = text[len(text) - n_held :]
        self._pass_on(text[: len(text) - n_held])

    def finish(self, text: str) -> None:
        """Pass on the rest of the answer, which is `text` as a whole."""
        self._pass_on(text[len(self.text) :])

    def end(self) -> None:
        """Pass on nothing more: the reply is given."""
        with self._lock:
            self._is_over = True

    def _pass_on(self, text: str) -> None:
        with self._lock:
            if text and not self._is_over:
                self._heard.append(text)
                if self._listener is not None and self._listener.is_heard(self._key):
                    self._listener.hear(self._key, text)
