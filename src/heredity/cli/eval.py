"""`heredity eval`: the abilities of models, measured by prompting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heredity.cli import (
    Name,
    PathArgument,
    Verb,
    _remote,
    device_option,
    open_store,
    shown_start,
    shown_work,
)  # fmt: skip

if TYPE_CHECKING:
    from heredity.engines.remote.engine import Calls
    from heredity.evals.run import Evaluation


def _listed(
    ctx: click.Context,  # noqa: ARG001
    param: click.Parameter,  # noqa: ARG001
    value: tuple[str, ...],
) -> tuple[str, ...]:
    """Names from a repeated option, or separated by commas."""
    return tuple(name.strip() for each in value for name in each.split(",") if name.strip())


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"'{value}' must be whole numbers separated by commas, e.g. 0,3.", ctx, param
        ) from None


@click.command("eval", cls=Verb, example="heredity eval smollm2-135m-instruct --shots 0,3")
@click.argument("models", metavar="MODEL...", type=Name(), nargs=-1, required=True)
@click.option(
    "--tasks", type=Name(), multiple=True, callback=_listed, metavar="NAME,...",
    help="Tasks by name, or your own TOML files.  [default: all of heredity's]",
)  # fmt: skip
@click.option(
    "--shots", type=Name(), default="0", show_default=True, callback=_numbers, metavar="N,...",
    help="Numbers of few-shot examples.",
)  # fmt: skip
@click.option(
    "--no-chat-template", "plain", is_flag=True,
    help="Use no chat template. Base models never use one.",
)  # fmt: skip
@click.option(
    "--limit",
    type=int,
    metavar="N",
    help="Use N items of each task, always the same ones, for a quick check.",
)
@click.option(
    "--out", type=PathArgument(), metavar="DIR", help="Folder for the answers.  [default: runs/evals]"
)
@click.option("--retry-errors", is_flag=True, help="Ask again the items that failed with an error.")
@click.option(
    "--dry-run", is_flag=True, help="Show how many items are open, their time and price, and ask nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the grades as JSON.")
@device_option
@_remote.options
def command(
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    shots: tuple[int, ...],
    plain: bool,
    limit: int | None,
    out: Path | None,
    retry_errors: bool,
    dry_run: bool,
    as_json: bool,
    **calls: Any,
) -> None:
    """Evaluate models on small tasks, without any tuning.

    The tasks are translation, summarisation, code, arithmetic, classification, cloze and questions, in small
    sets that ship with heredity. The other models are compared with the first, item by item. Nothing that a
    model writes is executed.

    Answers are kept in a folder. The same command resumes a run that was stopped. With another model, task
    or number of examples, only new items are asked.
    """
    from heredity.cli import _grades, _pulling
    from heredity.core import terminal

    with shown_start():
        from heredity.evals.run import GRADES, Evaluation

    store = open_store()
    how = _remote.calls(**calls)
    grown = [store.get(name) for name in models]
    _remote.check(grown, how, needs_keys=not dry_run)
    for one in grown:
        if one.record.format != "scripted" and not dry_run:
            _pulling.ready(store, one)
    asked = Evaluation(
        grown, tasks, shots, is_plain=plain, limit=limit, store=store, out=out,
        engine_loader=_remote.loader(store, how, needs_text=False),
    )  # fmt: skip
    if dry_run:
        _show_open(asked, how, retry_errors)
        return
    with shown_work(store) as display:
        grades = asked.run(display, retry_errors=retry_errors)
    if as_json:
        terminal.write_json(grades)
        return
    _grades.show(grades, asked.folder / GRADES)


def _show_open(asked: Evaluation, how: Calls, retry_errors: bool) -> None:
    """Print what each model has still to answer, its time and its price."""
    from heredity.core.progress import time_words
    from heredity.core.terminal import cell, note, out, table

    grid = table("model", "items", "open", "time", right=["items", "open"])
    forecast = asked.forecast(retry_errors=retry_errors)
    for each in forecast:
        time = time_words(each.seconds) if each.n_open else ""
        grid.add_row(cell(each.grown.record.name), f"{each.n_items:,}", f"{each.n_open:,}", time)
    out().print(grid)
    _remote.show_uses([(each.grown, each.used) for each in forecast], how)
    note("Nothing was asked.")
