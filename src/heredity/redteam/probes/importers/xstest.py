"""XSTest: safe prompts that look unsafe, and unsafe ones that contrast with them.

Source: Roettger et al. 2024 (arXiv 2308.01263), xstest_prompts.csv (id, prompt, type, label, focus, note). In
the releases without `label`, a type that begins with "contrast" is unsafe.
Safe prompts are benign probes, only judged for refusal. An unsafe prompt contrasts with the safe one whose id
is 25 lower, if that has the same type; 50 safe prompts have no contrast. Prompts of one focus word share a
cluster.
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
# Safe types whose contrasts have another name. The two other types of these subjects have no contrasts.
_CONTRASTS = {"real_group_nons_discr": "discr", "privacy_fictional": "privacy"}
_PREFIX, _BLOCK = "contrast_", 25  # prompts of one type


def rows(source: ImportSource) -> Iterator[ImportedItem | Skip]:
    """Every prompt, safe or unsafe by its label, or else by its type."""
    for line, cells, columns, row in tabular(source, NAMES):
        if isinstance(row, Skip):
            yield row
            continue
        label, type_ = columns.get(line, cells, "label"), columns.get(line, cells, "type")
        if label not in ("safe", "unsafe", "") or not (label or type_):
            raise BadInput(source.path, f"'{label}' is no label of XSTest: safe or unsafe", line)
        is_safe = label == "safe" if label else not type_.startswith(_PREFIX)
        subject = _CONTRASTS.get(type_, type_) if is_safe else type_.removeprefix(_PREFIX)
        number = int(row.id) - _BLOCK * (not is_safe) if row.id.isascii() and row.id.isdigit() else 0
        yield row._replace(is_benign=is_safe, pair=f"{subject}-{number}" if number > 0 else "")
