"""`heredity adapt`: the ways to adapt a model to a task, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from heredity.cli import Name, PathArgument, Verb, device_option, open_store, shown_start, shown_work

if TYPE_CHECKING:
    from heredity.lab.adapt import AdaptResult
    from heredity.lab.task import AdaptTask


@click.command("adapt", cls=Verb, example="heredity adapt examples/adapt/support.toml --dry-run")
@click.argument("task", metavar="TASK.toml | DIR", type=PathArgument())
@click.option("--model", type=Name(), metavar="REF", help="Another model than that of the task.")
@click.option("--quick", is_flag=True, help="Few steps and few questions, to see it work.")
@click.option("--dry-run", is_flag=True, help="Show what would be made and asked, and what it could show.")
@click.option("--yes", is_flag=True, help="Download missing models without asking.")
@click.option("--out", type=PathArgument(), metavar="DIR",
              help="Folder of models' names and studies.  [default: runs/TASK-...]")  # fmt: skip
@click.option("--page", type=PathArgument(), metavar="FILE",
              help="Write the page here, too, with its figure next to it.")  # fmt: skip
@click.option("--full", is_flag=True, help="Print the costs and all sentences, not only fifteen lines.")
@device_option
@click.pass_context
def command(
    ctx: click.Context, task: Path, model: str | None, quick: bool, dry_run: bool, yes: bool,
    out: Path | None, page: Path | None, full: bool,
) -> None:  # fmt: skip
    """Compare the ways to adapt a model to a task.

    A task file names a model, an application, questions with answers, and a manual. The ways
    are a prompt, few-shot examples, retrieval, LoRA, aLoRA, a full fine-tune and a distilled student. All
    have the same budget, and answer the same held-out questions and probes. The result is a page with the
    quality, cost, breaches and over-refusal of every way, against the untouched model.

    You may stop it at any time: the same command resumes. Given the folder of a finished task, it writes the
    page again.
    """
    from heredity.cli._findings import show_page
    from heredity.core.terminal import note

    with shown_start():
        from heredity.lab import adapt as run
        from heredity.lab.task import read_task

    if task.is_dir():
        _refuse_beside(ctx, task)
        show_page(run.page_of(run.read_result(task)), task, page, full)
        return
    read = read_task(task, model or "")
    read = read.quick() if quick else read
    folder = out or run.task_folder(read, task.stem)
    if dry_run:
        store = open_store()
        with shown_work(store, "planning"):
            run.dry_run(read, store, note, folder)
        return
    show_page(run.page_of(_compared(read, folder, yes)), folder, page, full)


def _compared(task: AdaptTask, folder: Path, yes: bool) -> AdaptResult:
    """Ask before models are downloaded, then compare the ways."""
    from heredity.cli._pulling import consent
    from heredity.core.terminal import note
    from heredity.lab import adapt as run

    store = open_store()
    for ref in filter(None, (task.model, task.teacher if "distilled" in task.ways else "")):
        consent(store, ref, yes)
    with shown_work(store) as display:
        return run.adapt(task, store, folder, display, note)


def _refuse_beside(ctx: click.Context, folder: Path) -> None:
    """Refuse options that would have no effect next to a finished folder. Raises UsageError."""
    names = sorted(set(ctx.params) - {"task", "page", "yes", "full"})
    given = [name for name in names if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{flags} would have no effect: {folder} already has its task.", ctx)
