"""`heredity pull`: download foundation models into the store."""

from __future__ import annotations

import click

from heredity.cli import Name, Verb, open_store


@click.command("pull", cls=Verb, example="heredity pull smollm2-135m-instruct")
@click.argument("refs", metavar="REF...", type=Name(), nargs=-1, required=True)
def command(refs: tuple[str, ...]) -> None:
    """Download a foundation model into the store.

    REF is a name of the catalogue (heredity models --catalog), hf:ORG/REPO, a .gguf file, or a folder with
    safetensors. An interrupted download resumes. Files that differ from the pinned hashes are refused. A
    target that needs no download (remote:openai:MODEL, url:ADDRESS) is only recorded.
    """
    from heredity.cli import _pulling
    from heredity.core import terminal

    store = open_store()
    for ref in refs:
        model = _pulling.pull(store, ref).record
        terminal.out().print(terminal.cell(f"{model.name}  {model.id}"), soft_wrap=True)
