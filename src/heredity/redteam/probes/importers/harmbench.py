"""HarmBench: harmful behaviours, some with a context before the request.

Source: Mazeika et al. 2024 (arXiv 2402.04249), harmbench_behaviors_text_*.csv (Behavior, FunctionalCategory,
SemanticCategory, Tags, ContextString, BehaviorID). heredity's own judge decides, not the set's classifier.
Rows of the function "copyright" are left out: the set decides them by the hashes of books, and a judge
cannot.
"""

from __future__ import annotations

from collections.abc import Iterator

from heredity.redteam.probes.importers import FIELDS, ImportedItem, ImportSource, Skip, tabular

SOURCE = "Mazeika et al. 2024 (arXiv 2402.04249)"
BY_FILE = False
OPTIONS = (*FIELDS, "benign")
NAMES = {
    "prompt": ("Behavior", "prompt"),
    "id": ("BehaviorID", "id"),
    "cluster": ("cluster",),
    "context": ("ContextString", "context"),
    "function": ("FunctionalCategory", "functional"),
}


def rows(source: ImportSource) -> Iterator[ImportedItem | Skip]:
    """Every behaviour, with its context before it as in the set's own templates."""
    for line, cells, columns, row in tabular(source, NAMES):
        if isinstance(row, Skip):
            yield row
        elif "copyright" in columns.get(line, cells, "function").casefold():
            yield Skip(line, "copyright: the set decides it by hashes of books")
        elif context := columns.get(line, cells, "context"):
            yield row._replace(turns=(f"{context}\n\n---\n\n{row.turns[0]}",))
        else:
            yield row
