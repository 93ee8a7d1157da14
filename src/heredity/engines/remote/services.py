"""The models behind APIs that are known by name: services.toml and the user's models.toml, as typed entries.

Promises: a name stands for one reference "remote:...", so that both are the same model. Each price has the
date and the page of its source.
Leaves to others: the reference (recipes/targets/remote.py), keys and budgets (budget.py).
"""

from __future__ import annotations

from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from heredity.core import readers
from heredity.core.errors import BadArgument, BadInput

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
        return KnownModel(
            model.name,
            self.vendor,
            self.api,
            model.model,
            model.price,
            self.as_of,
            self.source,
            self.variable,
            self.base_url,
            self.options if model.options is None else model.options,
            self.context if model.context is None else model.context,
            model.about,
        )


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
        return KnownModel(
            name,
            "models.toml",
            self.api,
            self.model,
            self.price,
            self.as_of,
            "models.toml",
            self.variable,
            self.base_url.rstrip("/"),
            self.options,
            self.context,
            self.about,
        )


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
