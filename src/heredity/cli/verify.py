"""`heredity verify`: compare files in the store with their recorded hashes."""

from __future__ import annotations

import click

from heredity.cli import Name, Verb, open_store, shown_work


@click.command("verify", cls=Verb, example="heredity verify smollm2-135m-instruct")
@click.argument("models", metavar="[MODEL]...", type=Name(), nargs=-1)
def command(models: tuple[str, ...]) -> None:
    """Check that a model's files are the recorded ones.

    MODEL is a name or the start of an id; without it, every model of the store is checked. Exits 2 if a
    file is missing, changed or not in the record.
    """
    from heredity.core.errors import Damaged
    from heredity.core.sanitize import plain
    from heredity.core.terminal import write

    store = open_store()
    records = [store.get(name).record for name in models] or store.models()
    unreadable = [] if models else store.damaged()
    n_damaged = len(unreadable)
    for _, problem in unreadable:
        write(plain(f"damaged record: {problem}"))
    if not records and not unreadable:
        write(plain(f"No model in {store.root} yet."))
    for record in records:
        with shown_work(store):
            problems = store.verify(record)
        n_damaged += bool(problems)
        write(plain(f"{record.name}  {record.id[:12]}  {'damaged' if problems else 'whole'}"))
        for problem in problems:
            write(plain(f"  {problem}"))
    if n_damaged:
        raise Damaged(
            f"{n_damaged} of {len(records) + len(unreadable)} models are damaged. Pull or derive them again."
        )
