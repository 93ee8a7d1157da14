"""`heredity version`: the version of heredity."""

from __future__ import annotations

import click

from heredity.cli import Verb


@click.command("version", cls=Verb, example="heredity version")
def command() -> None:
    """Show the version of heredity."""
    from heredity.core import registry
    from heredity.core.sanitize import plain
    from heredity.core.version import __version__

    click.echo(f"heredity {__version__}")
    for group, folder in registry.GROUPS.items():
        for name, packages in registry.installed()[folder].items():
            click.echo(plain(f"{group}: {name} ({' and '.join(map(str, packages))})"))
