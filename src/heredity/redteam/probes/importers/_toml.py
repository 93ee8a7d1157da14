"""Write imported probes as a technique's file, to read, prune and keep: a written file loads back equal.

Promises: the file keeps every text unchanged; nothing is overwritten (the caller writes).
Leaves to others: the licence of the set: the file holds its texts.
"""

from __future__ import annotations

import json
from typing import Any

from heredity.core.records import Probe
from heredity.redteam.probes.importers.protocols import Imported


def to_toml(found: Imported) -> str:
    """The TOML text of an import. Texts are marked as verbatim: their braces are not slots."""
    threats = found.probes[0].threats
    head = {
        "title": found.technique,
        "description": f"Imported, {found.source}.",
        "source": found.source,
        "technique": found.technique,
        "threats": list(threats),
        "check": {"kind": "refusal"},
        "why_no_twin": "imported: the set has none for it",
        "is_verbatim": True,
    }
    twins = {probe.id: probe for probe in found.probes if probe.twin and probe.kind == "benign"}
    items = [_item(p, twins, threats) for p in found.probes if p.id not in twins]
    return "\n\n".join([_lines(head), *(f"[[probe]]\n{_lines(item)}" for item in items)]) + "\n"


def _item(probe: Probe, twins: dict[str, Probe], threats: tuple[str, ...]) -> dict[str, Any]:
    item: dict[str, Any] = {
        "id": probe.id.partition("/")[2],
        "cluster": probe.cluster,
        "turns": list(probe.turns),
    }
    if probe.kind == "benign":
        item["kind"] = "benign"
    if probe.passage:
        item["passage"] = probe.passage
    if probe.check.kind == "marker":
        item["marker"] = probe.check.text
    if probe.twin:
        item["twin"] = {"passage": twins[probe.twin].passage}
    if probe.language != "en":
        item["language"] = probe.language
    if probe.threats != threats:
        item["threats"] = list(probe.threats)
    return item


def _lines(table: dict[str, Any]) -> str:
    return "\n".join(f"{key} = {_value(value)}" for key, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    # A JSON string is a TOML basic string but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
