"""Grades on a terminal: a table of tasks by models, then each model compared with the first.

Promises: no score without its interval and n. Answers that were refused, unclear, cut or failed are counted.
Leaves to others: every number (evals/run.py).
"""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from heredity.core.sanitize import plain, plural
from heredity.core.terminal import cell, out, table
from heredity.evals.run import Grade, Grades, TaskCard

_STYLES = {"better": "green", "worse": "bold red"}
_COUNTS = {
    "n_unclear": "unclear, scored 0",
    "n_cut": "cut at the token limit",
    "n_error": "errors, not scored (--retry-errors asks again)",
}


def show(grades: Grades, path: Path) -> None:
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
