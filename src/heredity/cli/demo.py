"""`heredity demo`: a whole study to look at, without a model."""

from __future__ import annotations

from pathlib import Path

import click

from heredity.cli import PathArgument, Verb, full_option, shown_start


@click.command("demo", cls=Verb, example="heredity demo --out runs/demo")
@click.option(
    "--out",
    type=PathArgument(),
    default="runs/demo",
    metavar="DIR",
    show_default=True,
    help="The study's folder.",
)
@full_option
def command(out: Path, full: bool) -> None:
    """Show a finished study with its lineage, from recorded answers.

    The answers are those of a small model, its 4-bit child and a child tuned on harmless dialogues, in the
    example application. They ship with heredity: no model is loaded and nothing is downloaded.
    """
    with shown_start():
        from heredity.cli import _findings
        from heredity.study.folders import write_demo
        from heredity.study.plan import read_plan
        from heredity.study.report import write_report

    with shown_start("judging the answers"):
        demo = write_demo(out)
    with shown_start("writing the report"):
        write_report(out)
    _findings.show(demo, read_plan(out), out, full)
