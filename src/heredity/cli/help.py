"""`heredity help`: the help of heredity, of a verb, or of a subcommand."""

from __future__ import annotations

import click

from heredity.cli import Name, Verb


@click.command("help", cls=Verb, example="heredity help derive lora")
@click.argument("verb", metavar="[VERB]...", type=Name(), nargs=-1)
@click.pass_context
def command(ctx: click.Context, verb: tuple[str, ...]) -> None:
    """Show the help of heredity or of a verb.

    The same text is printed by --help after a verb.
    """
    from heredity.core.errors import UnknownName, UsageError

    context = ctx.find_root()
    for name in verb:
        group = context.command
        if not isinstance(group, click.Group):
            raise UsageError(f"'{context.command_path}' has no subcommands.", code="unknown-name")
        command = group.get_command(context, name)
        if command is None:
            raise UnknownName("verb", name, group.list_commands(context), f"{context.command_path} --help")
        context = click.Context(command, parent=context, info_name=name)
    click.echo(context.get_help())
