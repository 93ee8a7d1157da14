"""`heredity pretrain`: a base from random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from heredity.cli import Name, PathArgument, Verb, open_store


def _options() -> list[click.Option]:
    from heredity.cli import _settings
    from heredity.recipes.pretrain.recipe import Pretrain

    # None: what the file says stands, and the recipe's own default where it says nothing.
    found = [each for each in _settings.options(Pretrain) if each.name != "corpus"]
    for option in found:
        option.default = None
    return found


class _Pretrain(Verb):
    """The recipe's settings are the flags; they are there once help or the verb is asked for."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not getattr(self, "_has_settings", False):
            self.params[2:2] = _options()
            self._has_settings = True
        return super().get_params(ctx)


@click.command("pretrain", cls=_Pretrain, example="heredity pretrain base.toml --size 10M --tokens 10000000")
@click.argument("recipe", metavar="RECIPE.toml", type=PathArgument())
@click.option("--corpus", type=PathArgument(), metavar="DIR", help="A corpus; RECIPE.toml may name it.")
@click.option("--name", type=Name(), help="What the base is called.")
def command(recipe: Path, corpus: Path | None, name: str | None, **given: Any) -> None:
    """Train a new model from random weights on a corpus.

    Every flag may stand in RECIPE.toml under the same name, and a flag wins. Stopped, even by kill -9, the
    same command goes on to the same bits. On many GPUs or machines: torchrun ... -m heredity pretrain
    RECIPE.toml, see docs/how-to/pretrain-distributed.md.
    """
    from heredity.cli import _names, _terminal
    from heredity.cli._terminal import plain
    from heredity.core.progress import Display
    from heredity.recipes.pretrain import distributed
    from heredity.recipes.pretrain import recipe as pretrain
    from heredity.train import metrics

    said = {key: value for key, value in given.items() if value is not None}
    beside = {key: value for key, value in (("corpus", corpus), ("name", name)) if value is not None}
    store = open_store()
    with Display() as display:
        made = pretrain.read(recipe, said | beside, display.training(f"pretrain {recipe.stem}"))
        if made.name:
            _names.refuse_taken(store, made.name, made, [])
        grown = distributed.grow(made, store)
    if grown is None:  # one of several processes, and not the one that tells
        return
    record = grown.record
    for key, value in record.notes.items():
        _terminal.note(plain(f"{key}: {value}"))
    if unnamed := _names.not_given(made.name, record):
        _terminal.note(plain(unnamed))
    rows = (grown.folder / "training.jsonl").read_bytes().splitlines()
    losses = [float(json.loads(row)["loss"]) for row in rows]
    _terminal.note(f"loss, {losses[0]:.3g} to {losses[-1]:.3g}: {metrics.sparkline(losses)}")
    _terminal.out().print(_terminal.cell(f"{record.name}  {record.id}"), soft_wrap=True)
