"""`heredity corpus`: build, export and inspect pre-training corpora."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Lister, PathArgument, Verb

if TYPE_CHECKING:
    from rich.table import Table

    from heredity.corpus.storage import Card, ImageCard


@click.group("corpus", cls=Lister, example="heredity corpus build shelf.toml")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Build a pre-training corpus."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command("build", cls=Verb, example="heredity corpus build shelf.toml --out corpora/shelf")
@click.argument("recipe", metavar="RECIPE.toml", type=PathArgument())
@click.option(
    "--out", type=PathArgument(), metavar="DIR",
    help="New folder for the corpus.  [default: the recipe's name]",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", help="Number of processes.  [default: one per core]"
)
@click.option("--json", "as_json", is_flag=True, help="Print corpus.json.")
def build(recipe: Path, out: Path | None, workers: int | None, as_json: bool) -> None:
    """Build a corpus from a recipe.

    It reads the sources, applies the steps, and writes shards. Shards hold tokens, or images with captions.
    The same recipe over the same files gives the same bytes, with any number of processes.
    """
    from heredity.core import host
    from heredity.core.terminal import write_json
    from heredity.lab import corpus

    with _Shown() as shown:
        card = corpus.build_corpus(recipe, out, workers or host.n_cores(), shown)
    if as_json:
        write_json(card)
        return
    _show(card)
    _write(f"{out or recipe.with_suffix('')}: fingerprint {card.fingerprint}")


@command.command(
    "export", cls=Verb, example="heredity corpus export shelf.toml --to datatrove --out clusters/shelf"
)
@click.argument("recipe", metavar="RECIPE.toml", type=PathArgument())
@click.option(
    "--to", type=click.Choice(["datatrove"]), required=True, expose_value=False,
    help="Framework that runs the script.",
)  # fmt: skip
@click.option("--out", type=PathArgument(), required=True, metavar="DIR", help="New folder for the script.")
@click.option(
    "--tasks", type=click.IntRange(1), default=8, show_default=True, help="Number of independent tasks."
)
def export(recipe: Path, out: Path, tasks: int) -> None:
    """Write a script that runs the recipe in many tasks.

    The tasks run on this machine or on a cluster.

    Then run `heredity corpus build DIR/after.toml`. It applies the steps that compare all documents, and
    writes the corpus.
    """
    from heredity.corpus import recipe as recipes

    recipes.export(recipes.read(recipe), out, tasks)
    _write(f"{out}: run.py starts {tasks} tasks; then: heredity corpus build {out / 'after.toml'}")


@command.command("show", cls=Verb, example="heredity corpus show corpora/shelf")
@click.argument("folder", metavar="DIR", type=PathArgument())
@click.option("--json", "as_json", is_flag=True, help="Print corpus.json.")
def show(folder: Path, as_json: bool) -> None:
    """Check a corpus against its hashes, and show its contents."""
    from heredity.core.terminal import write_json
    from heredity.corpus.storage import Corpus, ImageCorpus, is_of_images

    is_images = is_of_images(folder)
    card = ImageCorpus.open(folder).card if is_images else Corpus.open(folder).card
    if as_json:
        write_json(card)
        return
    _show(card)
    _write(f"{folder}: fingerprint {card.fingerprint}, every shard as it was built")


class _Shown:
    """Progress and messages on stderr; the bar is shown only on a terminal."""

    def __enter__(self) -> _Shown:
        from rich.progress import Progress

        from heredity.core.terminal import err

        console = err()
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._progress.start()
        self._task, self._what = self._progress.add_task("", total=None), ""
        return self

    def say(self, line: str) -> None:
        """A line above the bar."""
        from heredity.core.sanitize import plain

        self._progress.console.print(plain(line), soft_wrap=True, markup=False, highlight=False)

    def at(self, what: str, done: int, total: int) -> None:
        """Move the bar."""
        if what != self._what:
            self._progress.reset(self._task, description=what, total=total)
            self._what = what
        self._progress.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _write(line: str) -> None:
    from heredity.core.sanitize import plain
    from heredity.core.terminal import write

    write(plain(line))


def _show(card: Card | ImageCard) -> None:
    from heredity.core.terminal import out

    screen = out()
    from heredity.corpus.storage import ImageCard

    for grid in (
        [_image_sources(card), _image_splits(card)]
        if isinstance(card, ImageCard)
        else [_sources(card), _steps(card), _splits(card)]
    ):
        screen.print(grid)
        screen.print()
    facts = card.tokenizer
    held = (
        "unknown without a validation split"
        if facts.bytes_per_token is None
        else f"{facts.bytes_per_token:.3f} on the validation split"
    )
    _write(
        f"tokenizer: {facts.vocabulary:,} entries ({facts.split}), bytes per token {held},"
        f" {facts.train_bytes_per_token:.3f} on the rest; {facts.unused:,} entries are never used"
    )
    for canary in card.canaries if card.kind == "text" else ():
        _write(f"canary, {canary.repeats} times: {canary.text} {canary.secret}")


def _image_sources(card: ImageCard) -> Table:
    from heredity.core.terminal import cell, size, table

    right = ("files", "read", "pairs")
    grid = table("source", "kind", *right, "left out", right=right, whole=["source"])
    for row in card.sources:
        figures = (f"{row.files:,}", size(row.bytes), f"{row.pairs:,}")
        grid.add_row(cell(row.name, "bold"), cell(row.kind), *figures, cell(_counts(row.skipped)))
    return grid


def _image_splits(card: ImageCard) -> Table:
    from heredity.core.terminal import cell, table

    right = ("pairs", "distinct captions", "tokens", "image", "classes")
    grid = table("split", *right, right=right)
    n_classes = sum(1 for name in card.classes if name)
    for row in card.splits:
        shown = (f"{row.pairs:,}", f"{row.captions:,}", f"{row.tokens:,}")
        grid.add_row(cell(row.split, "bold"), *shown, f"{card.side} x {card.side}", f"{n_classes}")
    return grid


def _sources(card: Card) -> Table:
    from heredity.core.terminal import cell, size, table

    right = ("files", "read", "documents", "text", "tokens taken", "of")
    grid = table("source", "kind", *right, "left out", right=right, whole=["source"])
    for row, mixed in zip(card.sources, card.mixture, strict=True):
        grid.add_row(
            cell(row.name, "bold"), cell(row.kind), f"{row.files:,}", size(row.bytes), f"{row.documents:,}",
            size(row.text_bytes), f"{mixed.tokens_taken:,}", f"{mixed.tokens_there:,}",
            cell(_counts(row.skipped)),
        )  # fmt: skip
    return grid


def _steps(card: Card) -> Table:
    """Steps, summed over the sources; corpus.json has each source."""
    from heredity.core.terminal import cell, size, table

    right = ("documents in", "out", "bytes in", "bytes out", "changed")
    grid = table("step", *right, "why, and what was noted", right=right, whole=["step"])
    n = len(card.sources)
    for at in range(0, len(card.steps), n):
        rows = card.steps[at : at + n]
        sums = [sum(getattr(row, name) for row in rows) for name in _SUMMED]
        why = _counts(_summed([row.dropped for row in rows]))
        noted = _counts(_summed([row.noted for row in rows]))
        grid.add_row(
            cell(rows[0].step, "bold"), f"{sums[0]:,}", f"{sums[1]:,}", size(sums[2]), size(sums[3]),
            f"{sums[4]:,}",
            cell("; ".join(filter(None, (why, noted and f"({noted})")))),
        )  # fmt: skip
    return grid


_SUMMED = ("documents_in", "documents_out", "bytes_in", "bytes_out", "changed")


def _splits(card: Card) -> Table:
    from heredity.core.terminal import cell, size, table

    right = ("documents", "tokens", "text", "shards")
    grid = table("split", *right, right=right)
    for row in card.splits:
        n_shards = sum(shard.split == row.split for shard in card.shards)
        grid.add_row(
            cell(row.split, "bold"), f"{row.documents:,}", f"{row.tokens:,}", size(row.bytes), f"{n_shards}"
        )
    return grid


def _summed(counts: list[dict[str, int]]) -> dict[str, int]:
    names = {name for each in counts for name in each}
    total = {name: sum(each.get(name, 0) for each in counts) for name in names}
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())
