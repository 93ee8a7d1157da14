"""An answer told while it grows: whole characters, and nothing that may yet turn out to be its end.

Promises: the pieces, end to end, are the answer; a piece never ends inside a character.
Leaves to others: when the answer is over (torch.py, serve.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_HALF = "\ufffd"  # what a decoder makes of a character of which bytes are missing


class Ends:
    """Texts that end an answer. What may be the beginning of one is held back until it is known."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.is_over = False

    def feed(self, more: str) -> str:
        """What of it can be told."""
        if self.is_over or not self._texts:
            return "" if self.is_over else more
        text = self._held + more
        # The one that is whole first, so that it does not matter in which pieces the text came.
        found = [(i + len(end), i) for end in self._texts if (i := text.find(end)) >= 0]
        if found:
            self.is_over, self._held = True, ""
            return text[: min(found)[1]]
        n_held = max((_overlap(text, end) for end in self._texts), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def rest(self) -> str:
        """What was held back, once nothing more comes."""
        found, self._held = self._held, ""
        return found


def _overlap(text: str, end: str) -> int:
    """Of how many characters a beginning of `end` stands behind `text`, less than all of it."""
    return next((n for n in range(min(len(text), len(end) - 1), 0, -1) if text.endswith(end[:n])), 0)


class Spoken:
    """A row's tokens as text, piece by piece. A piece is told from a few tokens before it, as most
    tokenizers write a token otherwise at the head of a text."""

    def __init__(self, decode: Callable[[list[int]], str], stop_text: str) -> None:
        self._decode, self._ends = decode, Ends([stop_text])
        self._low = self._high = 0  # tokens from `low` to before `high` are told, and are decoded again
        self.n_told = 0  # characters

    def grow(self, tokens: list[int]) -> str:
        """What can be told more of, by all tokens that are said. What is half a character waits."""
        before = self._decode(tokens[self._low : self._high])
        now = self._decode(tokens[self._low :])
        if len(now) <= len(before) or now.endswith(_HALF):
            return ""
        self._low, self._high = self._high, len(tokens)
        return self._tell(self._ends.feed(now[len(before) :]))

    def finish(self, text: str) -> str:
        """The rest of the answer, which is `text` as a whole."""
        return self._tell(text[self.n_told :])

    def _tell(self, more: str) -> str:
        self.n_told += len(more)
        return more
