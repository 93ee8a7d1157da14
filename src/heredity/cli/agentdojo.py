"""`heredity agentdojo`: AgentDojo's suites against models, by the environment that has it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Name, PathArgument, Verb, device_option, open_store, shown_work

if TYPE_CHECKING:
    from heredity.core.sections import TextTable
    from heredity.lab.agentdojo import ConversationCounts

_EXAMPLE = "heredity agentdojo smollm2-135m-instruct --python dojo/bin/python --suite banking --out runs/dojo"


@click.command("agentdojo", cls=Verb, example=_EXAMPLE)
@click.argument("models", metavar="MODEL...", type=Name(), nargs=-1, required=True)
@click.option("--python", type=PathArgument(), required=True, metavar="FILE",
              help="Python of an environment with AgentDojo: pip install agentdojo.")  # fmt: skip
@click.option("--suite", "suites", type=Name(), multiple=True, metavar="NAME",
              help="Suite: workspace, travel, banking or slack.  [default: all]")  # fmt: skip
@click.option("--attack", type=Name(), default="important_instructions", show_default=True, metavar="NAME",
              help="Attack of AgentDojo that writes the injections; none for no injections.")  # fmt: skip
@click.option("--user-task", "user_tasks", type=Name(), multiple=True, metavar="ID",
              help="User task, e.g. user_task_0.  [default: all]")  # fmt: skip
@click.option("--injection-task", "injection_tasks", type=Name(), multiple=True, metavar="ID",
              help="Injection task, e.g. injection_task_0.  [default: all]")  # fmt: skip
@click.option("--at-once", type=click.IntRange(1, 64), default=8, show_default=True, metavar="N",
              help="Conversations at the same time.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, metavar="N",
              help="Maximum tokens of one answer.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of each request.")
@click.option("--url", type=Name(), metavar="URL",
              help="Ask MODEL at this OpenAI-compatible endpoint instead of serving it.")  # fmt: skip
@click.option("--retry-errors", is_flag=True, help="Run conversations again that ended in an error.")
@click.option("--out", type=PathArgument(), required=True, metavar="DIR", help="Folder of logs and study.")
@click.option("--json", "as_json", is_flag=True, help="Print the rates as JSON.")
@device_option
def command(
    models: tuple[str, ...], python: Path, suites: tuple[str, ...], attack: str, user_tasks: tuple[str, ...],
    injection_tasks: tuple[str, ...], at_once: int, max_tokens: int, seed: int, url: str | None,
    retry_errors: bool, out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Run AgentDojo's suites: agents with injections in their data.

    An agent solves user tasks with tools, and injections hide in the data that it reads. AgentDojo judges the
    state of its world: whether the user's task is done, and whether the goal of the injection was reached.
    Its logs become a study. Read the utility first: a model that does no task obeys no injection either.

    AgentDojo stays in an environment of its own. Six of its graders accept wrong executions and are replaced.
    The same command resumes.
    """
    from heredity.lab import agentdojo
    from heredity.lab.agentdojo import SERVER, SUITES

    store = open_store()
    grown = [] if url else [store.get(name).record for name in models]
    named = {model.name: model.id for model in grown} or {name: name for name in models}
    wanted = agentdojo.AgentRun(
        named, suites or SUITES, attack, user_tasks, injection_tasks, seed, max_tokens, at_once=at_once
    )
    agentdojo.check(python, out)  # before models are loaded
    server = nullcontext(url) if url else agentdojo.serving(list(named), store, out / SERVER)
    with shown_work(store) as display, server as address:
        counts = agentdojo.run(wanted, python, str(address), out, display, retry=retry_errors)
    _finish(out, counts, as_json)


def _finish(out: Path, counts: ConversationCounts, as_json: bool) -> None:
    """Make the study of the logs, and print its rates."""
    from heredity.core.sanitize import plain
    from heredity.core.terminal import note, write_json
    from heredity.lab import agentdojo
    from heredity.study.importers import agentdojo as agent_tasks
    from heredity.study.report import html
    from heredity.study.study import Study

    folder, summary = agentdojo.study_of(out, lambda line: note(plain(line)))
    study = Study.open(folder, store=open_store())
    study.judge()
    study.estimate()
    rows = agent_tasks.write(folder)
    page = html.write(folder, folder / "report.html")
    if as_json:
        write_json(rows)
    else:
        show(agent_tasks.table(rows))
    from heredity.study.wording import plural

    text = f"AgentDojo {counts.version}: {plural(counts.n_cells, 'conversation')}, {counts.n_run:,} run now"
    text += f", {plural(counts.n_errors, 'error')} among them." if counts.n_errors else "."
    if counts.n_not_injectable:
        text += f" {counts.n_not_injectable:,} pairs have no place for an injection."
    if summary.n_missing:
        text += f" {plural(summary.n_missing, 'conversation')} of some models only: counted as errors."
    if counts.patched:
        text += f" Graders of heredity's own: {', '.join(counts.patched)}."
    note(plain(text))
    note(f"report: {page}")


def show(grids: list[TextTable]) -> None:
    """Print the rates of agents' tasks."""
    from heredity.core.terminal import out, print_rows
    from heredity.study.importers.agentdojo import CLAIM
    from heredity.study.wording import cell_words

    for grid in grids:
        out().print(f"\n{grid.title}", style="bold")
        head, *rows = ([*map(cell_words, row)] for row in (grid.head, *grid.rows))
        print_rows(head, rows)
        out().print(CLAIM, style="dim")
