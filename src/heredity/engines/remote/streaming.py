"""The beginning of an answer that arrives in parts.

Promises: a beginning that the server repeats is not heard.
Leaves to others: the events (_server_events.py), their JSON (apis/), and the listener (_heard.py).
"""

from __future__ import annotations


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
