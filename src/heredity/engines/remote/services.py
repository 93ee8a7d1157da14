"""The models behind APIs that are known by name, and how they are called: keys, prices and budgets.

Promises: a name stands for one reference "remote:...", so that both are the same model. Each price has the
date and the page of its source. A budget is reserved before a request is sent, so that requests in flight
cannot exceed it. A key is read from the environment, appears in no text, and is sent only to its own host.
Nothing here changes what a model is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from heredity.core import readers
from heredity.core.errors import BadArgument, BadInput, BudgetSpent, Unavailable, UsageError

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

    def cost_of(self, usage: Usage) -> float:
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
        n, cost = reserved.n_prompt + reserved.n_answer, price.cost_of(reserved) if price else 0.0
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
            self._held_cost -= price.cost_of(reserved)
            self.cost += price.cost_of(used)

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
        variable = named or (KEYS[api] if base_url == HOMES[api] else variable_of(base_url))
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
    known = find(api, "" if base_url == HOMES.get(api) else base_url, served)
    if known is None or known.price is None:
        return None
    prompt, answer, *cached = known.price
    as_of = known.as_of.isoformat() if known.as_of else ""
    return Price(prompt, answer, cached[0] if cached else None, as_of)


_PATH = Path(__file__).with_name("services.toml")
PREFIX = "remote:"
_Dollars = Annotated[float, msgspec.Meta(ge=0, lt=1e9)]
Prices = Annotated[tuple[_Dollars, ...], msgspec.Meta(min_length=2, max_length=3)]


class KnownModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model behind an API.

    model      its name there; base_url: "" for the API's own
    options    as behind the ? of a reference
    price      US dollars per million tokens: input, output, and cached input if that has a price of its own;
               None if it is not known
    as_of      the date of the price; source: the page or file that it is from
    context    the longest text in tokens
    variable   the environment variable with the key
    """

    name: str
    vendor: str
    api: str
    model: str
    price: Prices | None
    as_of: date | None
    source: str
    variable: str
    base_url: str = ""
    options: str = ""
    context: int = 0
    about: str = ""

    @property
    def reference(self) -> str:
        """The reference that the name stands for."""
        at = f"@{self.base_url}" if self.base_url else ""
        return f"{PREFIX}{self.api}:{self.model}{at}" + (f"?{self.options}" if self.options else "")

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other spellings: the version with a dash, as vendors write it."""
        dashed = self.name.replace(".", "-")
        return (dashed,) if dashed != self.name else ()


class _ServiceModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    model: str
    price: Prices
    options: str | None = None
    context: int | None = None
    about: str = ""


class _Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    vendor: str
    api: str
    variable: str
    source: str
    as_of: date
    context: int
    models: tuple[_ServiceModel, ...]
    base_url: str = ""
    options: str = ""

    def known(self, model: _ServiceModel) -> KnownModel:
        fields = msgspec.structs.asdict(self)
        del fields["models"]
        own = {key: value for key, value in msgspec.structs.asdict(model).items() if value is not None}
        return KnownModel(**(fields | own))


class UserModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model behind an API in the user's models.toml. The fields are those of KnownModel."""

    api: Literal["openai", "anthropic", "gemini"]
    model: Annotated[str, msgspec.Meta(pattern=r"^[^@?\s]+$")]
    base_url: Annotated[str, msgspec.Meta(pattern=r"^(https?://\S+)?$")] = ""
    variable: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_]*[A-Za-z0-9_]*$")] = ""
    options: str = ""
    price: Prices | None = None
    as_of: date | None = None
    context: int = 0
    about: str = ""

    def __post_init__(self) -> None:
        if self.variable and not self.base_url:
            raise BadArgument(
                "`variable` needs a `base_url`; for the vendor's own address use --key-env", key="variable"
            )

    def known(self, name: str) -> KnownModel:
        """The entry as one of heredity's own."""
        fields = msgspec.structs.asdict(self) | {"base_url": self.base_url.rstrip("/")}
        return KnownModel(name=name, vendor="models.toml", source="models.toml", **fields)


class _Services(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    service: tuple[_Service, ...]


@cache
def known_models() -> dict[str, KnownModel]:
    """Name -> model, in the order of the files."""
    try:
        services = msgspec.toml.decode(_PATH.read_bytes(), type=_Services).service
    except msgspec.DecodeError as error:
        raise BadInput(_PATH.name, str(error)) from error
    known = {model.name: service.known(model) for service in services for model in service.models}
    taken = {*known, *(alias for model in known.values() for alias in model.aliases)}
    own = readers.user_entries(UserModel, is_remote=True, taken=taken)
    return known | {name: model.known(name) for name, model in own}


def reference(name: str) -> str | None:
    """The reference that a name stands for; None for any other text."""
    models = known_models()
    if name in models:
        return models[name].reference
    return next((model.reference for model in models.values() if name in model.aliases), None)


def name_of(ref: str) -> str:
    """The name that stands for a reference; "" if none does."""
    return next((name for name, known in known_models().items() if known.reference == ref), "")


def variable_of(base_url: str) -> str:
    """The environment variable with the key of a vendor at this address; "" for any other address."""
    variables = (
        known.variable for known in known_models().values() if base_url and known.base_url == base_url
    )
    return next(variables, "")


def find(api: str, base_url: str, model: str) -> KnownModel | None:
    """The known model of this name at an address, whatever its options; "" is the API's own address."""
    for known in known_models().values():
        if (known.api, known.base_url, known.model) == (api, base_url, model):
            return known
    return None
