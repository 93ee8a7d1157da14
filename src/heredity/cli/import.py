"""`heredity import`: judge and compare recorded answers. Loaded by name, because `import` is a keyword."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Name, PathArgument, Verb, full_option

if TYPE_CHECKING:
    from heredity.core.sections import TextTable
    from heredity.study.importers import Summary

_EXAMPLE = "heredity import answers.jsonl --columns prompt=question,response=answer,model=arm --out runs/arms"


@click.command("import", cls=Verb, example=_EXAMPLE)
@click.argument("files", metavar="FILE...", type=PathArgument(), nargs=-1, required=True)
@click.option("--out", type=PathArgument(), metavar="DIR", required=True, help="The study's folder.")
@click.option(
    "--columns", type=Name(), metavar="prompt=P,response=R,...",
    help="Columns of prompt, response, model, category, id, sample, kind, cluster and error.",
)  # fmt: skip
@click.option(
    "--model", type=Name(), metavar="NAME", help="Name of the model; may contain {file} and {COLUMN}."
)
@click.option(
    "--verdict", "verdicts", type=Name(), multiple=True, metavar="COLUMN[=V,...]",
    help="Column with another judge's verdicts, and the values that mean a breach. Repeat for each judge.",
)  # fmt: skip
@click.option(
    "--benign", type=Name(), default="benign", metavar="V[,V]",
    help="Values of the column `kind` that mark benign prompts.",
)  # fmt: skip
@click.option(
    "--judge", type=Name(), metavar="JUDGE",
    help="Judge: rules, learned, rubric:MODEL, guard:NAME or panel:A+B; a request log has no default.  "
    "[default: rules]",
)  # fmt: skip
@click.option("--only", type=Name(), metavar="MODEL", help="Read the answers of this model only.")
@click.option("--repeats", is_flag=True, help="Count repeated answers of a model to a prompt as samples.")
@click.option("--json", "as_json", is_flag=True, help="Print rates, pairs and agreement as JSON.")
@full_option
def command(
    files: tuple[Path, ...], out: Path, columns: str | None, model: str | None, verdicts: tuple[str, ...],
    benign: str, judge: str | None, only: str | None, repeats: bool, as_json: bool, full: bool,
) -> None:  # fmt: skip
    """Judge and compare answers that were recorded elsewhere.

    Reads JSON lines, CSV and TSV with a column map, inspect_ai logs (.eval), garak reports, folders of
    AgentDojo's logs and the request logs of `heredity serve`. The answers become a study: models are paired
    by prompt, and heredity's judge decides. The report compares its verdicts with those of other judges. An
    answer that one model lacks counts as an error.
    """
    from heredity.cli import _findings, lab, open_store, shown_work
    from heredity.core.errors import UsageError
    from heredity.core.sanitize import plain
    from heredity.core.terminal import note, write_json
    from heredity.redteam import judges
    from heredity.study import importers
    from heredity.study.importers import agentdojo as agent_tasks
    from heredity.study.plan import read_plan
    from heredity.study.report import html
    from heredity.study.study import Study

    reading = importers.ImportOptions(
        columns=importers.columns(columns or ""),
        model=model or "",
        verdicts=tuple(map(importers.VerdictColumn.parse, verdicts)),
        benign=tuple(value.strip() for value in benign.split(",")),
        repeats=repeats,
        only=only or "",
    )
    if judge is None and importers.is_traffic(files):
        raise UsageError(
            "Most requests of a log seek no breach, and the judge 'rules' would count each answer as one. "
            "Name a judge that reads for harm: --judge learned, guard:NAME or rubric:MODEL."
        )
    judge = judge or judges.DEFAULT
    judges.Decider(judge)  # an unknown judge is reported before a study is made
    summary = importers.import_files(files, out, reading)
    for message in reading.unmet().values():
        note(plain(f"{message} So each of its verdicts counts as held."))
    store = open_store()
    study = Study.open(out, store=store, judge=judge)
    with shown_work(store) as display:
        study.judge(display)
        result = study.estimate(display)
    agreements = importers.agreements(out)
    html.write(out, out / "report.html")
    if as_json:
        write_json(agreements)
    else:
        _show(importers.judge_tables(out, result.estimates))
        lab.show_agent_tasks(agent_tasks.table(agent_tasks.write(out)))
    note(_summary(summary))
    if not as_json:
        _findings.show(result.estimates, read_plan(out), out, full)


def _summary(summary: Summary) -> str:
    from heredity.core.sanitize import plain, plural

    text = (
        f"{plural(summary.n_answers, 'answer')} of {plural(len(summary.models), 'model')} to "
        f"{plural(summary.n_prompts, 'prompt')}, recorded elsewhere: heredity does not know whether they "
        "were asked in the same application."
    )
    if summary.n_missing:
        text += f" Not recorded, and counted as errors: {plural(summary.n_missing, 'answer')}."
    for each in summary.lacking:
        text += f" {each.path.name} lacks {each.n:,} of the {plural(each.n_planned, each.noun)} of its run."
    return plain(text)


def _show(grids: list[TextTable]) -> None:
    """Print every judge on the same answers, then each pair of judges."""
    from heredity.core.terminal import cell, out, table
    from heredity.study.wording import cell_words

    screen = out()
    for grid in grids:
        head = [*map(cell_words, grid.head)]
        shown = table(*head, whole=[name for name in head if "/" in name])
        for row in grid.rows:
            shown.add_row(*(cell(cell_words(each)) for each in row))
        screen.print()
        screen.print(grid.title, style="bold")
        screen.print(shown)
