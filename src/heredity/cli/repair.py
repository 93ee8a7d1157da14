"""`heredity repair`: give a child back what it lost of its parent's safety."""

from __future__ import annotations

from pathlib import Path

import click

from heredity.cli import Name, PathArgument, Verb, open_store


@click.command(
    "repair",
    cls=Verb,
    example="heredity repair tickets-lora --from smollm2 --application examples/support-desk.toml",
)
@click.argument("child", metavar="CHILD", type=Name())
@click.option(
    "--from", "parent", type=Name(), required=True, metavar="MODEL", help="The parent it is held to."
)
@click.option(
    "--application", type=PathArgument(), required=True, metavar="FILE", help="The layer held constant."
)
@click.option("--probes", type=Name(), multiple=True, default=["core", "failed_task"], metavar="NAME",
              help="As for a study; half is learned from.  [default: core, failed_task]")  # fmt: skip
@click.option("--held-out", type=Name(), multiple=True, default=["prefill"], metavar="ATTACK",
              help="Attacks that nothing is learned from.  [default: prefill]")  # fmt: skip
@click.option("--unaligned", type=Name(), metavar="MODEL",
              help="The parent without its safety: what tells them apart is added to the child.")  # fmt: skip
@click.option(
    "--margin", type=float, default=0.15, show_default=True, help="A difference that does not matter."
)
@click.option(
    "--twins", type=float, default=3.0, show_default=True, help="Benign examples a refusal, where one tunes."
)
@click.option("--judge", type=Name(), metavar="JUDGE", help="As for a study.  [default: rules]")
@click.option(
    "--out", type=PathArgument(), metavar="DIR", help="Where the studies lie.  [default: repair/CHILD]"
)
def command(
    child: str,
    parent: str,
    application: Path,
    probes: tuple[str, ...],
    held_out: tuple[str, ...],
    unaligned: str | None,
    margin: float,
    twins: float,
    judge: str | None,
    out: Path | None,
) -> int:
    """Give a child back what it lost of its parent's safety.

    Repairs are tried in the order of their cost: words in front of every conversation, weights moved back
    towards the parent, tuning on the parent's own answers. Each makes a recorded model, and is measured on
    behaviours and attacks that it was not made from. The first that is shown to be no worse than the parent,
    in breaches and in over-refusal, ends it. Exits 1 where none is. The same command goes on after a stop.
    """
    from heredity.application.spec import Application
    from heredity.cli import _terminal
    from heredity.cli._terminal import plain
    from heredity.core.progress import Display
    from heredity.experiments.repair import Setting, in_words, refuse_backwards, repair

    store = open_store()
    lost, whole = store.get(child), store.get(parent)
    ancestors = store.ancestors(lost.record)
    refuse_backwards(store, lost, whole)
    if whole.record.id not in {each.id for each in ancestors}:
        known = ", ".join(f"'{each.name}'" for each in ancestors) or "none"
        said = (
            f"'{parent}' is no ancestor of '{child}' (these are: {known}): it is held to that all the same."
        )
        _terminal.note(plain(said))
    with Display() as display:
        how = Setting(
            Application.load(application), probes, held_out, margin=margin, twins=twins, judge=judge,
            store=store, out=out or Path("repair") / lost.record.name, watch=display,
        )  # fmt: skip
        found = repair(lost, whole, how, store.get(unaligned) if unaligned else None)
    for line in in_words(found):
        _terminal.write(plain(line))
    return 0 if found.model else 1
