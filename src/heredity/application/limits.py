"""The limits of a conversation beyond its turns: tokens and seconds, and those of a tool that runs.

Promises: a conversation ends before the next request once a limit is met. An answer is never cut by them.
Leaves to others: the turns (conversation.py), and the tokens of one answer (Decoding).
"""

from __future__ import annotations

import math
import time

import msgspec

from heredity.core.errors import BadArgument
from heredity.core.records import Limit, Record, Reply

TOOL_SECONDS = 30.0
RESULT_CHARACTERS = 16_000
CALLS_AT_ONCE = 8


class ConversationLimits(Record, frozen=True, omit_defaults=True):
    """The limits of one conversation; None: no limit.

    tokens   of all prompts and answers together, as each request counts its whole prompt again
    seconds  from the first request on. In a study many conversations share an engine and each waits for the
             others, so that this depends on the machine

    Of one call of a tool that runs: tool_seconds, by default 30, and result_characters, by default 16,000.
    calls_at_once: calls that run at once, of all conversations of a study; by default 8.
    """

    tokens: int | None = None
    seconds: float | None = None
    tool_seconds: float | None = None
    result_characters: int | None = None
    calls_at_once: int | None = None

    def __post_init__(self) -> None:
        for key in self.__struct_fields__:
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise BadArgument(f"limits.{key} must be above 0, not {value}", key=f"limits.{key}")
        for key in ("seconds", "tool_seconds"):  # 5 is 5.0, in a digest too
            if isinstance(value := getattr(self, key), int):
                msgspec.structs.force_setattr(self, key, float(value))

    @property
    def seconds_of_call(self) -> float:
        """The time for one call of a tool that runs."""
        return TOOL_SECONDS if self.tool_seconds is None else self.tool_seconds

    @property
    def characters_of_result(self) -> int:
        """The size of the largest result of a tool that runs."""
        return RESULT_CHARACTERS if self.result_characters is None else self.result_characters

    @property
    def most_calls(self) -> int:
        """The number of calls that run at once."""
        return CALLS_AT_ONCE if self.calls_at_once is None else self.calls_at_once


class LimitMeter:
    """Measures one conversation against its limits."""

    def __init__(self, limits: ConversationLimits | None) -> None:
        self._limits = ConversationLimits() if limits is None else limits
        self._n_tokens, self._started = 0, time.monotonic()

    def add(self, reply: Reply) -> None:
        """Count a reply with its prompt."""
        self._n_tokens += reply.n_prompt_tokens + reply.n_answer_tokens

    @property
    def met(self) -> Limit | None:
        """The limit that is met, tokens first; None for none."""
        limits = self._limits
        if limits.tokens is not None and self._n_tokens >= limits.tokens:
            return "tokens"
        if limits.seconds is not None:
            return "seconds" if time.monotonic() - self._started >= limits.seconds else None
        return None
