"""`heredity init`: the first files of one's own application."""

from __future__ import annotations

from pathlib import Path

import click

from heredity.cli import PathArgument, Verb


@click.command("init", cls=Verb, example="heredity init my-app && cd my-app && heredity study plan.toml")
@click.argument("folder", metavar="[DIR]", type=PathArgument(), default=".")
def command(folder: Path) -> None:
    """Write an application, probes, a plan and CI jobs to start from.

    The plan uses scripted models, so that it runs in seconds without a download. Existing files are never
    overwritten.
    """
    from heredity.application.init import write_starter
    from heredity.core.sanitize import plain
    from heredity.core.terminal import write

    for path in write_starter(folder):
        write(plain(f"wrote {path}"))
    write("")
    write(plain(f"Next: cd {folder}, edit application.toml, then: heredity study plan.toml"))
