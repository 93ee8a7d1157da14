"""`heredity attacks`: what the open folder attacks/ holds."""

from __future__ import annotations

import click

from heredity.cli import Verb, _listing


@click.command("attacks", cls=Verb, example="heredity attacks --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the attacks that a study can lay over its probes."""
    _listing.show("attacks", as_json)
