"""The options for calls to remote models: keys, concurrency, prices and budget.

Promises: none of them is part of a plan or of a model's id. An option never holds a key, only the name of the
environment variable that does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from heredity.cli import Amount, Name

if TYPE_CHECKING:
    from heredity.engines import Engine
    from heredity.engines.remote.services import Calls, Price, Usage
    from heredity.lineage.store import Store
    from heredity.lineage.types import Grown
    from heredity.study.plan import Plan

_KEY = click.option(
    "--key-env", type=Name(), multiple=True, metavar="[REF=]NAME",
    help="Environment variable with a remote model's key.  [default: the vendor's own]",
)  # fmt: skip
_BOUNDS = (
    click.option(
        "--concurrency", type=click.IntRange(1, 1024), metavar="N",
        help="Concurrent requests to a remote model.  [default: 64]",
    ),
    click.option(
        "--max-tokens-total", type=click.IntRange(1), metavar="N",
        help="Budget of tokens for this run's remote models; the run stops before it is exceeded.",
    ),
    click.option(
        "--max-cost", type=Amount(), metavar="X",
        help="Budget of money for this run; needs a price: the listed one of a known model, or --price.",
    ),
    click.option(
        "--price", type=Name(), multiple=True, metavar="[REF=]IN,OUT[,CACHED]",
        help="Price of a million input, output and cached input tokens.",
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
    key_env: Sequence[str] = (), concurrency: int | None = None, max_tokens_total: int | None = None,
    max_cost: float | None = None, price: Sequence[str] = (),
) -> Calls:  # fmt: skip
    """The options as the engine takes them. Raises UsageError."""
    from heredity.engines.remote.services import Budget, Calls

    more = {} if concurrency is None else {"concurrency": concurrency}
    return Calls(
        keys=dict(map(_key, key_env)),
        prices=dict(map(_price, price)),
        budget=Budget(max_tokens_total, max_cost),
        **more,
    )


def loader(
    store: Store, how: Calls, needs_text: bool = True, is_batched: bool = True
) -> Callable[[Grown], Engine]:
    """A loader of engines that calls remote models with these options.

    needs_text, is_batched: see lineage.store.load_engine.
    """

    def load(grown: Grown) -> Engine:
        from heredity import engines
        from heredity.lineage.store import load_engine, record_at_answer

        if grown.record.format == "remote" and engines.choose(grown.record) == "remote":
            from heredity.engines.remote import engine as remote

            ready = store.ready(grown)
            engine = remote.load(ready.record, ready.folder, calls=how)
            record_at_answer(engine, ready, store)
            return engine
        return load_engine(grown, store, needs_text, is_batched)

    return load


def check(models: Sequence[Grown], how: Calls, needs_keys: bool = True) -> None:
    """Raise before anything is asked if a remote model has no key or no price. A listed price is shown."""
    from heredity import engines
    from heredity.core.terminal import note
    from heredity.engines.remote import services

    for model in models:
        record = model.record
        if record.format == "remote" and engines.choose(record) == "remote":
            settings = record.recipe.settings
            api, base_url, served = (str(settings.get(key)) for key in ("api", "base_url", "model"))
            if needs_keys:
                how.key(record.name, api, base_url)
            price = how.price(record.name, api, base_url, served)
            if price is not None and price.as_of:
                name = services.name_of(record.name) or record.name
                note(
                    f"{name}: {price.prompt:g} dollars per million input tokens, {price.answer:g} per million"
                    f" output tokens, as of {price.as_of}. If that has changed: --price {name}=IN,OUT"
                )


def show_costs(plan: Plan, models: Sequence[Grown], how: Calls) -> None:
    """Show what a study costs at most, for each remote model with a price."""
    from heredity.study.forecast import expected_usage

    uses = []
    for model in models:
        options = model.record.recipe.settings.get("options") or {}
        uses.append((model, expected_usage(plan, int(options.get("think", 0)))))
    show_uses(uses, how)


def show_uses(uses: Sequence[tuple[Grown, Usage]], how: Calls) -> None:
    """Show what these tokens cost, for each remote model with a price, and what they cost together."""
    from heredity.core.terminal import note

    costs = []
    for model, used in uses:
        settings = model.record.recipe.settings
        if settings.get("engine") != "remote":
            continue
        api, base_url, served = (str(settings.get(key)) for key in ("api", "base_url", "model"))
        if (price := how.price(model.record.name, api, base_url, served)) is None:
            continue
        costs.append(price.cost_of(used))
        note(
            f"{served}: at most about {used.n_prompt:,} input and {used.n_answer:,} output tokens,"
            f" which cost {costs[-1]:,.2f}"
        )
    if len(costs) > 1:
        note(f"All {len(costs)} models: at most about {sum(costs):,.2f}")


def _key(entry: str) -> tuple[str, str]:
    import re

    from heredity.core.errors import UsageError

    ref, _, name = entry.rpartition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # it may be a key: it is not repeated
        raise UsageError("--key-env takes the name of an environment variable, never a key: --key-env NAME")
    return _spelt_out(ref), name


def _spelt_out(ref: str) -> str:
    """The reference that the name of a known model stands for; any other as it is."""
    from heredity.engines.remote import services

    return services.reference(ref) or ref


def _price(entry: str) -> tuple[str, Price]:
    from heredity.core.errors import UsageError
    from heredity.engines.remote.services import Price

    ref, _, numbers = entry.rpartition("=")
    try:
        values = [float(number) for number in numbers.split(",")]
        if not 2 <= len(values) <= 3 or not all(0 <= value < 1e9 for value in values):
            raise ValueError
    except ValueError:
        raise UsageError(f"--price {entry}: give IN,OUT or IN,OUT,CACHED per million tokens.") from None
    prompt, answer, *cached = values
    return _spelt_out(ref), Price(prompt, answer, cached[0] if cached else None)
