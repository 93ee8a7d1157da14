"""`heredity report`: write a study's report in one of several formats."""

from __future__ import annotations

from pathlib import Path

import click

from heredity.cli import Name, PathArgument, Verb
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
@click.option("--no-text", is_flag=True, help="Leave out prompts and answers.")
@click.option("--out", type=PathArgument(), metavar="FILE", help="[default: DIR/report.FORMAT]")
def command(folder: Path, kind: str, no_text: bool, out: Path | None) -> None:
    """Write a study's report.

    The numbers come from its estimates.json. If its verdicts give others, the report is refused.
    """
    from heredity.core.sanitize import plain
    from heredity.core.terminal import write
    from heredity.study.report import write_report

    write(plain(str(write_report(folder, kind, out, with_text=not no_text))))
