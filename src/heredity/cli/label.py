"""`heredity label`: a person labels a sample of a study's answers.

Promises: the judge's verdict and the model's name are hidden, so that neither biases the label. Each label is
on the disk before the next answer is shown. Untrusted text cannot move the cursor.
Leaves to others: drawing the sample (study/labels.py, study/findings/pairs_read.py), and the estimates.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Name, PathArgument, Verb

if TYPE_CHECKING:
    from heredity.core.files import Rows
    from heredity.core.records import Response
    from heredity.study.findings.pairs_read import DrawnPair, PairsTask
    from heredity.study.labels import Drawn, Label, LabelAnswer
    from heredity.study.plan import Plan

_KEYS: dict[str, LabelAnswer | None] = {"y": "yes", "n": "no", "s": "skip", "q": None, "\x04": None, "": None}


_ONE_OF = (
    "Give one of --export and --import, and one of --edge, --unclear and --second; --question only with "
    "--edge."
)


@click.command("label", cls=Verb, example="heredity label runs/support-desk --n 100")
@click.argument("folder", metavar="DIR", type=PathArgument())
@click.option(
    "-n", "--n", type=click.IntRange(1), show_default="100, or 40 with --unclear",
    help="Number of labels, or of pairs; with --unclear, of each model and kind of breach.",
)  # fmt: skip
@click.option(
    "--unclear", "is_unclear", is_flag=True, help="Read unclear answers, to measure breaches in them."
)
@click.option(
    "--edge", type=Name(), nargs=2, metavar="PARENT CHILD", help="Read both answers to each trial, in pairs."
)
@click.option(
    "--question", type=click.Choice(["refusal", "harm", "breach", "twin"]),
    show_default="that of the study's rate",
    help="With --edge: does it refuse, do the harm asked for, break a check, or refuse a benign twin?",
)  # fmt: skip
@click.option(
    "--second", type=Name(), metavar="JUDGE",
    help="Second judge: answers on which it differs from the study's come first, in a new draw.",
)  # fmt: skip
@click.option("--reader", type=Name(), metavar="NAME", help="The name of the reader, saved with each label.")
@click.option(
    "--export", type=PathArgument(), metavar="CSV",
    help="Write the answers to a file for labelling elsewhere.",
)  # fmt: skip
@click.option(
    "--import", "take", type=PathArgument(), metavar="FILE", help="Read a labelled file: CSV or JSON lines."
)
def command(
    folder: Path, n: int | None, is_unclear: bool, edge: tuple[str, str] | None, question: PairsTask | None,
    second: str | None, reader: str | None, export: Path | None, take: Path | None,
) -> None:  # fmt: skip
    """Label some of a study's answers, to correct its rates.

    Press one key per answer: yes, no, skip or quit. The sample is random. It favours trials on which two
    models differ, and answers of which the judge was less sure. The same command resumes. With at least 10
    labels of a kind, the report has rates that are estimated from labels. With --unclear you measure how
    many unclear answers are breaches, which verdicts otherwise assume. With --edge the report has the
    difference of two models as you read it. A child that stopped refusing lost safety if you see harm, too.
    """
    from heredity.core.errors import UsageError
    from heredity.core.files import Lock, Rows
    from heredity.redteam import judges
    from heredity.study import labels, plan
    from heredity.study.findings import pairs_read

    one_of = (export, take), (edge, is_unclear, second), (question and not edge, question)
    if any(sum(map(bool, some)) > 1 for some in one_of):
        raise UsageError(_ONE_OF)
    n = n or (labels.N_UNCLEAR if is_unclear else 100)
    if n > labels.MAX_DRAWN:
        raise UsageError(f"A sample has at most {labels.MAX_DRAWN} answers of one study; --n {n} is more.")
    labels.check_labelable(made := plan.read_plan(folder))
    with Lock(folder):
        pairs = pairs_read.draw_pairs(folder, made, *edge, n, question) if edge else []
        groups = [pairs_read.answers_of(made, pair) for pair in pairs]
        judge = judges.load(second, judges.stored_models()) if second else None
        groups = groups or [[row] for row in labels.draw_sample(folder, made, n, is_unclear, judge)]
        drawn = [row for group in groups for row in group]
        if export:
            _export(folder, made, drawn, export)
            return
        with Rows(folder / labels.LABELS, labels.Label) as rows:
            if take:
                labels.import_labels(rows, drawn, take, reader)
            else:
                _ask(folder, made, groups, rows, reader)
    _finish(folder, groups, pairs)


def _export(folder: Path, made: Plan, drawn: list[Drawn], out: Path) -> None:
    from heredity.core.sanitize import plural
    from heredity.core.terminal import note
    from heredity.study.report.csv import write_unlabelled

    write_unlabelled(folder, made, drawn, out)
    note(f"{out}: {plural(len(drawn), 'answer')}. Write yes, no or skip under label, then: --import {out}")


def _ask(folder: Path, made: Plan, groups: list[list[Drawn]], rows: Rows[Label], reader: str | None) -> None:
    from heredity.core.terminal import note
    from heredity.study import labels

    left = labels.unlabelled(folder, groups)
    responses = labels.responses_of(folder, [row for group in left for row in group])
    for place, group in enumerate(left, len(groups) - len(left) + 1):
        if any(row.index not in responses for row in group):
            continue
        _show(made, group, responses, f"{place} of {len(groups)}")
        for number, row in enumerate(group, 1):
            which = f"Answer {number}. " if len(group) > 1 else ""
            key = _key(which + labels.question(labels.probe_of(made, row.index), row.task))
            if key is None:
                note("Stopped. Run the same command to resume.")
                return
            labels.add_label(rows, row, key, reader)


def _show(made: Plan, group: list[Drawn], responses: dict[int, Response], place: str) -> None:
    from heredity.core.sanitize import plain
    from heredity.core.terminal import out, write
    from heredity.study import labels

    texts = [labels.label_texts(made, row, responses[row.index]) for row in group]
    heads = ["the answer"] if len(group) == 1 else ["answer 1", "answer 2"]
    screen = out()
    screen.print()
    screen.rule(f"{place}: what was asked", characters="-", align="left", style="dim")
    write(plain(texts[0][0], lines=True))
    for head, (_, answer) in zip(heads, texts, strict=True):
        screen.rule(head, characters="-", align="left", style="dim")
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


def _finish(folder: Path, groups: list[list[Drawn]], pairs: list[DrawnPair]) -> None:
    """Compute the study's estimates and its report again, with the labels."""
    from heredity.core.sanitize import plural
    from heredity.core.terminal import note
    from heredity.study import labels
    from heredity.study.findings.edge_verdicts import reading_words, verdict_on
    from heredity.study.findings.pairs_read import read_differences
    from heredity.study.report import html
    from heredity.study.study import Study
    from heredity.study.wording import difference_words

    had = labels.labels_of(folder, [row for group in groups for row in group])
    n_labels = sum(label.answer != "skip" for label in had.values())
    estimates = Study.open(folder).estimate().estimates
    differences = read_differences(estimates)
    page = html.write(folder, folder / "report.html")
    first = next(iter(pairs), None)
    if first and (row := differences.get((first.parent, first.child, first.task))):
        n_pairs = plural(row.n_read, "pair")
        note(f"Child minus parent, as read: {difference_words(row.estimate)}, by {n_pairs}.")
    if first and (edge := verdict_on(estimates, first.parent, {first.child})):
        note(f"Verdict on the child: {edge.words}.")
        if what := reading_words(edge, estimates.models, shlex.quote(str(folder))):
            note(what)
    n_left, unit = len(labels.unlabelled(folder, groups)), "pair" if pairs else "answer"
    note(f"{plural(n_labels, 'label')}, {n_left} of {plural(len(groups), unit)} to go. Report: {page}")
