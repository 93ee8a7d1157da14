"""`heredity report`: write a study's report in one of several formats."""

from __future__ import annotations

from pathlib import Path

import click

from heredity.cli import COST_HELP, Name, PathArgument, Verb
from heredity.core import registry


@click.command("report", cls=Verb, example="heredity report runs/support-desk --no-text --out shared.html")
@click.argument("folder", metavar="DIR", type=PathArgument())
@click.option(
    "--format",
    "kind",
    type=Name(),
    default="html",
    show_default=True,
    help=", ".join(registry.names("study.report")) + ".",
)
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
