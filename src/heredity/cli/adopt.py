"""`heredity adopt`: record a model that another tool made as the child of its parent."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import click

from heredity.cli import Name, Verb, open_store, shown_work
from heredity.core.records import Relation

if TYPE_CHECKING:
    from heredity.core.records import Model
    from heredity.lineage.store import Store
    from heredity.lineage.types import Grown


@click.command("adopt", cls=Verb, example="heredity adopt out/my-adapter --parent hf:org/base")
@click.argument("ref", metavar="PATH|hf:ORG/REPO|NAME", type=Name())
@click.option(
    "--parent", "parents", type=Name(), multiple=True, required=True, metavar="MODEL",
    help="The model that it was made from. Repeatable for a merge, and for a student's start and teacher.",
)  # fmt: skip
@click.option(
    "--kind", "made", type=click.Choice(get_args(Relation)),
    help="How it was made.  [default: decided by its files]",
)  # fmt: skip
@click.option("--name", type=Name(), help="Name of the child.  [default: that of the folder or repository]")
@click.option(
    "--declared", is_flag=True,
    help="Record the descent although the model's own files name another parent.",
)  # fmt: skip
def command(
    ref: str, parents: tuple[str, ...], made: Relation | None, name: str | None, declared: bool
) -> None:
    """Record a model that another tool made as the child of its parent.

    PATH is a folder with a PEFT adapter or with whole weights, as PEFT, TRL, unsloth and transformers write
    it, or a .gguf file. Leftovers of the training are left out. heredity compares the files with the parent
    and records the evidence: claimed, consistent or shown. It refuses a model that contradicts its parent.
    """
    from heredity.cli import _pulling, _recipes
    from heredity.core import terminal
    from heredity.core.sanitize import plain
    from heredity.lineage.adoption import adopt
    from heredity.lineage.catalog import facts

    store = open_store()
    given = [_parent(store, parent) for parent in parents]
    if name:
        _recipes.refuse_bad_name(name)
        _refuse_held(store, name)
    elif default := _default_name(ref):
        _refuse_taken(store, default)
    _pulling.show_before_adoption(store, ref, given[0])
    with shown_work(store, "checking the parent") as display:
        record = adopt(ref, given, store, made, name or "", declared, display).record
    for key, value in (*record.notes.items(), *facts(record)):
        terminal.note(plain(f"{key}: {value}"))
    if message := _recipes.not_given(name, record):
        terminal.note(plain(message))
    if any(each.name == record.name and each.id != record.id for each in store.models()):
        terminal.note(plain(f"Another model is named '{record.name}', too: use the id {record.id[:12]}."))
    terminal.out().print(terminal.cell(f"{record.name}  {record.id}"), soft_wrap=True)


def _parent(store: Store, ref: str) -> Grown:
    """A parent of the store. Raises Unavailable for one that must be pulled first, with the command."""
    from pathlib import Path

    from heredity.core.errors import Unavailable, UnknownName
    from heredity.lineage.references import is_elsewhere

    try:
        return store.get(ref)
    except UnknownName:
        if not is_elsewhere(ref, store):
            raise
    name = Path(ref.partition(":")[2].partition("@")[0] if ref.startswith("hf:") else ref).name
    raise Unavailable(
        f"The parent {ref} is not in this store yet. Get it with heredity pull {ref}, and give its name:"
        f" --parent {name.removesuffix('.gguf')}",
        code="model-not-pulled",
    )


def _default_name(ref: str) -> str:
    """The name of a child that is given as a folder or a .gguf file; "" for the hub and for stored models."""
    from pathlib import Path

    from heredity.lineage.references import is_there

    path = Path(ref)
    if ref.startswith("hf:") or not is_there(path):
        return ""
    return path.stem if path.suffix == ".gguf" else path.resolve().name


def _refuse_held(store: Store, name: str) -> None:
    """Raise UsageError if a name is that of another model, unless that was adopted: it may be this one."""
    from heredity.core.errors import Unavailable, UnknownName, UsageError

    try:
        held: Model = store.get(name).record
    except UnknownName:
        return
    except Unavailable:
        raise UsageError(f"'{name}' is a model of the catalogue. Choose another name.") from None
    if held.recipe.kind != "adopt":
        raise UsageError(f"'{name}' already names another model ({held.id[:12]}). Choose another name.")


def _refuse_taken(store: Store, name: str) -> None:
    """Raise UsageError if the name of the folder is that of a model that was not adopted."""
    from heredity.core.errors import UsageError

    for held in store.models():
        if held.name == name and held.recipe.kind != "adopt":
            raise UsageError(
                f"'{name}' already names another model ({held.id[:12]}, {held.recipe.kind}). Give the child"
                " another name with --name."
            )
