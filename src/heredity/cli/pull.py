"""`heredity pull`: download foundation models into the store."""

from __future__ import annotations

import click

from heredity.cli import Name, Verb, open_store


@click.command("pull", cls=Verb, example="heredity pull smollm2-135m-instruct")
@click.argument("refs", metavar="REF...", type=Name(), nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Show engine, memory and licence, and fetch no weights.")
def command(refs: tuple[str, ...], dry_run: bool) -> None:
    """Download a foundation model into the store.

    REF is a name of the catalogue (heredity models --catalog), hf:ORG/REPO, a .gguf file, or a folder with
    safetensors. Before any weights are fetched, heredity shows which engine will answer, in how much memory,
    and under which licence. An interrupted download resumes. Files that differ from the pinned or recorded
    hashes are refused; NAME@REVISION takes another revision. A target that needs no download
    (remote:openai:MODEL, url:ADDRESS) is only recorded.
    """
    from heredity.cli import _pulling
    from heredity.core import terminal

    store = open_store()
    for ref in refs:
        if dry_run:
            _pulling.show_preview(store.preview(ref))
            continue
        model = _pulling.pull(store, ref).record
        terminal.out().print(terminal.cell(f"{model.name}  {model.id}"), soft_wrap=True)
