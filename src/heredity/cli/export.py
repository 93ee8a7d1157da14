"""`heredity export`: files that others load, checked against the model they came from."""

from __future__ import annotations

from pathlib import Path

import click

from heredity.cli import Name, PathArgument, Verb, open_store


@click.command("export", cls=Verb, example="heredity export tickets-lora --to gguf handed-out/")
@click.argument("model", metavar="MODEL", type=Name())
@click.argument("folder", metavar="DIR", type=PathArgument())
@click.option("--to", "form", type=Name(), required=True, help="hf (safetensors), or gguf")
@click.option(
    "--study", type=PathArgument(), metavar="DIR", help="A study whose rates the model card quotes."
)
def command(model: str, folder: Path, form: str, study: Path | None) -> None:
    """Write a model into files that others load, checked before.

    A model card and a bill of materials of its whole descent lie beside them. They are read back before
    anything is handed out: a reader that computes other log-probabilities, renders a conversation otherwise,
    or begins or ends a text with another token refuses the export.
    """
    from heredity.cli import _terminal
    from heredity.cli._terminal import plain
    from heredity.deploy import export

    store = open_store()
    done = export.export(store, store.get(model), form, folder, study)
    for parity in done.parities:
        said = parity.left_out or (
            f"agrees within {parity.largest:.2g} nats over {parity.n} tokens ({parity.tolerance:g} allowed)"
        )
        _terminal.note(plain(f"{parity.reader} {said}"))
    if done.form:
        _terminal.note(plain(done.form))
    _terminal.write(plain(str(done.folder)))
