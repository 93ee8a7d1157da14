"""JailbreakBench: harmful goals, and a second file with a benign goal for each behaviour.

Source: Chao et al. 2024 (arXiv 2404.01318), JBB-Behaviors (Index, Goal, Target, Behavior, Category,
Source). Rows of a file whose name has "benign" in it are benign probes. A behaviour is one cluster. Decided
by a judge.
"""

from __future__ import annotations

from collections.abc import Iterator

from heredity.redteam.probes.importers import FIELDS, ImportedItem, ImportSource, Skip, tabular

SOURCE = "Chao et al. 2024 (arXiv 2404.01318)"
BY_FILE = False
OPTIONS = (*FIELDS, "benign")
NAMES = {"prompt": ("Goal", "prompt"), "id": ("Behavior", "id"), "cluster": ("Behavior",)}


def rows(source: ImportSource) -> Iterator[ImportedItem | Skip]:
    """Every goal; benign ones if the file's name marks them as benign."""
    is_benign = "benign" in source.path.name.casefold()
    for *_, row in tabular(source, NAMES):
        yield row if isinstance(row, Skip) else row._replace(is_benign=is_benign)
