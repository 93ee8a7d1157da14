"""The options by which remote models are called: what `study` and `ask` share.

Promises: none of them is part of the plan or of a model's id; a key is never an option's value, only the name
of the variable that holds it.
Leaves to others: keeping to them (engines/remote.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from heredity.cli import Amount, Name

if TYPE_CHECKING:
    from heredity.engines.protocols import Engine
    from heredity.engines.remote.engine import Calls, Price
    from heredity.lineage.store import Store
    from heredity.lineage.types import Grown

_KEY = click.option(
    "--key-env", type=Name(), multiple=True, metavar="[REF=]NAME",
    help="Environment variable with a remote model's key.  [default: the vendor's own]",
)  # fmt: skip
_BOUNDS = (
    click.option(
        "--concurrency", type=click.IntRange(1, 1024), metavar="N",
        help="Requests to a remote model at once, at most.  [default: 64]",
    ),
    click.option(
        "--max-tokens-total", type=click.IntRange(1), metavar="N",
        help="Stop before this run's remote models use more.",
    ),
    click.option(
        "--max-cost", type=Amount(), metavar="X",
        help="Stop before they cost more; needs --price.",
    ),
    click.option(
        "--price", type=Name(), multiple=True, metavar="[REF=]IN,OUT[,CACHED]",
        help="What a million tokens of prompt and of answer cost.",
    ),
)  # fmt: skip


def key_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --key-env."""
    return _KEY(command)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add all of them."""
    for option in reversed((_KEY, *_BOUNDS)):
        command = option(command)
    return command


def calls(
    key_env: Sequence[str] = (),
    concurrency: int | None = None,
    max_tokens_total: int | None = None,
    max_cost: float | None = None,
    price: Sequence[str] = (),
) -> Calls:
    """The options as the engine takes them. Raises UsageError."""
    from heredity.engines.remote.engine import Budget, Calls

    more = {} if concurrency is None else {"concurrency": concurrency}
    return Calls(
        keys=dict(map(_key, key_env)),
        prices=dict(map(_price, price)),
        budget=Budget(max_tokens_total, max_cost),
        **more,
    )


def loader(store: Store, how: Calls, is_to_write: bool = True) -> Callable[[Grown], Engine]:
    """Loads a model's engine; a remote one is called in this way. is_to_write: see study.load_engine."""

    def load(grown: Grown) -> Engine:
        from heredity import engines
        from heredity.lineage.store import load_engine

        if grown.record.format == "remote" and engines.choose(grown.record) == "remote":
            from heredity.engines.remote import engine as remote

            ready = store.ready(grown)
            return remote.load(ready.record, ready.folder, calls=how)
        return load_engine(grown, store, is_to_write)

    return load


def check(models: Sequence[Any], how: Calls) -> None:
    """Raise before anything is asked where a remote model has no key or no price."""
    from heredity import engines

    for model in models:
        record = getattr(model, "record", None)
        if record is not None and record.format == "remote" and engines.choose(record) == "remote":
            settings = record.recipe.settings
            how.key(record.name, str(settings.get("api")), str(settings.get("base_url")))
            how.price(record.name)


def _key(entry: str) -> tuple[str, str]:
    import re

    from heredity.core.errors import UsageError

    ref, _, name = entry.rpartition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # it may be a key: it is not repeated
        raise UsageError("--key-env takes the name of an environment variable, never a key: --key-env NAME")
    return ref, name


def _price(entry: str) -> tuple[str, Price]:
    from heredity.core.errors import UsageError
    from heredity.engines.remote.engine import Price

    ref, _, numbers = entry.rpartition("=")
    try:
        values = [float(number) for number in numbers.split(",")]
        if not 2 <= len(values) <= 3 or not all(0 <= value < 1e9 for value in values):
            raise ValueError
    except ValueError:
        raise UsageError(f"--price {entry}: write IN,OUT or IN,OUT,CACHED for a million tokens.") from None
    return ref, Price(*values)
