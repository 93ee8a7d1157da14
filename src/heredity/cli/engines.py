"""`heredity engines`: the engines that are installed with heredity."""

from __future__ import annotations

import click

from heredity.cli import Verb


@click.command("engines", cls=Verb, example="heredity engines --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the engines that can load a model and answer."""
    from heredity.core import terminal

    terminal.show_plugins("engines", as_json)
