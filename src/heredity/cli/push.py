"""`heredity push`: copy models to a bucket, a server or a shared folder."""

from __future__ import annotations

import click

from heredity.cli import Name, Verb, open_store, shown_work


@click.command("push", cls=Verb, example="heredity push tickets-lora --to s3://team-models")
@click.argument("models", metavar="MODEL...", type=Name(), nargs=-1, required=True)
@click.option(
    "--to", "url", type=Name(), metavar="URL", required=True, help="s3://, gs://, az://, sftp:// or a folder."
)
def command(models: tuple[str, ...], url: str) -> None:
    """Copy models to a bucket or a shared folder.

    Their ancestors go with them, and `heredity pull --from` takes them from there. Models that are there
    already are not copied again. The protocol's package (s3fs, gcsfs, adlfs) reads the credentials from the
    environment. Each model's files are checked against its record first.
    """
    from heredity.core import terminal
    from heredity.core.terminal import note
    from heredity.recipes.pull.storage import Storage

    store = open_store()
    with shown_work(store) as display:
        pushed = Storage(url).push(store, models, display)
    for model in pushed:
        terminal.out().print(terminal.cell(f"{model.name}  {model.id}"), soft_wrap=True)
    if not pushed:
        note(f"Everything is in {url} already.")
