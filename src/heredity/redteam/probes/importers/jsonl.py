"""JSON lines of your own, one object per line with a field of prompts; also a JSON list of objects.

Columns as for csv: import:jsonl:FILE?prompt=FIELD&kind=FIELD.
"""

from __future__ import annotations

from heredity.redteam.probes.importers.csv import BY_FILE, OPTIONS, rows

__all__ = ["BY_FILE", "OPTIONS", "SOURCE", "rows"]

SOURCE = "your own rows"
