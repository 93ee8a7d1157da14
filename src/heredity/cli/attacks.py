"""`heredity attacks`: the attacks, their variants, and how many queries each makes."""

from __future__ import annotations

import click

from heredity.cli import Verb


@click.command("attacks", cls=Verb, example="heredity attacks --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the attacks that a study can apply to its probes.

    `heredity study --attack` takes NAME[:VARIANT][@TECHNIQUE,...]. Join several with "+": the attack that
    leads the conversation comes first, then those that transform its turns, as in crescendo+encoding:rot13.
    With "@", the attack is only for these techniques, as in crescendo@planted_secret,harmful_request.
    The first variant is the default.
    """
    from heredity.core import registry, terminal
    from heredity.redteam import attacks

    purposes = registry.purposes("redteam.attacks")
    parts = {name: attacks.load(name).parts[0] for name in attacks.names()}
    if as_json:
        terminal.write_json(
            {
                name: {"purpose": purposes[name], "variants": part.variants, "queries": part.attack.cost}
                for name, part in parts.items()
            }
        )
        return
    grid = terminal.table("name", "what it is", "variants", "queries", whole=["name"])
    for name, part in parts.items():
        texts = (purposes[name], ", ".join(part.variants), part.attack.cost)
        grid.add_row(terminal.cell(name, "bold"), *map(terminal.cell, texts))
    terminal.out().print(grid)
