"""Examples of an activated LoRA (aLoRA): one for each answer, with the token from which on the adapter acts.

A model with the adapter answers a turn over the keys and values that the base computed for the turns before.
So an answer is learned behind turns that only the base has read, and a conversation of several answers
becomes as many examples. An answer without an invocation before it is not learned: the adapter is off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from heredity.engines.chat.documents import Document
from heredity.formats.activation import find_last
from heredity.train.data.chat import TokenizedExample


class ActivatedExamples(NamedTuple):
    """The examples, and the number of answers that have no invocation before them."""

    examples: tuple[TokenizedExample, ...]
    n_asleep: int


def activate(examples: Iterable[TokenizedExample], invocation: Sequence[int]) -> ActivatedExamples:
    """Cut conversations into examples of one answer each, woken by the last invocation before it."""
    tokenized_examples: list[TokenizedExample] = []
    n_asleep = 0
    for example in examples:
        tokens = example.document.tokens
        for first, end in _answers(example.document):
            start = find_last(tokens[:first], invocation)
            if start is None:
                n_asleep += 1
                continue
            is_learned = tuple(first <= at < end for at in range(end))
            tokenized_examples.append(TokenizedExample(Document(tokens[:end], is_learned), active_from=start))
    return ActivatedExamples(tuple(tokenized_examples), n_asleep)


def _answers(document: Document) -> Iterator[tuple[int, int]]:
    """Yield the first token of each answer, and the one behind its last."""
    first: int | None = None
    for at, is_learned in enumerate((*document.is_learned, False)):
        if is_learned and first is None:
            first = at
        if not is_learned and first is not None:
            yield first, at
            first = None
