"""`heredity rm`: remove models from the store."""

from __future__ import annotations

from pathlib import Path

import click

from heredity.cli import Name, Verb, open_store


@click.command("rm", cls=Verb, example="heredity rm old-lora old-lora-merged")
@click.argument("models", metavar="MODEL...", type=Name(), nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove also what children or unfinished studies need.")
def command(models: tuple[str, ...], force: bool) -> None:
    """Remove models from the store.

    A model is named by its name, its alias, or the start of its id; so is one whose record is damaged. It is
    refused while another model descends from it, or while a study below the current folder has trials left to
    ask of it. Results of finished studies stay readable.
    """
    from heredity.core.errors import Refused
    from heredity.core.terminal import note, size
    from heredity.lineage.removal import find_stored, remove_models
    from heredity.study.folders import studies_that_need

    store = open_store()
    folders = [find_stored(store, name) for name in models]
    if not force and (needed := studies_that_need(Path(), {each.id for each in folders})):
        raise Refused(
            f"The study {needed[0].folder} is {needed[0].state} and has trials left to ask. Finish it, "
            "or give --force."
        )
    gone = remove_models(store, folders, is_forced=force)
    for each in gone.models:
        note(f"removed {each.name} {each.id[:8]}")
    note(f"{size(gone.n_bytes)} freed")
