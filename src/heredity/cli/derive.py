"""`heredity derive`: derive a child from one or more models with a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heredity.cli import Lister, Name, Verb, device_option, open_store, shown_work
from heredity.core import registry

if TYPE_CHECKING:
    from heredity.lineage.store import Store


class _Kinds(Lister):
    """One subcommand per recipe; its flags are the recipe's settings."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        from heredity.recipes import derivable

        return derivable()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        from heredity.cli import _recipes
        from heredity.recipes import ComputingRecipe, derivable_class

        recipe_class = derivable_class(cmd_name)
        settings = _recipes.options(recipe_class)
        if recipe_class.LEARNS_ANSWERS:
            data = next(option for option in settings if option.name == "data")
            data.required = False
            data.help = f"{data.help} Or give --answers."
            answers = click.Option(
                ["--answers"],
                type=Name(),
                metavar="MODEL",
                help="Learn the answers that this model keeps: those of the teacher of an `instruct` child.",
            )
            at = settings.index(data) + 1
            settings = [*settings[:at], answers, *settings[at:]]
        verb = Verb(
            cmd_name,
            help=(registry.load("recipes", cmd_name).__doc__ or "").strip(),
            callback=lambda **given: _derive(cmd_name, **given),
            params=[
                click.Argument(
                    ["parents"], type=Name(), nargs=-1, required=True, metavar=recipe_class.PARENTS
                ),
                *settings,
                click.Option(["--name"], type=Name(), help="Name of the child."),
            ],
            example=recipe_class.EXAMPLE or f"heredity derive {cmd_name} smollm2-135m-instruct",
        )
        return device_option(verb) if issubclass(recipe_class, ComputingRecipe) else verb


@click.command(
    "derive", cls=_Kinds, example="heredity derive lora smollm2-135m-instruct --data tickets.jsonl"
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Derive a child from one or more models.

    The store records its lineage. To resume training that was stopped, run the same command again.
    """
    if ctx.invoked_subcommand is None:
        from heredity.core.terminal import cell, out, table

        grid = table("recipe", "what it does", whole=["recipe"])
        for name in ctx.command.list_commands(ctx):  # type: ignore[attr-defined]
            purpose = (registry.load("recipes", name).__doc__ or "").strip().partition("\n")[0]
            package = f" ({there})" if (there := registry.outside("recipes", name)) else ""
            grid.add_row(cell(name, "bold"), cell(purpose + package))
        out().print(grid)


def _answers_of(store: Store, name: str) -> Path:
    """The file in which a model keeps its teacher's answers. Raises UsageError if it keeps none."""
    from heredity.core.errors import UsageError
    from heredity.train.data.chat import ANSWERS

    path = store.get(name).folder / ANSWERS
    if not path.is_file():
        raise UsageError(
            f"'{name}' keeps no answers of a teacher. The children of `heredity derive instruct` do; "
            "heredity models lists them."
        )
    return path


def _derive(kind: str, parents: tuple[str, ...], name: str | None, **given: Any) -> None:
    from heredity.cli import _recipes
    from heredity.core import terminal
    from heredity.core.errors import UsageError
    from heredity.core.sanitize import plain
    from heredity.recipes import DerivableRecipe, derivable_class

    store, recipe_class = open_store(), derivable_class(kind)
    if "answers" in given:
        answers = given.pop("answers")
        if (answers is None) == (given["data"] is None):
            raise click.UsageError("Give either '--data' or '--answers'.")
        given["data"] = given["data"] or _answers_of(store, answers)
    if recipe_class.PARENTS == DerivableRecipe.PARENTS and len(parents) != 1:
        raise UsageError(f"'{kind}' takes one parent, not {len(parents)}.")
    with shown_work(store, f"deriving {kind}") as display:
        watch = display.training(f"{kind} of {parents[0]}")
        recipe = _recipes.build(recipe_class, given, name=name or "", watch=watch, warn=terminal.warn)
        grown = [store.get(parent) for parent in parents]
        if name:
            _recipes.refuse_taken(store, name, recipe, grown)
        child = store.grow_once(recipe, grown)
    record = child.record
    for key, value in record.notes.items():
        terminal.note(plain(f"{key}: {value}"))
    if message := _recipes.not_given(name, record):
        terminal.note(plain(message))
    terminal.out().print(terminal.cell(f"{record.name}  {record.id}"), soft_wrap=True)
