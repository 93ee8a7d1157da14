"""The invocation of an activated LoRA (aLoRA), as text and as tokens.

Promises: an adapter that its own data never wakes is not trained.
Leaves to others: the examples (train/data/activated.py), and what is changed (formats/activation.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core.errors import UsageError
from heredity.core.sanitize import plural

if TYPE_CHECKING:
    from heredity.train.data.chat import PreparedExamples


def invocation_tokens(folder: Path, text: str) -> tuple[int, ...]:
    """The tokens of an invocation, by the tokenizer of a folder. text: "" for that of its template.

    Raises UsageError if the template adds none, or the text has no token.
    """
    from heredity.engines.chat.codec import ChatCodec

    chat = ChatCodec(folder)
    if not (chosen := text or chat.generation_prompt):
        raise UsageError(
            "The chat template adds no text before an answer. Name the one that wakes the adapter, such as"
            " the end of the user's turn: --invocation '[/INST]'."
        )
    if not (tokens := chat.continuation(chosen)):
        raise UsageError(f"The invocation {chosen!r} has no token.")
    return tokens


def invocation_note(folder: Path, tokens: Sequence[int]) -> dict[str, str]:
    """The note of a record that names the invocation. folder: of the tokenizer."""
    from heredity.engines.chat.codec import ChatCodec

    text = ChatCodec(folder).decode(tuple(tokens))
    return {"invocation": f"{text!r}, {plural(len(tokens), 'token')}"}


def woken(
    prepared: PreparedExamples, invocation: Sequence[int], text: str
) -> tuple[PreparedExamples, dict[str, str]]:
    """The examples, one for each answer that the adapter learns, and a note on those that it does not.

    text: of the invocation. Raises UsageError if no answer has it before it.
    """
    from heredity.train.data.activated import activate

    found = activate(prepared.examples, invocation)
    if not found.examples:
        raise UsageError(
            f"No answer of {found.n_asleep:,} has the invocation {text[:80]!r} before it, so the adapter"
            " would learn nothing. Put it into the prompts, or name another with --invocation."
        )
    asleep = f"{plural(found.n_asleep, 'answer')} not learned: no invocation is before"
    return prepared._replace(examples=found.examples), {"asleep": asleep} if found.n_asleep else {}
