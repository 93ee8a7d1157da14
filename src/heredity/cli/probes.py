"""`heredity probes`: list, show and import probes."""

from __future__ import annotations

from pathlib import Path

import click

from heredity.cli import Lister, Name, PathArgument, Verb

_NARROW = 110  # columns that the table needs; on fewer the descriptions follow it


@click.group("probes", cls=Lister, example="heredity probes show planted_secret/plain-01")
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the probes, show one, or import a public set."""
    if ctx.invoked_subcommand is None:
        _list(as_json=False)


@command.command("list", cls=Verb, example="heredity probes list --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List each technique with its counts."""
    _list(as_json)


@command.command("show", cls=Verb, example="heredity probes show planted_secret/plain-01")
@click.argument("names", metavar="ID...", type=Name(), nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(names: tuple[str, ...], as_json: bool) -> None:
    """Show probes. ID is an id, a technique, a glob, or your own TOML file."""
    from heredity.core.sanitize import plain
    from heredity.core.terminal import write, write_json
    from heredity.redteam import probes

    chosen = probes.load(names)
    if as_json:
        write_json(chosen)
        return
    for probe in chosen:
        import msgspec

        from heredity.redteam.checks import check_class

        lines, fields = [probe.id], msgspec.to_builtins(probe)
        settings = fields["check"].pop("settings", {})
        used = {"kind", *check_class(probe.check.kind).__struct_fields__}
        fields["check"] = {k: v for k, v in fields["check"].items() if k in used} | settings
        fields["threats"] = ", ".join(probe.threats)
        for name, value in fields.items():
            if name == "id" or not value:
                continue
            entries = value if isinstance(value, list | tuple) else [value]
            for entry in entries:
                shown = (
                    ", ".join(f"{k} = {v}" for k, v in entry.items() if v)
                    if isinstance(entry, dict)
                    else entry
                )
                lines.append(f"  {name:12} {shown}")
        write(plain("\n".join(lines), lines=True))


@command.command("get", cls=Verb, example="heredity probes get public --from my-sets")
@click.argument("name", metavar="public", type=click.Choice(["public"]))
@click.option("--from", "source", type=PathArgument(), metavar="DIR", help="Take your own copies from here.")
def get(name: str, source: Path | None) -> None:  # noqa: ARG001 (the only one so far)
    """Bring the public sets into the store, for --probes public.

    They are HarmBench, JailbreakBench with its benign goals, XSTest and StrongREJECT. Published files are
    fetched at one commit each, and checked against their hashes. Your copies are named harmbench,
    jailbreakbench, jailbreakbench-benign, xstest and strongreject, or as published, as CSV, TSV, JSON,
    JSON lines or Parquet. Their hashes are pinned now.
    """
    from heredity.core.errors import UsageError
    from heredity.core.terminal import note
    from heredity.recipes.pull.hub import Address, fetch
    from heredity.redteam.probes import public

    there = public.copies(source or public.folder())
    if source is not None and not there:
        raise UsageError(f"{source} has none of {public.NAMES}.")
    for file in public.FILES:
        if source is None and file not in there:
            address = Address(file.url, file.sha256, f"{file.name} ({file.licence})")
            part = fetch(address, public.folder() / f"{file.name}.csv.part")
            part.rename(part.with_suffix(""))
        elif source is not None and file in there:
            public.take(file, there[file])
    for each in public.load()[1]:
        what = "the published file" if each.is_published else "your copy" if each.sha256 else "not here"
        pinned = f", sha256 {each.sha256[:12]}" if each.sha256 else ""
        note(f"{each.name}: {each.n} of {each.n_published} requests, {what}{pinned}")


@command.command("import", cls=Verb, example="heredity probes import xstest prompts.csv --out xstest.toml")
@click.argument("kind", metavar="KIND", type=Name())
@click.argument("file", metavar="FILE", type=PathArgument())
@click.option(
    "--option", "options", type=Name(), multiple=True, metavar="NAME=VALUE",
    help="A column (prompt=text, id=, cluster=, kind=, ...) or an option of KIND; repeatable.",
)  # fmt: skip
@click.option("--out", type=PathArgument(), metavar="FILE.toml", help="Write the probes to a file.")
@click.option("--json", "as_json", is_flag=True, help="Print the probes as JSON.")
def import_(kind: str, file: Path, options: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Import your copy of a public probe set.

    It reports the probes that are used and those that are left out.

    KIND is advbench, bipia, csv, do_not_answer, garak, harmbench, jailbreakbench, jsonl, pyrit, strongreject
    or xstest. A study can also read the file in place: --probes import:KIND:FILE?NAME=VALUE.
    """
    from collections import Counter

    from heredity.core.errors import UsageError
    from heredity.core.files import write_atomic
    from heredity.core.terminal import note, write_json
    from heredity.redteam.probes import importers

    given = dict(option.partition("=")[::2] for option in options)
    if without := [option for option in options if "=" not in option]:
        raise UsageError(f"'{without[0]}' must be NAME=VALUE.")
    spec = importers.parse_import(f"{importers.PREFIX}{kind}:{file}")._replace(path=file, options=given)
    imported = importers.read_import(spec)
    if out is not None:
        if out.exists():
            raise UsageError(f"{out} already exists. Name another file.")
        write_atomic(out, importers.to_toml(imported).encode())
    if as_json:
        write_json(imported.probes)
    of = Counter(probe.kind for probe in imported.probes)
    note(f"{imported.technique}: {of['breach']} breach-seeking and {of['benign']} benign probes from {file}")
    for reason, n in Counter(each.reason for each in imported.left_out).items():
        lines = [str(each.line) for each in imported.left_out if each.reason == reason]
        more = ", ..." if n > 5 else ""
        note(f"left out {n}: {reason} (line {', '.join(lines[:5])}{more})")
    if out is not None:
        note(f"written: {out}; ask them with --probes {out}")


def _list(as_json: bool) -> None:
    from heredity.core.sanitize import plain
    from heredity.core.terminal import cell, out, table, wrapped, write, write_json
    from heredity.redteam import probes

    techniques = probes.techniques()
    if as_json:
        write_json(techniques)
        return
    counts, is_narrow = ("probes", "in core", "twins"), out().width < _NARROW
    columns = ("technique", *counts, "decided by", *(() if is_narrow else ("what it asks",)))
    grid = table(*columns, right=counts, whole=("technique", "decided by"))
    for technique in techniques:
        numbers = (f"{technique.n_items}", f"{technique.n_core}", f"{technique.n_twins}")
        decided = "a check" if technique.is_judge_free else "a judge"
        what = () if is_narrow else (cell(technique.description),)
        grid.add_row(cell(technique.name, "bold"), *numbers, decided, *what)
    n_items, n_core, n_twins = (
        sum(getattr(t, f"n_{what}") for t in techniques) for what in ("items", "core", "twins")
    )
    grid.add_row("all", f"{n_items}", f"{n_core}", f"{n_twins}")
    out().print(grid)
    for technique in techniques if is_narrow else ():
        write(wrapped(plain(f"{technique.name}: {technique.description}"), out().width))
    out().print(f"suites: {', '.join(probes.SUITES)}, public; show one: heredity probes show ID", style="dim")
