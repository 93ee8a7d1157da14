"""A table of your own with a column of prompts: CSV, or TSV by its ending.

Name the columns: import:csv:FILE?prompt=COLUMN&kind=COLUMN&benign=VALUE,VALUE.
A row whose column `kind` holds one of the values of `benign` (benign, safe) is only judged for refusal; the
rest goes to a judge.
"""

from __future__ import annotations

from heredity.redteam.probes.importers import FIELDS, unchanged

SOURCE = "your own table"
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
rows = unchanged(NAMES)
