"""JailbreakBench: harmful goals, and a second file with a benign goal for each behaviour.

Source: Chao et al. 2024 (arXiv 2404.01318), JBB-Behaviors (Index, Goal, Target, Behavior, Category,
Source). Rows of a file whose name has "benign" in it are benign probes. Read with the goals, they are the
twins of those with their index. A behaviour is one cluster. Decided by a judge.
"""

from __future__ import annotations

from collections.abc import Iterator

from heredity.redteam.probes.importers import FIELDS, ImportedItem, ImportSource, Skip, tabular

SOURCE = "Chao et al. 2024 (arXiv 2404.01318)"
BY_FILE = False
OPTIONS = (*FIELDS, "benign")
NAMES = {
    "prompt": ("Goal", "prompt"),
    "id": ("Behavior", "id"),
    "cluster": ("Behavior",),
    "index": ("Index", ""),
}


def rows(source: ImportSource) -> Iterator[ImportedItem | Skip]:
    """Every goal; benign ones if the file's name marks them as benign."""
    is_benign = "benign" in source.path.name.casefold()
    for line, cells, columns, row in tabular(source, NAMES):
        pair = columns.get(line, cells, "index")
        yield row if isinstance(row, Skip) else row._replace(is_benign=is_benign, pair=pair)
