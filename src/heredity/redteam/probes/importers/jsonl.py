"""JSON lines of your own, one object per line with a field of prompts; also a JSON list of objects.

Columns as for csv: import:jsonl:FILE?prompt=FIELD&kind=FIELD.
"""

from __future__ import annotations

from collections.abc import Iterator

from heredity.redteam.probes.importers.protocols import FIELDS, ImportedItem, ImportSource, Skip, tabular

SOURCE = "your own rows"
BY_FILE = True
OPTIONS = (*FIELDS, "benign")
NAMES = {
    "prompt": ("prompt",),
    "id": ("id",),
    "cluster": ("cluster", "category"),
    "category": ("category",),
    "passage": ("passage",),
    "kind": ("kind",),
    "language": ("language",),
}


def rows(source: ImportSource) -> Iterator[ImportedItem | Skip]:
    """Every row unchanged."""
    return (row for _, _, _, row in tabular(source, NAMES))
