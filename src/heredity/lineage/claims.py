"""The parents that a model's own files name: an adapter's config, the card, a GGUF.

Promises: JSON, the head of a card and a GGUF's metadata are read. Folders of another machine are left out.
Leaves to others: whether the values support it (evidence.py).
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

from heredity.formats.gguf import GgufHeader, read_gguf

_MOST_CARD = 1 << 16  # bytes of a card's metadata
_NAME = 120  # characters of a claimed name
_BASE_OF_CARD = re.compile(r"^base_model:[ \t]*(.*(?:\n[ \t]*- .*)*)", re.MULTILINE)


def read_claims(folder: Path) -> dict[str, list[str]]:
    """Return the parents that a model's own files name, by the file and field."""
    found: dict[str, list[str]] = {}
    with suppress(OSError, ValueError, AttributeError):
        base = json.loads((folder / "adapter_config.json").read_bytes()).get("base_model_name_or_path")
        found["adapter_config.json"] = [base] if isinstance(base, str) else []
    with suppress(OSError):
        found["README.md"] = _bases_of_card(folder / "README.md")
    for path in sorted(folder.glob("*.gguf")):
        found[path.name] = _bases_of_gguf(read_gguf(path))
    shown = {place: [_shown(name) for name in names if name.strip()] for place, names in found.items()}
    return {place: names for place, names in shown.items() if names}


def _bases_of_card(path: Path) -> list[str]:
    with path.open("rb") as file:
        text = file.read(_MOST_CARD).decode("utf-8", "replace")
    parts = text.split("---", 2)
    match = _BASE_OF_CARD.search(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    if match is None:
        return []
    return [name for line in match[1].splitlines() if (name := line.strip().lstrip("-").strip(" '\"[]"))]


def _bases_of_gguf(header: GgufHeader) -> list[str]:
    count = header.metadata.get("general.base_model.count", 0)
    n = count if isinstance(count, int) else 0
    keys = [f"general.base_model.{at}" for at in range(min(n, 16))]
    return [header.text(f"{key}.repo_url") or header.text(f"{key}.name") for key in keys]


def _shown(name: str) -> str:
    """A claimed name without the folders of another machine's path."""
    name = name.strip()
    if re.match(r"https?://", name):
        name = "/".join(name.rstrip("/").split("/")[-2:])
    if name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1:
        name = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return "".join(c if c.isprintable() else "?" for c in name)[:_NAME]
