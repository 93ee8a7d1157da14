"""A conversation as tokens, and which of them are learned: what the assistant says, and where it stops.

Promises: prompt and answer meet at the same token as when the model is asked; the token that ends an answer
is learned.
Leaves to others: examples and their length (train/data/chat.py), and the template (codec.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from heredity.core.records import Message, Request
from heredity.engines.chat.codec import ChatCodec


class Document(NamedTuple):
    """Tokens, and for each whether it is learned (from those before it)."""

    tokens: tuple[int, ...]
    is_learned: tuple[bool, ...]

    @property
    def n_learned(self) -> int:
        return sum(self.is_learned[1:])


class DocumentEncoder:
    """Tokenizes conversations as a model reads them."""

    def __init__(self, folder: Path) -> None:
        self.chat = ChatCodec(folder)
        self._stops = self.chat.stops(folder)
        self._end = self.chat.answer_end(folder)

    def document(self, messages: Sequence[Message], begun: str = "", is_finished: bool = True) -> Document:
        """Encode a conversation. The assistant's answers and the tokens that end them are learned.

        Other messages are not learned, and neither is `begun`, the prefill of the last answer. is_finished:
        False leaves out the token that would end the last answer.
        """
        answers = [i for i, m in enumerate(messages) if m.role == "assistant" and m.content.strip()]
        pieces, rendered = self._pieces(messages, answers, begun)
        if pieces is None:  # this template says earlier turns otherwise: learn the last answer alone
            rendered = self._prompt(messages[: answers[-1]])
            pieces = [(rendered, False), (begun, False), (messages[answers[-1]].content, True)]
        tokens: list[int] = []
        is_learned: list[bool] = []
        for text, is_answer in filter(lambda piece: piece[0], pieces):
            ids = self.chat.continuation(text) if tokens else self.chat.encode(text)
            after_answer = bool(is_learned) and is_learned[-1]
            ends_answer = after_answer and ids[:1] and ids[0] in self._stops
            is_learned += [is_answer or (bool(ends_answer) and at == 0) for at in range(len(ids))]
            tokens += ids
        if not is_finished:
            return Document(tuple(tokens), tuple(is_learned))
        return Document((*tokens, self._end), (*is_learned, True))

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The tokens of a conversation up to its last answer, which is left out."""
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=len(messages))
        return tuple(self.chat.encode(self._prompt(messages[:last])))

    @property
    def end(self) -> int:
        """The token behind an answer: the template's, where that stops one, else the model's own."""
        return self._end

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._stops

    def _pieces(
        self, messages: Sequence[Message], answers: Sequence[int], begun: str
    ) -> tuple[list[tuple[str, bool]] | None, str]:
        rendered, pieces = "", []
        for i in answers:
            prompt = self._prompt(messages[:i])
            if not prompt.startswith(rendered):
                return None, ""
            start = self._opening + begun if begun and i == answers[-1] else ""
            answer = messages[i].content if start else self._opening + messages[i].content
            pieces += [(prompt[len(rendered) :], False), (start, False), (answer, True)]
            rendered = prompt + start + answer
        return pieces, rendered

    @property
    def _opening(self) -> str:
        return " " if self.chat.is_base else ""

    def _prompt(self, messages: Sequence[Message]) -> str:
        return self.chat.render(Request(0, tuple(messages)))
