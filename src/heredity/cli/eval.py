"""`heredity eval`: the abilities of models, measured by prompting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from heredity.cli import (
    Name,
    PathArgument,
    Verb,
    _remote,
    device_option,
    open_store,
    shown_start,
    shown_work,
)  # fmt: skip
from heredity.core.sanitize import plain, plural
from heredity.core.terminal import cell, out, table

if TYPE_CHECKING:
    from heredity.engines.remote.services import Calls
    from heredity.evals.run import Evaluation, Grade, Grades, TaskCard


def _listed(
    ctx: click.Context,  # noqa: ARG001
    param: click.Parameter,  # noqa: ARG001
    value: tuple[str, ...],
) -> tuple[str, ...]:
    """Names from a repeated option, or separated by commas."""
    return tuple(name.strip() for each in value for name in each.split(",") if name.strip())


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"'{value}' must be whole numbers separated by commas, e.g. 0,3.", ctx, param
        ) from None


@click.command("eval", cls=Verb, example="heredity eval smollm2-135m-instruct --shots 0,3")
@click.argument("models", metavar="MODEL...", type=Name(), nargs=-1, required=True)
@click.option(
    "--tasks", type=Name(), multiple=True, callback=_listed, metavar="NAME,...",
    help="Tasks by name, or your own TOML files.  [default: all of heredity's]",
)  # fmt: skip
@click.option(
    "--shots", type=Name(), default="0", show_default=True, callback=_numbers, metavar="N,...",
    help="Numbers of few-shot examples.",
)  # fmt: skip
@click.option(
    "--no-chat-template", "plain", is_flag=True, help="Use no chat template. Base models never use one."
)
@click.option(
    "--limit", type=int, metavar="N",
    help="Use N items of each task, always the same ones, for a quick check.",
)  # fmt: skip
@click.option(
    "--out", type=PathArgument(), metavar="DIR", help="Folder for the answers.  [default: runs/evals]"
)
@click.option("--retry-errors", is_flag=True, help="Ask again the items that failed with an error.")
@click.option(
    "--dry-run", is_flag=True, help="Show how many items are open, their time and price, and ask nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the grades as JSON.")
@device_option
@_remote.options
def command(
    models: tuple[str, ...], tasks: tuple[str, ...], shots: tuple[int, ...], plain: bool, limit: int | None,
    out: Path | None, retry_errors: bool, dry_run: bool, as_json: bool, **calls: Any,
) -> None:  # fmt: skip
    """Evaluate models on small tasks, without any tuning.

    The tasks are translation, summarisation, code, arithmetic, classification, cloze and questions, in small
    sets that ship with heredity. The other models are compared with the first, item by item. Nothing that a
    model writes is executed.

    Answers are kept in a folder. The same command resumes a run that was stopped. With another model, task
    or number of examples, only new items are asked.
    """
    from heredity.cli import pull
    from heredity.core import terminal

    with shown_start():
        from heredity.evals.run import GRADES, Evaluation

    store = open_store()
    how = _remote.calls(**calls)
    grown = [store.get(name) for name in models]
    _remote.check(grown, how, needs_keys=not dry_run)
    for one in grown:
        if one.record.format != "scripted" and not dry_run:
            pull.ready(store, one)
    asked = Evaluation(
        grown, tasks, shots, is_plain=plain, limit=limit, store=store, out=out,
        engine_loader=_remote.loader(store, how, needs_text=False),
    )  # fmt: skip
    if dry_run:
        _show_open(asked, how, retry_errors)
        return
    with shown_work(store) as display:
        grades = asked.run(display, retry_errors=retry_errors)
    if as_json:
        terminal.write_json(grades)
        return
    _show_grades(grades, asked.folder / GRADES)


def _show_open(asked: Evaluation, how: Calls, retry_errors: bool) -> None:
    """Print what each model has still to answer, its time and its price."""
    from heredity.core.progress import time_words
    from heredity.core.terminal import note

    grid = table("model", "items", "open", "time", right=["items", "open"])
    forecast = asked.forecast(retry_errors=retry_errors)
    for each in forecast:
        time = time_words(each.seconds) if each.n_open else ""
        grid.add_row(cell(each.grown.record.name), f"{each.n_items:,}", f"{each.n_open:,}", time)
    out().print(grid)
    _remote.show_uses([(each.grown, each.used) for each in forecast], how)
    note("Nothing was asked.")


_STYLES = {"better": "green", "worse": "bold red"}
_COUNTS = {
    "n_unclear": "unclear, scored 0",
    "n_cut": "cut at the token limit",
    "n_error": "errors, not scored (--retry-errors asks again)",
}


def _show_grades(grades: Grades, path: Path) -> None:
    """Print the grades, a legend, and the path of the file."""
    screen = out()
    screen.print()
    grid = table("task", "by", "shots", "floor", right=("shots", "floor"))
    for model in grades.models:
        asked = f"\n{model.form}" if model.form else ""
        grid.add_column(Text(plain(model.name) + asked), overflow="fold")
    for task in grades.tasks:
        for n in _shots(grades):
            own = [g for g in grades.grades if (g.task, g.shots) == (task.name, n)]
            head = (task.name, task.metric_title) if n == _shots(grades)[0] else ("", "")
            grid.add_row(
                *map(cell, head),
                str(n),
                f"{100 * task.floor:.0f}",
                *(_score(grade, task) for grade in own),
            )
    screen.print(grid)
    screen.print(
        "share right in %, or chrF and ROUGE-L F1 x 100, with the 95 % interval; floor: the score without "
        "any knowledge (a random choice; for a text, the input itself as the answer)",
        style="dim",
    )
    for line in _remarks(grades):
        screen.print(plain(line), style="yellow")
    if len(grades.models) > 1:
        screen.print()
        screen.print(_differences(grades))
        screen.print(
            f"points above {plain(grades.models[0].name)}, item by item; p after Holm over "
            f"{plural(len(grades.differences), 'comparison')}",
            style="dim",
        )
    screen.print(f"\ngrades: {plain(str(path))}", soft_wrap=True)


def _score(grade: Grade, task: TaskCard) -> Text:
    if grade.refused:
        return Text("refused", style="dim")
    score = grade.score
    if score.value is None or score.low is None or score.high is None:
        return Text("-", style="dim")
    value = f"{100 * score.value:.0f}{task.unit and ' ' + task.unit}"
    return Text(f"{value:>5} [{100 * score.low:.0f}, {100 * score.high:.0f}] n {score.n}")


def _remarks(grades: Grades) -> list[str]:
    """Counts that the scores do not show: for each model, in which tasks and how often."""
    lines = []
    for model in grades.models:
        own = [grade for grade in grades.grades if grade.model == model.id]
        for field, what in _COUNTS.items():
            where = [(getattr(grade, field), f"{grade.task} {grade.shots}-shot") for grade in own]
            if total := sum(n for n, _ in where):
                counts = ", ".join(f"{n} in {place}" for n, place in where if n)
                lines.append(f"{model.name}: {total} {what}: {counts}")
        for why in dict.fromkeys(grade.refused for grade in own if grade.refused):
            tasks = dict.fromkeys(grade.task for grade in own if grade.refused == why)
            lines.append(f"{model.name} is not asked {', '.join(tasks)}: {why}")
    if grades.limit is not None:
        lines.append(f"a part: at most {grades.limit:,} items of each task were asked (--limit)")
    if len({model.form for model in grades.models if model.form}) > 1:
        lines.append("the models were asked in different forms (chat, plain); use --no-chat-template for all")
    return lines


def _differences(grades: Grades) -> Table:
    grid = table("model", "task", "shots", "difference", "p", "verdict", right=("shots",), whole=("task",))
    names = {model.id: model.name for model in grades.models}
    last = ""
    for one in grades.differences:
        d = one.difference
        shown = "-" if d.value is None or d.low is None or d.high is None else (
            f"{100 * d.value:+.0f} [{100 * d.low:+.0f}, {100 * d.high:+.0f}] n {d.n}"
        )  # fmt: skip
        p = "< 0.001" if one.p_holm < 0.001 else f"{one.p_holm:.2g}"
        name = names[one.b] if one.b != last else ""
        last = one.b
        style = _STYLES.get(one.verdict, "dim")
        grid.add_row(cell(name), cell(one.task), str(one.shots), shown, p, cell(one.verdict, style))
    return grid


def _shots(grades: Grades) -> list[int]:
    return list(dict.fromkeys(grade.shots for grade in grades.grades))
