"""Reports of studies, and the studies of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import COST_HELP, Name, PathArgument, Verb, shown_start
from heredity.core import registry

if TYPE_CHECKING:
    from heredity.study.folders import StudyFolder


@click.command("report", cls=Verb, example="heredity report runs/support-desk --no-text --out shared.html")
@click.argument("folder", metavar="DIR", type=PathArgument())
@click.option(
    "--format", "kind", type=Name(), default="html", show_default=True,
    help=", ".join(registry.names("study.report")) + ".",
)  # fmt: skip
@click.option(
    "--model", "models", type=Name(), multiple=True, metavar="NAME",
    help="Only the rows of this model, in SARIF, JUnit, CSV or Parquet; repeatable.",
)  # fmt: skip
@click.option("--full", is_flag=True, help="Fold nothing in the HTML report, so that all of it is printed.")
@click.option("--no-text", is_flag=True, help="Leave out prompts and answers.")
@click.option("--out", type=PathArgument(), metavar="FILE", help="[default: DIR/report.FORMAT]")
@click.option("--cost", type=Name(), help=COST_HELP, metavar="NAME=COST,...")
def command(
    folder: Path, kind: str, models: tuple[str, ...], full: bool, no_text: bool, out: Path | None,
    cost: str | None,
) -> None:  # fmt: skip
    """Write a study's report.

    The numbers come from its estimates.json. If its verdicts give others, the report is refused. With --cost
    the report ends in a recommendation; the study's folder keeps the costs for later reports. A print of the
    HTML report has the first screen, the rates, a breach of each technique and the verdicts.
    """
    from heredity.cli import _findings
    from heredity.core.errors import UsageError
    from heredity.core.sanitize import plain
    from heredity.core.terminal import write
    from heredity.study import advice
    from heredity.study.report import write_report

    if (folder / "lineage.json").exists():
        raise UsageError(
            f"{folder} is the folder of a lineage, not of a study. Its page: heredity inherit {folder}"
        )
    if cost is not None:
        advice.save_costs(folder, advice.parse_costs(cost))
    page = write_report(folder, kind, out, with_text=not no_text, is_full=full, models=models)
    if cost is not None:
        _findings.show_recommendation(folder)
    write(plain(str(page)))


@click.command("studies", cls=Verb, example="heredity studies runs")
@click.argument("place", metavar="[PLACE]", type=PathArgument(), default=".")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def studies_command(place: Path, as_json: bool) -> None:
    """List the studies of a folder, with state and verdict.

    Folders up to three levels below PLACE are searched. A study is running while a process of this machine
    works on it, and done if every trial has an answer or an error. Before the first it is planned. Shipping
    is the advice of its report: `not 1 of 3` advises against one of three models. Inheritance is the verdict
    on children; the column is named comparison if unrelated models are listed, too.
    """
    from heredity.core.terminal import note, write_json

    with shown_start():
        from heredity.study.folders import find_studies, runs_of_one_plan

    with shown_start("reading the studies"):
        studies = find_studies(place)
    if as_json:
        write_json([{**each._asdict(), "folder": str(each.folder)} for each in studies])
        return
    if not studies:
        note(f"No study in {place}, nor three levels below it. Start one: heredity study --help")
        return
    from heredity.core.terminal import line_table, out

    verdicts = [each.is_of_edges for each in studies if each.verdict]
    verdict = "inheritance" if verdicts and all(verdicts) else "comparison"
    columns: dict[str, list[str]] = {
        "study": _below(studies),
        "state": [each.state for each in studies],
        "answered": [f"{each.n_answered:,}/{each.n_planned:,}" if each.n_planned else "" for each in studies],
        "shipping": [each.shipping for each in studies],
        verdict: [each.verdict for each in studies],
        "models": [", ".join(each.models) for each in studies],
    }
    out().print(line_table(columns, out().width, ["study"], right=["answered"], last_width=7))
    for each in studies:
        if each.problem:
            note(f"unreadable: {each.problem}")
    for folders in runs_of_one_plan(studies):
        names = ", ".join(folder.name for folder in folders)
        note(f"Studies of one plan, up to the seed: {names}. Report all of them.")


def _below(study_folders: list[StudyFolder]) -> list[str]:
    """The folders without the path that all of them share, which is printed once above them."""
    from os.path import commonpath

    from heredity.core.terminal import note

    shared = Path(commonpath([each.folder.parent for each in study_folders]))
    if not shared.parts:
        return [str(each.folder) for each in study_folders]
    note(f"in {shared}:")
    return [str(each.folder.relative_to(shared)) for each in study_folders]
