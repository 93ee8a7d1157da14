"""`heredity pretrain`: train a base model from random weights, or continue from a base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from heredity.cli import Name, PathArgument, Verb, device_option, open_store, shown_work


class _Pretrain(Verb):
    """A verb whose flags are the recipe's settings, loaded when they are needed."""

    _has_settings = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self._has_settings:
            from heredity.cli import _recipes
            from heredity.recipes.pretrain.recipe import Pretrain

            # None keeps the file's value, or the recipe's default if the file has none.
            options = [each for each in _recipes.options(Pretrain) if each.name != "corpus"]
            for option in options:
                option.default = None
            self.params[3:3] = options
            self._has_settings = True
        return super().get_params(ctx)


@click.command("pretrain", cls=_Pretrain, example="heredity pretrain base.toml --size 10M --tokens 10000000")
@click.argument("recipe", metavar="RECIPE.toml", type=PathArgument())
@click.option(
    "--corpus", type=PathArgument(), metavar="DIR", help="Folder of the corpus; RECIPE.toml may name it."
)
@click.option(
    "--from",
    "base",
    type=Name(),
    metavar="BASE",
    help="Continue from this model, which becomes the parent. It sets size, shape and architecture.",
)
@click.option("--name", type=Name(), help="Name of the model.")
@device_option
def command(recipe: Path, corpus: Path | None, base: str | None, name: str | None, **given: Any) -> None:
    """Train a model on a corpus, from random weights or a base.

    RECIPE.toml may set every flag under the same name; flags override it. After a stop, even by kill -9, the
    same command resumes to the same bits. For many GPUs or machines: torchrun ... -m heredity pretrain
    RECIPE.toml; see docs/how-to/children.md.
    """
    from heredity.cli import _recipes
    from heredity.core import terminal
    from heredity.core.sanitize import plain
    from heredity.recipes.pretrain import recipe as pretrain

    settings = {key: value for key, value in given.items() if value is not None}
    beside: dict[str, object] = {
        key: value for key, value in (("corpus", corpus), ("name", name)) if value is not None
    }
    store = open_store()
    with shown_work(store, "preparing the training") as display:
        if base is not None:
            beside["base"] = store.whole(store.get(base))
        made = pretrain.read(recipe, settings | beside, display.training(f"pretrain {recipe.stem}"))
        if made.name:
            _recipes.refuse_taken(store, made.name, made, made.parents)
        grown = made.grow(store)
    if grown is None:  # of several processes, only the first reports
        return
    record = grown.record
    for key, value in record.notes.items():
        terminal.note(plain(f"{key}: {value}"))
    if unnamed := _recipes.not_given(made.name, record):
        terminal.note(plain(unnamed))
    rows = (grown.folder / "training.jsonl").read_bytes().splitlines()
    losses = [float(json.loads(row)["loss"]) for row in rows]
    terminal.note(f"loss, {losses[0]:.3g} to {losses[-1]:.3g}: {terminal.sparkline(losses)}")
    terminal.out().print(terminal.cell(f"{record.name}  {record.id}"), soft_wrap=True)
