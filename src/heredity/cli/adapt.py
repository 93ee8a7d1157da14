"""`heredity adapt`: the ways to adapt a model to a task, side by side."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from heredity.cli import Name, PathArgument, Verb, device_option, open_store, shown_start, shown_work

if TYPE_CHECKING:
    from heredity.lab.adapt import AdaptResult
    from heredity.lab.task import AdaptTask

PAGE = "adapt.md"  # in the folder of a task


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
    from heredity.core.terminal import note

    with shown_start():
        from heredity.lab import adapt as run
        from heredity.lab.task import read_task

    if task.is_dir():
        _refuse_beside(ctx, task)
        _show(run.read_result(task), task, page, full)
        return
    read = read_task(task, model or "")
    read = read.quick() if quick else read
    folder = out or run.task_folder(read, task.stem)
    if dry_run:
        store = open_store()
        with shown_work(store, "planning"):
            run.dry_run(read, store, note, folder)
        return
    _show(_compared(read, folder, yes), folder, page, full)


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


def _show(found: AdaptResult, folder: Path, page: Path | None, is_full: bool) -> None:
    """Write the page, and print the ways and sentences: all, or in about fifteen lines."""
    from heredity.cli import _findings
    from heredity.core.terminal import cell, out, size, table
    from heredity.lab import adapt_page as words

    said = [words.QUICK] if found.task.is_quick else []
    said += words.sentences(found) if is_full else words.gist(found)
    pages = [words.write_page(found, path) for path in (folder / PAGE, page) if path is not None]
    said += [f"Page: {path}" for path in pages]
    said[-1] += "" if is_full else "; costs and all sentences here: --full"
    screen = out()
    if is_full:
        columns = ("way", "right", "breaches", "twins refused", "making", "an answer", "added")
        grid = table(*columns, whole=("way",))
        for way in found.ways:
            cost = way.cost
            grid.add_row(*map(cell, (
                way.title, words.quality_words(way.quality[0]), words.breach_words(found.main(way)),
                words.breach_words(way.over_refusal), words.seconds_words(cost.making_seconds),
                words.answer_words(cost), size(cost.bytes),
            )))  # fmt: skip
        screen.print(grid)
        screen.print()
    else:
        head = ("way", "right", "twins refused", "breaches", "against the untouched")
        rows = [
            (way.title, words.quality_words(way.quality[0]), words.rate_words(way.over_refusal),
             words.rate_words(found.main(way)), words.verdict_words(found.main(way)))
            for way in found.ways
        ]  # fmt: skip
        _findings.show_rows(screen, _findings.Lines("way", 1, head, rows, ()), rows)
    _findings.show_ending(screen, [(line, "") for line in said], f"heredity view {shlex.quote(str(folder))}")
