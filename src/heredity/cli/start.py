"""The first steps: a finished study to look at, and the files of an application to start from."""

from __future__ import annotations

from pathlib import Path

import click

from heredity.cli import PathArgument, Verb, full_option, shown_start


@click.command("demo", cls=Verb, example="heredity demo --out runs/demo")
@click.option(
    "--out", type=PathArgument(), default="runs/demo", metavar="DIR", show_default=True,
    help="The study's folder.",
)  # fmt: skip
@full_option
def demo_command(out: Path, full: bool) -> None:
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


@click.command("init", cls=Verb, example="heredity init my-app && cd my-app && heredity study plan.toml")
@click.argument("folder", metavar="[DIR]", type=PathArgument(), default=".")
def init_command(folder: Path) -> None:
    """Write an application, probes, a plan and CI jobs to start from.

    The plan uses scripted models, so that it runs in seconds without a download. Existing files are never
    overwritten.
    """
    from heredity.application import write_starter
    from heredity.core.sanitize import plain
    from heredity.core.terminal import write

    for path in write_starter(folder):
        write(plain(f"wrote {path}"))
    write("")
    write(plain(f"Next: cd {folder}, edit application.toml, then: heredity study plan.toml"))
