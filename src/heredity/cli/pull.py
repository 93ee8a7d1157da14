"""`heredity pull`: download foundation models into the store."""

from __future__ import annotations

import click

from heredity.cli import Name, Verb, open_store


@click.command("pull", cls=Verb, example="heredity pull smollm2-135m-instruct")
@click.argument("refs", metavar="REF...", type=Name(), nargs=-1, required=True)
@click.option(
    "--from",
    "source",
    type=Name(),
    metavar="URL",
    help="Take models and their ancestors from this storage (push).",
)
@click.option("--dry-run", is_flag=True, help="Show engine, memory and licence, and fetch no weights.")
def command(refs: tuple[str, ...], source: str | None, dry_run: bool) -> None:
    """Download a foundation model into the store.

    REF is a name of the catalogue (heredity models --catalog), hf:ORG/REPO, a .gguf file, or a folder with
    safetensors. Before any weights are fetched, heredity shows which engine will answer, in how much memory,
    and under which licence. An interrupted download resumes. Files that differ from the pinned or recorded
    hashes are refused; NAME@REVISION takes another revision. A target that needs no download
    (remote:openai:MODEL, url:ADDRESS) is only recorded.

    With --from, REF is the name or id of a model that `heredity push` copied to a bucket or a shared folder.
    """
    from heredity.cli import _pulling
    from heredity.core import terminal
    from heredity.core.errors import UsageError

    store = open_store()
    if source is not None and dry_run:
        raise UsageError("--dry-run does not go with --from.")
    for ref in refs:
        if dry_run:
            _pulling.show_preview(store.preview(ref))
            continue
        grown = _pulling.pull(store, ref) if source is None else _pulling.pull_from(store, ref, source)
        model = grown.record
        terminal.out().print(terminal.cell(f"{model.name}  {model.id}"), soft_wrap=True)
