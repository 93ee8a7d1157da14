"""The examples of a training as tokens: those that fit, and which were too long.

Promises: nothing is cropped: an example that is too long is left out and counted.
Leaves to others: reading data (chat.py), and a conversation's tokens (engines/chat/documents.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from heredity.core.errors import UsageError
from heredity.core.records import Message
from heredity.engines.chat.documents import Document as Document
from heredity.engines.chat.documents import DocumentEncoder
from heredity.train.data.chat import Dialogue


class TokenizedExample(NamedTuple):
    """One example of the data: a document, and one with a worse answer, where there is one."""

    document: Document
    rejected: Document | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.document.tokens) + (len(self.rejected.tokens) if self.rejected else 0)


class Prepared(NamedTuple):
    """Examples that fit, and where those are from that do not."""

    examples: tuple[TokenizedExample, ...]
    too_long: tuple[str, ...]


class ConversationEncoder(DocumentEncoder):
    """Tokenizes the examples of a training."""

    def prepare(self, dialogues: Iterable[Dialogue], max_tokens: int) -> Prepared:
        """Every example of at most `max_tokens`. Raises UsageError where none is left."""
        examples, too_long = [], []
        for dialogue in dialogues:
            example = self.example(dialogue)
            if max(len(document.tokens) for document in example if document is not None) > max_tokens:
                too_long.append(dialogue.where)
            else:
                examples.append(example)
        if not examples:
            raise UsageError(
                f"Every example is longer than {max_tokens} tokens, and none is cropped. Raise max_tokens.",
                code="examples-too-long",
            )
        return Prepared(tuple(examples), tuple(too_long))

    def example(self, dialogue: Dialogue) -> TokenizedExample:
        """The document of a conversation, and of its rejected answer."""
        rejected = None
        if dialogue.rejected is not None:
            worse = (*dialogue.messages[:-1], Message("assistant", dialogue.rejected))
            rejected = self.document(worse, dialogue.begun)
        return TokenizedExample(self.document(dialogue.messages, dialogue.begun), rejected)
