"""How remote models are called, and how much a run may spend. Nothing here changes what a model is.

Promises: a budget is reserved before a request is sent, so that requests in flight cannot exceed it. A key is
read from the environment, appears in no text, and is sent only to its own host.
Leaves to others: sending (transport.py) and the JSON of the APIs (apis/).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from heredity.core.errors import BudgetSpent, Unavailable, UsageError
from heredity.engines.remote import services

KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "gemini": "GEMINI_API_KEY"}
HOMES = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
}
NO_KEY = "no-key"  # sent to a server of the user's own that needs no key
BYTES_PER_TOKEN = 3  # of a prompt, when a budget is reserved: nearly any text has fewer tokens
_WRITTEN = 1.25  # price of a prompt token that Anthropic writes into its cache, relative to the prompt price


@dataclass(frozen=True)
class Price:
    """Money per million tokens. `cached` None: the price of `prompt`.

    as_of: the date of a price of services.toml; "" for one that the user gave.
    """

    prompt: float
    answer: float
    cached: float | None = None
    as_of: str = ""

    def of(self, usage: Usage) -> float:
        """Return the cost of a usage."""
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
    is_estimated: bool = False  # the service did not report it


@dataclass
class Budget:
    """The most that all remote models of one run may use together. None: no bound.

    Before a request is sent, its upper bound is reserved: the estimated prompt and all of `max_tokens`. The
    reservation is settled at the numbers of the service. Only the thread that pulls requests uses it.
    """

    max_tokens: int | None = None
    max_cost: float | None = None
    tokens: int = 0
    cost: float = 0.0
    _held_tokens: int = field(default=0, repr=False)
    _held_cost: float = field(default=0.0, repr=False)

    def take(self, reserved: Usage, price: Price | None) -> bool:
        """Reserve a request; return False if it might exceed the budget."""
        n, cost = reserved.n_prompt + reserved.n_answer, price.of(reserved) if price else 0.0
        if self.max_tokens is not None and self.tokens + self._held_tokens + n > self.max_tokens:
            return False
        if self.max_cost is not None and self.cost + self._held_cost + cost > self.max_cost:
            return False
        self._held_tokens += n
        self._held_cost += cost
        return True

    def settle(self, reserved: Usage, used: Usage, price: Price | None) -> None:
        """Replace a reservation by the real usage."""
        self._held_tokens -= reserved.n_prompt + reserved.n_answer
        self.tokens += used.n_prompt + used.n_answer
        if price:
            self._held_cost -= price.of(reserved)
            self.cost += price.of(used)

    def spent(self) -> BudgetSpent:
        """Return the error that ends a run."""
        parts = []
        if self.max_tokens is not None:
            parts.append(f"{self.tokens:,} of {self.max_tokens:,} tokens are used")
        if self.max_cost is not None:
            parts.append(f"{self.cost:.4f} of {self.max_cost:.4f} is spent")
        return BudgetSpent(f"the budget of this run does not reach for the next request ({', '.join(parts)})")


@dataclass(frozen=True)
class Calls:
    """How remote models are called in one run.

    concurrency      the most requests in flight; fewer if the service refuses some
    connect_seconds  for a connection; stall_seconds without a byte; total_seconds for one attempt
    retries          further attempts after a transient failure; four times as many after a rate limit.
    patience_seconds for one request with all its attempts; a longer wait ends the run
    first_wait       seconds before the first retry; doubled each time, drawn between half of it and all
    keys             environment variable with the key, by model name; "" for all others
    prices           by model name; "" for all others. A known model has a price without them
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

    def price(self, model: str, api: str = "", base_url: str = "", served: str = "") -> Price | None:
        """Return the price of a model: the user's, or else that of services.toml.

        api, base_url, served: where the model is, and its name there.
        Raises UsageError if a bound on cost needs a price that is missing.
        """
        price = self.prices.get(model, self.prices.get("", _listed_price(api, base_url, served)))
        if price is None and self.budget.max_cost is not None:
            raise UsageError(f"A bound on cost needs the price of '{model}'. Give it: --price {model}=IN,OUT")
        return price

    def key(self, model: str, api: str, base_url: str) -> str:
        """Return the key for a model, from the environment. Raises Unavailable that names an unset variable.

        The vendor's own variable is used only for the vendor's own address. A key is sent to another host
        only if the user names it for that model.
        """
        named = self.keys.get(model, self.keys.get(""))
        variable = named or (KEYS[api] if base_url == HOMES[api] else services.variable_of(base_url))
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
                f"{variable} does not hold a key: it has characters that a header cannot carry."
            )
        return key


def _listed_price(api: str, base_url: str, served: str) -> Price | None:
    known = services.find(api, "" if base_url == HOMES.get(api) else base_url, served)
    if known is None or known.price is None:
        return None
    prompt, answer, *cached = known.price
    as_of = known.as_of.isoformat() if known.as_of else ""
    return Price(prompt, answer, cached[0] if cached else None, as_of)
