"""`heredity models`: list the store and the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from heredity.cli import Verb, open_store

if TYPE_CHECKING:
    from heredity.lineage.store import Store


@click.command("models", cls=Verb, example="heredity models --tree")
@click.option("--tree", "as_tree", is_flag=True, help="Draw the lineage, foundations first.")
@click.option(
    "--catalog", is_flag=True, help="List the models of the catalogue that are not in the store yet."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_tree: bool, catalog: bool, as_json: bool) -> None:
    """List the models in the store, or those that can be pulled."""
    from heredity.core.terminal import note

    store = open_store()
    for _, problem in store.damaged():
        note(f"warning: {problem}")
    if catalog:
        _show_catalog(store, as_json)
    elif as_json:
        from heredity.core.terminal import write_json

        write_json(store.models())
    elif as_tree:
        _show_tree(store)
    else:
        _show_models(store)


def _show_models(store: Store) -> None:
    from heredity.core.terminal import cell, note, out, size, table
    from heredity.train.data.chat import ANSWERS

    models = store.models()
    if not models:
        note(f"No model in {store.root} yet. See what can be pulled: heredity models --catalog")
        return
    answers = [next((size(f.bytes) for f in model.files if f.path == ANSWERS), "") for model in models]
    more = ["answers"] if any(answers) else []
    grid = table(
        "name", "id", "format", "size", "licence", *more,
        right=["size", *more], whole=["name", "id", "format"],
    )  # fmt: skip
    for model, kept in zip(models, answers, strict=True):
        total = size(sum(file.bytes for file in model.files))
        grid.add_row(
            cell(model.name, "bold"), cell(model.id[:8]), cell(model.format), total,
            cell(model.licence), *([kept] if more else []),
        )  # fmt: skip
    out().print(grid)


def _show_tree(store: Store) -> None:
    from heredity.core.sanitize import plain
    from heredity.core.terminal import write
    from heredity.lineage.graph import forest

    if models := store.models():
        write(plain(forest(models), lines=True))


def _show_catalog(store: Store, as_json: bool) -> None:
    from heredity.core.terminal import cell, out, size, table, write_json
    from heredity.lineage import catalog

    held = {model.name for model in store.models()}
    missing = {name: entry for name, entry in catalog.catalogue().items() if name not in held}
    if as_json:
        write_json(missing)
        return
    grid = table("name", "size", "licence", "note", right=["size"], whole=["name"])
    for name, entry in missing.items():
        grid.add_row(cell(name, "bold"), size(entry.n_bytes), cell(entry.licence), cell(entry.about))
    out().print(grid)
