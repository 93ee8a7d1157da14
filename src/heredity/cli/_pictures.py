"""What is in a corpus of pictures, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from heredity.corpus.images.card import PictureCard


def grids(card: PictureCard) -> list[Table]:
    """Sources, and splits."""
    return [_sources(card), _splits(card)]


def _sources(card: PictureCard) -> Table:
    from heredity.cli._terminal import cell, size, table

    right = ("files", "read", "pairs")
    grid = table("source", "kind", *right, "left out", right=right, whole=["source"])
    for row in card.sources:
        out = ", ".join(f"{name} {n:,}" for name, n in row.skipped.items())
        figures = (f"{row.files:,}", size(row.bytes), f"{row.pairs:,}")
        grid.add_row(cell(row.name, "bold"), cell(row.kind), *figures, cell(out))
    return grid


def _splits(card: PictureCard) -> Table:
    from heredity.cli._terminal import cell, table

    right = ("pairs", "different captions", "tokens", "picture", "classes")
    grid = table("split", *right, right=right)
    n_classes = sum(1 for name in card.classes if name)
    for row in card.splits:
        shown = (f"{row.pairs:,}", f"{row.captions:,}", f"{row.tokens:,}")
        grid.add_row(cell(row.split, "bold"), *shown, f"{card.side} x {card.side}", f"{n_classes}")
    return grid
