"""How a far model is called, and what may be spent on it: nothing here changes what the model is.

Promises: a budget is reserved before a request leaves, so that it is not overrun by what is under way; a key
is read from the environment, is shown in no text, and goes to no other host than the one it is for.
Leaves to others: sending (_remote_line.py) and what an answer holds (_remote_openai.py and its like).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from heredity.core.errors import BudgetSpent, Unavailable, UsageError

KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "gemini": "GEMINI_API_KEY"}
HOMES = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
}
NO_KEY = "no-key"  # what is sent where a server of the user's own wants none; the SDKs refuse an empty one
_WRITTEN = 1.25  # what Anthropic asks for a prompt token that it puts into its cache, as a share of the price


@dataclass(frozen=True)
class Price:
    """Money for a million tokens, as the user gave it. `cached` None: as much as `prompt`."""

    prompt: float
    answer: float
    cached: float | None = None

    def of(self, usage: Usage) -> float:
        """What a use of tokens costs."""
        cached = self.prompt if self.cached is None else self.cached
        fresh = usage.n_prompt - usage.n_cached - usage.n_written
        prompt = fresh * self.prompt + usage.n_cached * cached + usage.n_written * self.prompt * _WRITTEN
        return (prompt + usage.n_answer * self.answer) / 1e6


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer: `n_prompt` counts all, `n_cached` and `n_written` are parts of it."""

    n_prompt: int = 0
    n_answer: int = 0
    n_cached: int = 0  # read from the service's prompt cache
    n_written: int = 0  # put into it
    is_estimated: bool = False  # the service did not say


@dataclass
class Budget:
    """What all remote models of one run may use together. None: no bound.

    A request is reserved at its worst (its prompt's estimate and all its `max_tokens`) before it leaves, and
    settled at what the service says. Only the thread that pulls requests touches it.
    """

    max_tokens: int | None = None
    max_cost: float | None = None
    tokens: int = 0
    cost: float = 0.0
    _held_tokens: int = field(default=0, repr=False)
    _held_cost: float = field(default=0.0, repr=False)

    def take(self, worst: Usage, price: Price | None) -> bool:
        """Reserve a request; False where it might not fit."""
        n, cost = worst.n_prompt + worst.n_answer, price.of(worst) if price else 0.0
        if self.max_tokens is not None and self.tokens + self._held_tokens + n > self.max_tokens:
            return False
        if self.max_cost is not None and self.cost + self._held_cost + cost > self.max_cost:
            return False
        self._held_tokens += n
        self._held_cost += cost
        return True

    def settle(self, worst: Usage, used: Usage, price: Price | None) -> None:
        """Put what was used in place of what was reserved."""
        self._held_tokens -= worst.n_prompt + worst.n_answer
        self.tokens += used.n_prompt + used.n_answer
        if price:
            self._held_cost -= price.of(worst)
            self.cost += price.of(used)

    def spent(self) -> BudgetSpent:
        """The error that ends a run."""
        parts = []
        if self.max_tokens is not None:
            parts.append(f"{self.tokens:,} of {self.max_tokens:,} tokens are used")
        if self.max_cost is not None:
            parts.append(f"{self.cost:.4f} of {self.max_cost:.4f} is spent")
        return BudgetSpent(f"the budget of this run does not reach for the next request ({', '.join(parts)})")


@dataclass(frozen=True)
class Calls:
    """How remote models are called in one run.

    concurrency      the most requests under way; fewer where the service says that it is too many
    connect_seconds  for a connection; stall_seconds without a byte; total_seconds for one attempt
    retries          further attempts after a failure that may pass; rate limits have four times as many
    patience_seconds for one request with all its attempts; a longer Retry-After ends the run
    first_wait       seconds before the first retry; doubled each time, drawn between half of it and all
    keys             variable of the environment that holds the key, by model name; "" for all others
    prices           by model name; "" for all others
    """

    concurrency: int = 64
    connect_seconds: float = 10.0
    stall_seconds: float = 120.0
    total_seconds: float = 300.0
    retries: int = 5
    patience_seconds: float = 600.0
    first_wait: float = 0.5
    keys: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)

    def price(self, model: str) -> Price | None:
        """The price of a model. Raises UsageError where a bound in money cannot be kept without one."""
        price = self.prices.get(model, self.prices.get(""))
        if price is None and self.budget.max_cost is not None:
            raise UsageError(
                f"A bound on cost needs the price of '{model}'. Give it: --price {model}=IN,OUT",
                code="price-missing",
            )
        return price

    def key(self, model: str, api: str, base_url: str) -> str:
        """The key for a model, from the environment. Raises Unavailable, saying which variable is not set.

        The vendor's own variable is read for the vendor's own address alone: a key is never sent to another
        host unless it is named for it.
        """
        named = self.keys.get(model, self.keys.get(""))
        variable = named or (KEYS[api] if base_url == HOMES[api] else "")
        if not variable:
            return NO_KEY
        key = os.environ.get(variable, "").strip()
        if not key:
            raise Unavailable(
                f"'{model}' needs a key, and {variable} is not set. Set it in the environment, or name"
                " another variable: --key-env NAME",
                code="key-unset",
            )
        if not (key.isascii() and key.isprintable()):
            raise Unavailable(
                f"What {variable} holds is no key: it has characters that no header can carry.",
                code="key-malformed",
            )
        return key
