"""`heredity label`: a person labels a sample of a study's answers.

Promises: the judge's verdict and the model's name are hidden, so that neither biases the label. Each label is
on the disk before the next answer is shown. Untrusted text cannot move the cursor.
Leaves to others: drawing the sample, and estimates from the labels (study/labels.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import PathArgument, Verb

if TYPE_CHECKING:
    from heredity.core.files import Rows
    from heredity.core.records import Response
    from heredity.study.labels import Drawn, Label, LabelAnswer
    from heredity.study.plan import Plan

_KEYS: dict[str, LabelAnswer | None] = {"y": "yes", "n": "no", "s": "skip", "q": None, "\x04": None, "": None}


@click.command("label", cls=Verb, example="heredity label runs/support-desk --n 100")
@click.argument("folder", metavar="DIR", type=PathArgument())
@click.option(
    "--n", type=click.IntRange(1), default=100, show_default=True, help="Number of labels in total."
)
@click.option(
    "--export", type=PathArgument(), metavar="CSV",
    help="Write the answers to a file for labelling elsewhere.",
)  # fmt: skip
@click.option(
    "--import", "take", type=PathArgument(), metavar="FILE", help="Read a labelled file: CSV or JSON lines."
)
def command(folder: Path, n: int, export: Path | None, take: Path | None) -> None:
    """Label some of a study's answers, to correct its rates.

    Press one key per answer: yes, no, skip or quit. The sample is random. It favours trials on which two
    models differ, and answers of which the judge was less sure. You may stop at any time; the same command
    resumes. With at least 10 labels of a kind, the report also has rates that are estimated from labels.
    """
    from heredity.core.errors import UsageError
    from heredity.core.files import Lock, Rows
    from heredity.study import labels, plan

    if export and take:
        raise UsageError("Give --export or --import, not both.")
    if n > labels.MAX_DRAWN:
        raise UsageError(f"A sample has at most {labels.MAX_DRAWN} answers of one study; --n {n} is more.")
    made = plan.read_plan(folder)
    labels.check_labelable(made)
    with Lock(folder):
        drawn = labels.draw_answers(folder, made)[:n]
        if export:
            from heredity.core.sanitize import plural
            from heredity.core.terminal import note
            from heredity.study.report.csv import write_unlabelled

            write_unlabelled(folder, made, drawn, export)
            answers = plural(len(drawn), "answer")
            note(f"{export}: {answers}. Write yes, no or skip under label, then: --import {export}")
            return
        with Rows(folder / labels.LABELS, labels.Label) as rows:
            if take:
                labels.import_labels(rows, drawn, take)
            else:
                _ask(folder, made, drawn, rows)
    _finish(folder, drawn)


def _ask(folder: Path, made: Plan, drawn: list[Drawn], rows: Rows[Label]) -> None:
    from heredity.core.terminal import note
    from heredity.study import labels

    had = labels.read_labels(folder)
    open_ = [row for row in drawn if row.index not in had]
    responses = labels.responses_of(folder, open_)
    for place, row in enumerate(open_, len(drawn) - len(open_) + 1):
        if row.index not in responses:
            continue
        _show(made, row, responses[row.index], f"{place} of {len(drawn)}")
        key = _key(labels.question(labels.probe_of(made, row.index), row.task))
        if key is None:
            note("Stopped. Run the same command to resume.")
            return
        labels.add_label(rows, row, key)


def _show(made: Plan, row: Drawn, response: Response, place: str) -> None:
    from heredity.core.sanitize import plain
    from heredity.core.terminal import out, write
    from heredity.study import labels

    asked, answer = labels.label_texts(made, row, response)
    screen = out()
    screen.print()
    screen.rule(f"{place}: what was asked", characters="-", align="left", style="dim")
    write(plain(asked, lines=True))
    screen.rule("the answer", characters="-", align="left", style="dim")
    write(plain(answer, lines=True))


def _key(question: str) -> LabelAnswer | None:
    """Read one label: a key on a terminal, else a line of standard input."""
    import sys

    asked = f"{question} [y]es, [n]o, [s]kip, [q]uit: "
    while True:
        click.echo(asked, nl=False)
        if sys.stdin.isatty():
            key = click.getchar()
            click.echo(key if key.isprintable() else "")
        else:
            line = sys.stdin.readline()
            key = line.strip()[:1] if line.strip() else ("?" if line else "")
            click.echo("")
        if key.lower() in _KEYS:
            return _KEYS[key.lower()]


def _finish(folder: Path, drawn: list[Drawn]) -> None:
    """Compute the study's estimates and its report again, with the labels."""
    from heredity.core.sanitize import plural
    from heredity.core.terminal import note
    from heredity.study import labels
    from heredity.study.report import html
    from heredity.study.study import Study

    had = labels.read_labels(folder)
    n_labels = sum(label.answer != "skip" for label in had.values())
    n_left = sum(row.index not in had for row in drawn)
    Study.open(folder).estimate()
    page = html.write(folder, folder / "report.html")
    note(f"{plural(n_labels, 'label')}, {n_left} of {len(drawn)} to go. report: {page}")
