"""PyRIT's seed files: YAML (*.prompt, *.yaml) with `seeds` (older: `prompts`), each with a value.

Source: PyRIT 1.1 (MIT), pyrit/datasets/seed_datasets. Text only: images and sounds are left out.
Seeds of one prompt_group_alias are one conversation, its user turns in their sequence. The assistant's
scripted turns between them are left out. A jailbreak template (a `value` with a place for the prompt) is not
a probe. A judge decides. Lines count seeds, since YAML keeps no lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from heredity.core.errors import BadInput, nearest
from heredity.core.readers import text_of
from heredity.redteam.probes.importers import ImportedItem, ImportSource, Skip

SOURCE = "PyRIT (MIT)"
BY_FILE = True
OPTIONS: tuple[str, ...] = ()
_NO_TEXT = "no text: data_type {}"


def rows(source: ImportSource) -> Iterator[ImportedItem | Skip]:
    """Every seed of text, or every conversation of them."""
    try:
        data = msgspec.yaml.decode(text_of(source.path))
    except ImportError:
        raise BadInput(source.path, "is YAML, which needs the package PyYAML: pip install pyyaml") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadInput(source.path, f"not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(data, dict):
        raise BadInput(source.path, "is no seed file of PyRIT: there is no `seeds` in it")
    seeds = _seeds(source.path, data)
    groups: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for number, seed in enumerate(seeds, 1):
        merged = {"data_type": data.get("data_type", "text"), **seed}
        kind = merged["data_type"]
        if kind != "text":
            yield Skip(number, _NO_TEXT.format(kind))
        elif merged.get("role") in ("assistant", "system", "simulated_assistant"):
            yield Skip(number, f"not the user's turn: {merged['role']}")
        else:
            alias = merged.get("prompt_group_alias") if "sequence" in merged else None
            groups.setdefault(str(alias) if alias else f"#{number}", []).append((number, merged))
    for alias, members in groups.items():
        members.sort(key=lambda member: _order(source.path, *member))
        turns = tuple(_value(source.path, number, seed) for number, seed in members)
        if all(turns):
            yield ImportedItem(members[0][0], turns, "" if alias.startswith("#") else alias)
        else:
            yield Skip(members[0][0], "it has no value")


def _seeds(path: Path, data: dict[str, Any]) -> list[dict[str, Any]]:
    seeds = data.get("seeds", data.get("prompts"))
    if seeds is None:
        why = " It is a jailbreak template: lay it over probes as an attack." if "value" in data else ""
        near = nearest("seeds", [str(key) for key in data])
        raise BadInput(
            path, f"there is no `seeds` in it.{why or (f' Did you mean {near!r}?' if near else '')}"
        )
    if not isinstance(seeds, list) or not seeds:
        raise BadInput(path, "`seeds` is no list, or an empty one")
    for number, seed in enumerate(seeds, 1):
        if not isinstance(seed, str | dict):
            raise BadInput(path, f"seed {number} is neither a text nor a table")
    return [{"value": seed} if isinstance(seed, str) else seed for seed in seeds]


def _value(path: Path, number: int, seed: dict[str, Any]) -> str:
    value = seed.get("value", "")
    if not isinstance(value, str):
        raise BadInput(path, f"the value of seed {number} is {type(value).__name__}, not text")
    return value.strip()


def _order(path: Path, number: int, seed: dict[str, Any]) -> int:
    sequence = seed.get("sequence", 0)
    if not isinstance(sequence, int):
        raise BadInput(path, f"the sequence of seed {number} is no number")
    return sequence
