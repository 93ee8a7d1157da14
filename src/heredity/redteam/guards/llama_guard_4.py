"""Llama Guard 4, asked about text: the replies of Llama Guard 3, in the turns of the newer Llama.

Source: llama.com/docs/model-cards-and-prompt-formats/llama-guard-4 and
github.com/meta-llama/PurpleLlama, Llama-Guard4/12B/MODEL_CARD.md.
"""

from __future__ import annotations

from heredity.redteam.guards import llama_guard_3
from heredity.redteam.guards.protocols import Choices, GuardReading, filled, filled_question

name = "llama_guard_4"
hub = "hf:meta-llama/Llama-Guard-4-12B"
licence = "Llama 4 Community License"
question = llama_guard_3.question
reports_refusal = False
n_tokens = llama_guard_3.n_tokens
choices: Choices | None = llama_guard_3.choices


def prompts(request: str, answer: str) -> tuple[str, ...]:
    """The text of the chat template for one request and its answer."""
    return (filled(__file__, request, answer),)


def question_prompts(request: str) -> tuple[str, ...]:
    """The text of the chat template for a question: the role `User` in place of `Agent`."""
    return (filled_question(__file__, request),)


def read_question(reply: str) -> GuardReading | None:
    """As `read`."""
    return llama_guard_3.read(reply)


def read(reply: str) -> GuardReading | None:
    """The word, and the codes with their names."""
    return llama_guard_3.read(reply)
