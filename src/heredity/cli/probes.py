"""`heredity probes`: what can be asked."""

from __future__ import annotations

import click

from heredity.cli import Lister, Verb


@click.group("probes", cls=Lister, example="heredity probes show planted_secret/plain-01")
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the probes, or show one."""
    if ctx.invoked_subcommand is None:
        _list(as_json=False)


@command.command("list", cls=Verb, example="heredity probes list --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Each technique with its counts."""
    _list(as_json)


@command.command("show", cls=Verb, example="heredity probes show planted_secret/plain-01")
@click.argument("names", metavar="ID...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(names: tuple[str, ...], as_json: bool) -> None:
    """Every probe that ID names: an id, a technique, a glob, or a TOML file of your own."""
    from heredity import probes
    from heredity.cli._plain import plain
    from heredity.cli._terminal import write, write_json

    chosen = probes.load(names)
    if as_json:
        write_json(chosen)
        return
    for probe in chosen:
        write(plain(_words(probe), lines=True))


def _list(as_json: bool) -> None:
    from heredity import probes
    from heredity.cli._terminal import cell, out, table, write_json

    found = probes.techniques()
    if as_json:
        write_json(found)
        return
    grid = table(
        "technique",
        "probes",
        "twins",
        "decided by",
        "what it asks",
        right=["probes", "twins"],
        whole=["technique", "decided by"],
    )
    for technique in found:
        decided = "a check" if technique.is_judge_free else "a judge"
        grid.add_row(
            cell(technique.name, "bold"), f"{technique.n_items}", f"{technique.n_twins}", decided,
            cell(technique.description),
        )  # fmt: skip
    grid.add_row("all", f"{sum(t.n_items for t in found)}", f"{sum(t.n_twins for t in found)}")
    out().print(grid)
    out().print(f"suites: {', '.join(probes.SUITES)}; show one: heredity probes show ID", style="dim")


def _words(probe: object) -> str:
    """A probe field by field, leaving out what it does not have."""
    import msgspec

    lines = [str(getattr(probe, "id", ""))]
    for name, value in msgspec.to_builtins(probe).items():
        if name == "id" or not value:
            continue
        entries = value if isinstance(value, list | tuple) else [value]
        for entry in entries:
            shown = (
                ", ".join(f"{k} = {v}" for k, v in entry.items() if v) if isinstance(entry, dict) else entry
            )
            lines.append(f"  {name:12} {shown}")
    return "\n".join(lines)
