"""`heredity rename`: give a model another name."""

from __future__ import annotations

import click

from heredity.cli import Name, Verb, open_store


@click.command("rename", cls=Verb, example="heredity rename smollm2-135m-instruct-lora tickets-lora")
@click.argument("model", type=Name())
@click.argument("new", metavar="NEW-NAME", type=Name())
def command(model: str, new: str) -> None:
    """Give a model another name.

    Its id and files stay the same. A study names its models by their ids, and shows the names that they had.
    """
    from heredity.core.terminal import note
    from heredity.lineage.removal import rename_model

    record = rename_model(open_store(), model, new)
    note(f"{record.id[:8]} is named {record.name}")
