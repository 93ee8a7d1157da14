"""A chat completion that arrives in parts: the chunks of a stream, joined to the answer that they make.

Promises: the parts joined are the answer. No part holds the key, even if a service splits it.
Leaves to others: the events (_server_events.py), sending them (transport.py), and reading the joined answer
(apis/openai.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from heredity.core.records import Request
from heredity.engines.protocols import Listener
from heredity.engines.remote.messages import JsonObject, MalformedAnswer, as_list, as_object

if TYPE_CHECKING:
    from heredity.engines.remote.http_client import KeyMask


class ChunkJoiner:
    """The chunks of one stream. prefill: the beginning that the server repeats; "" if it does not."""

    def __init__(self, prefill: str) -> None:
        self._prefill, self._unread = prefill, ""
        self._pieces: list[str] = []
        self._refusals: list[str] = []
        self._calls: dict[int, JsonObject] = {}
        self._reason: object = None
        self._rest: JsonObject = {}  # model, system_fingerprint, usage

    def feed(self, chunk: JsonObject) -> str:
        """Receive a chunk; return the text that the answer grows by. Raises MalformedAnswer."""
        self._rest |= {key: chunk[key] for key in ("model", "system_fingerprint", "usage") if chunk.get(key)}
        return "".join(map(self._feed_choice, as_list(chunk.get("choices") or [], "choices")))

    def _feed_choice(self, entry: object) -> str:
        choice = as_object(entry, "a choice")
        if choice.get("index") not in (None, 0):
            return ""
        self._reason = choice.get("finish_reason") or self._reason
        delta = as_object(choice.get("delta") or {}, "delta")
        for call in as_list(delta.get("tool_calls") or [], "tool_calls"):
            self._feed_call(as_object(call, "a tool call"))
        if isinstance(refusal := delta.get("refusal"), str):
            self._refusals.append(refusal)
        content = delta.get("content")
        if not isinstance(content, str) or not content:
            return ""
        self._pieces.append(content)
        return self._without_prefill(content)

    def _feed_call(self, call: JsonObject) -> None:
        index = call.get("index")
        found = self._calls.setdefault(index if isinstance(index, int) else len(self._calls), {})
        for key, value in as_object(call.get("function") or {}, "function").items():
            before = found.get(key)
            found[key] = before + value if isinstance(before, str) and isinstance(value, str) else value

    def _without_prefill(self, more: str) -> str:
        """The new text; nothing while all of it may be the repeated prefill."""
        if not self._prefill:
            return more
        self._unread += more
        if len(self._unread) < len(self._prefill) and self._prefill.startswith(self._unread):
            return ""
        found, self._prefill = self._unread.removeprefix(self._prefill), ""
        return found

    def answer(self) -> JsonObject:
        """Return the whole answer in the shape of one without a stream. Raises MalformedAnswer.

        A service names the reason of every end, so a stream without one was cut off.
        """
        if self._reason is None:
            raise MalformedAnswer("the stream ended without a finish_reason")
        message: JsonObject = {"content": "".join(self._pieces), "refusal": "".join(self._refusals) or None}
        message["tool_calls"] = [{"function": call} for _, call in sorted(self._calls.items())]
        return {**self._rest, "choices": [{"message": message, "finish_reason": self._reason}]}


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
