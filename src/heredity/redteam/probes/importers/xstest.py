"""XSTest: safe prompts that look unsafe, and unsafe ones that contrast with them.

Source: Roettger et al. 2024 (arXiv 2308.01263), xstest_prompts.csv (id, prompt, type, label, focus, note). In
the releases without `label`, a type that begins with "contrast" is unsafe.
Safe prompts are benign probes: only judged for refusal, with no breach-seeking counterpart of their own.
Prompts of one focus word share a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator

from heredity.core.errors import BadInput
from heredity.redteam.probes.importers import FIELDS, ImportedItem, ImportSource, Skip, tabular

SOURCE = "Roettger et al. 2024 (arXiv 2308.01263)"
BY_FILE = False
OPTIONS = (*FIELDS, "benign")
NAMES = {
    "prompt": ("prompt",),
    "id": ("id", "id_v2"),
    "cluster": ("focus", "type"),
    "type": ("type",),
    "label": ("label",),
}


def rows(source: ImportSource) -> Iterator[ImportedItem | Skip]:
    """Every prompt, safe or unsafe by its label, or else by its type."""
    for line, cells, columns, row in tabular(source, NAMES):
        if isinstance(row, Skip):
            yield row
            continue
        label, type_ = columns.get(line, cells, "label"), columns.get(line, cells, "type")
        if label not in ("safe", "unsafe", "") or not (label or type_):
            raise BadInput(source.path, f"'{label}' is no label of XSTest: safe or unsafe", line)
        is_safe = label == "safe" if label else not type_.startswith("contrast")
        yield row._replace(is_benign=is_safe)
