"""`heredity models`: list the store and the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from heredity.cli import Verb, open_store

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from heredity.engines.remote.services import KnownModel
    from heredity.lineage.catalog import Entry
    from heredity.lineage.store import Store


_HERE = "in the store"
_OTHERS = 8 + 11 + 7 + 12 + 8  # columns of an id, a format, a size and a licence, and between them
_ANSWERS = 7 + 2


@click.command("models", cls=Verb, example="heredity models --tree")
@click.option("--tree", "as_tree", is_flag=True, help="Draw the lineage, foundations first.")
@click.option(
    "--catalog", is_flag=True, help="List the models of the catalogue; those in the store are marked."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_tree: bool, catalog: bool, as_json: bool) -> None:
    """List the models in the store, or those that can be pulled."""
    from heredity.core.terminal import note

    store = open_store()
    for _, problem in store.damaged():
        note(f"warning: {problem}")
    if catalog:
        _show_catalog(store, as_json)
    elif as_json:
        from heredity.core.terminal import write_json

        write_json(store.models())
    elif as_tree:
        from heredity.core.sanitize import plain
        from heredity.core.terminal import write
        from heredity.lineage.graph import forest

        if models := store.models():
            write(plain(forest(models), lines=True))
    else:
        _show_models(store)


def _show_models(store: Store) -> None:
    from heredity.core.sanitize import plural
    from heredity.core.terminal import cell, note, out, size, table
    from heredity.lineage.removal import tree_bytes
    from heredity.train.data.chat import ANSWERS

    models = store.models()
    if not models:
        note(f"No model in {store.root} yet. See what can be pulled: heredity models --catalog")
        return
    answers = [next((size(f.bytes) for f in model.files if f.path == ANSWERS), "") for model in models]
    more = ["answers"] if any(answers) else []
    # No column but name and licence may be narrower than its text: a size would lose its unit.
    width = out().width - _OTHERS - (_ANSWERS if more else 0)
    whole = ["name"] if max(len(model.name) for model in models) <= width else []
    grid = table(
        "name", "id", "format", "size", "licence", *more,
        right=["size", *more], whole=[*whole, "id", "format"],
    )  # fmt: skip
    for model, kept in zip(models, answers, strict=True):
        total = size(sum(file.bytes for file in model.files))
        grid.add_row(
            cell(model.name, "bold"), cell(model.id[:8]), cell(model.format), total,
            cell(model.licence), *([kept] if more else []),
        )  # fmt: skip
    out().print(grid)
    n_models = sum(file.bytes for model in models for file in model.files)
    all_bytes = tree_bytes(store.root)
    n = plural(len(models), "model")
    note(f"{n}, {size(n_models)}; {size(all_bytes)} in {store.root}. See: heredity gc")


def _show_catalog(store: Store, as_json: bool) -> None:
    from heredity.core.terminal import write_json
    from heredity.engines.remote.services import known_models
    from heredity.lineage import catalog

    held = {model.name for model in store.models()}
    known = catalog.catalogue()
    if as_json:
        models = {name: _as_json(entry, name in held) for name, entry in known.items()}
        write_json(models | {name: _service_as_json(each) for name, each in known_models().items()})
        return
    _show_pinned({name: entry for name, entry in known.items() if entry.is_pinned}, held)
    _show_families({name: entry for name, entry in known.items() if not entry.is_pinned}, held)
    _show_services()


def _as_json(entry: Entry, is_here: bool) -> dict[str, object]:
    import msgspec

    more = {"n_bytes": entry.n_bytes, "is_exact": entry.is_pinned, "memory": entry.memory()}
    return {**msgspec.to_builtins(entry), **more, "is_in_store": is_here}


def _show_pinned(entries: Mapping[str, Entry], held: Collection[str]) -> None:
    """Print the models whose files the catalogue pins."""
    from heredity.core.terminal import cell, out, size, table

    grid = table("name", "size", "licence", "note", right=["size"], whole=["name"])
    for name, entry in entries.items():
        about = f"{_HERE}{'; ' * bool(entry.about)}" * (name in held) + entry.about
        grid.add_row(cell(name, "bold"), size(entry.n_bytes), cell(entry.licence), cell(about))
    out().print(grid)


def _show_families(entries: Mapping[str, Entry], held: Collection[str]) -> None:
    """Print the open families: a heading for each licence, and a line per model of 80 columns at most."""
    from itertools import groupby

    from heredity.core.terminal import cell, note, out, parameters

    line = "  {:<35}{:>7}{:>9}{:>8}  {}".format
    groups = groupby(entries.items(), lambda each: (each[1].family, each[1].licence, each[1].hub.gated))
    for (family, licence, gated), models in groups:
        out().print()
        out().print(cell(f"{family}: {licence}{', gated' if gated else ''}", "bold"))
        for name, entry in models:
            kind = "" if entry.chat else "base" if entry.modality == "text" else entry.modality
            kind = ", ".join(filter(None, (_HERE * (name in held), kind)))
            numbers = parameters(entry.parameters), _about(entry.n_bytes), _thousands(entry.context)
            out().print(cell(line(name, *numbers, kind).rstrip()), soft_wrap=True)
    if entries:
        note("The columns are parameters, approximate size of the files, and context in tokens.")
        note("Weights take 2 bytes per parameter in bfloat16, 4 in float32, 1 in int8.")


def _service_as_json(known: KnownModel) -> dict[str, object]:
    import msgspec

    return {**msgspec.to_builtins(known), "reference": known.reference}


def _show_services() -> None:
    """Print the known models behind APIs: a heading for each vendor, and a line per model."""
    from itertools import groupby

    from heredity.core.terminal import cell, note, out
    from heredity.engines.remote.services import known_models

    line = "  {:<35}{:>7}{:>9}{:>8}  {}".format
    vendors = groupby(known_models().values(), lambda known: (known.vendor, known.variable, known.as_of))
    for (vendor, variable, as_of), models in vendors:
        out().print()
        dated = f", prices as of {as_of}" if as_of else ""
        out().print(cell(f"{vendor}{f': key in {variable}' if variable else ''}{dated}", "bold"))
        for known in models:
            prices = [f"${each:g}" for each in known.price[:2]] if known.price else ["", ""]
            text = line(known.name, *prices, _thousands(known.context), known.about)
            out().print(cell(text.rstrip()), soft_wrap=True)
    note("The columns are dollars per million tokens of input and of output, and context in tokens.")


def _about(n_bytes: int) -> str:
    """`~16 GB`: two digits of a size that only the hub knows exactly."""
    from heredity.core.terminal import size

    digits = len(str(n_bytes)) - 2
    amount, unit = size(round(n_bytes, -digits)).split()
    return f"~{amount.removesuffix('.0')} {unit}"


def _thousands(tokens: int) -> str:
    if tokens < 1000:
        return str(tokens)
    return f"{tokens // 1000}k" if tokens % 1000 == 0 else f"{tokens // 1024}k"
