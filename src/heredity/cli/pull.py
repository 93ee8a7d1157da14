"""`heredity pull`: foundation models into the store."""

from __future__ import annotations

import click

from heredity.cli import Name, Verb, open_store


@click.command("pull", cls=Verb, example="heredity pull smollm2-135m-instruct")
@click.argument("refs", metavar="REF...", type=Name(), nargs=-1, required=True)
def command(refs: tuple[str, ...]) -> None:
    """Bring a foundation model into the store.

    REF is a name of the catalogue (heredity models --catalog), hf:ORG/REPO, a .gguf file, or a folder with
    safetensors. A download that was interrupted goes on where it stopped; bytes that are not the pinned ones
    are refused. A target that needs no download (remote:openai:MODEL, url:ADDRESS) is recorded as it is.
    """
    from heredity.cli import _pulling, _terminal

    store = open_store()
    for ref in refs:
        model = _pulling.pull(store, ref).record
        _terminal.out().print(_terminal.cell(f"{model.name}  {model.id}"), soft_wrap=True)
