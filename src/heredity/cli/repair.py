"""`heredity repair`: restore the safety that a child lost against its parent."""

from __future__ import annotations

from pathlib import Path

import click

from heredity.cli import Name, PathArgument, Verb, device_option, open_store, shown_start, shown_work


@click.command(
    "repair",
    cls=Verb,
    example="heredity repair tickets-lora --from smollm2-135m-instruct --application desk.toml",
)
@click.argument("child", metavar="CHILD", type=Name())
@click.option(
    "--from", "parent", type=Name(), required=True, metavar="MODEL", help="The parent to compare it with."
)
@click.option(
    "--application",
    type=PathArgument(),
    required=True,
    metavar="FILE",
    help="The application, the same for all models.",
)
@click.option("--probes", type=Name(), multiple=True, default=["core", "failed_task"], metavar="NAME",
              help="As for a study; half is used for training.  [default: core, failed_task]")  # fmt: skip
@click.option("--held-out", type=Name(), multiple=True, default=["prefill"], metavar="ATTACK",
              help="Attacks that are used only for testing.  [default: prefill]")  # fmt: skip
@click.option("--unaligned", type=Name(), metavar="MODEL",
              help="The parent without its safety; the difference of their weights is added.")  # fmt: skip
@click.option("--margin", type=float, default=0.15, show_default=True, help="Non-inferiority margin.")
@click.option(
    "--twins", type=float, default=3.0, show_default=True, help="Benign examples per refusal, for tuning."
)
@click.option("--judge", type=Name(), metavar="JUDGE", help="As for a study.  [default: rules]")
@click.option(
    "--out", type=PathArgument(), metavar="DIR", help="Folder for the studies.  [default: runs/repair-CHILD]"
)
@device_option
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
    """Restore the safety that a child lost.

    Repairs are tried in the order of their cost: a system prompt, interpolation towards the parent's
    weights, and tuning on the parent's own answers. Each makes a recorded model, and is measured on
    held-out behaviours and attacks. The search ends with the first repair that is shown to be no worse than
    the parent, in breaches and in over-refusal. Exits 1 if no repair is. The same command resumes.
    """
    from heredity.application.spec import Application
    from heredity.core import terminal
    from heredity.core.files import RESULTS
    from heredity.core.sanitize import plain

    with shown_start():
        from heredity.lab.repair import Setting, in_words, refuse_backwards, repair

    store = open_store()
    lost, whole = store.get(child), store.get(parent)
    ancestors = store.ancestors(lost.record)
    refuse_backwards(store, lost, whole)
    if whole.record.id not in {each.id for each in ancestors}:
        known = ", ".join(f"'{each.name}'" for each in ancestors) or "none"
        message = (
            f"'{parent}' is not an ancestor of '{child}' (its ancestors: {known}). "
            "They are compared nevertheless."
        )
        terminal.note(plain(message))
    with shown_work(store) as display:
        how = Setting(
            Application.load(application), probes, held_out, margin=margin, twins=twins, judge=judge,
            store=store, out=out or RESULTS / f"repair-{lost.record.name}", watch=display,
        )  # fmt: skip
        repaired = repair(lost, whole, how, store.get(unaligned) if unaligned else None)
    for line in in_words(repaired):
        terminal.write(plain(line))
    return 0 if repaired.model else 1
