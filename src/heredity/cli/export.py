"""`heredity export`: write a model for other software, and check the files against the model."""

from __future__ import annotations

from pathlib import Path

import click

from heredity.cli import Name, PathArgument, Verb, open_store


@click.command("export", cls=Verb, example="heredity export tickets-lora --to gguf handed-out/")
@click.argument("model", metavar="MODEL", type=Name())
@click.argument("folder", metavar="DIR", type=PathArgument())
@click.option("--to", "form", type=Name(), required=True, help="hf (safetensors) or gguf.")
@click.option("--study", type=PathArgument(), metavar="DIR", help="Study whose rates the model card quotes.")
def command(model: str, folder: Path, form: str, study: Path | None) -> None:
    """Export a model for other software, and check the files.

    The folder also gets a model card and a bill of materials of the whole lineage. The files are read back
    before they are released. The export fails if a reader computes other log-probabilities, renders a
    conversation differently, or uses other begin or end tokens.
    """
    from heredity.core import terminal
    from heredity.core.sanitize import plain
    from heredity.deploy import export

    store = open_store()
    done = export.export(store, store.get(model), form, folder, study)
    for parity in done.parities:
        result = parity.left_out or (
            f"agrees within {parity.largest:.2g} nats over {parity.n} tokens ({parity.tolerance:g} allowed)"
        )
        terminal.note(plain(f"{parity.reader} {result}"))
    if done.form:
        terminal.note(plain(done.form))
    terminal.write(plain(str(done.folder)))
