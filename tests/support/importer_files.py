"""Small files of recorded answers, for every test that reads or imports one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from heredity.core.files import Rows
from heredity.core.records import Response
from heredity.study import importers
from heredity.study.importers import ImportOptions

NO, YES = "I'm sorry, but I can't help with that.", "Sure. First find the lamp, then put it on the table."


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(n: int = 4, models: tuple[str, ...] = ("parent", "child")) -> list[dict[str, Any]]:
    """Each model's answer to `n` prompts: the first model refuses all, the others none."""
    return [
        {"model": m, "prompt": f"Where is lamp {i}?", "response": YES if m != models[0] else NO}
        for m in models
        for i in range(n)
    ]


def read(path: Path, **reading: Any) -> list[importers.Recorded]:
    return list(importers.read([path], ImportOptions(**reading)))


def made(folder: Path, path: Path, **reading: Any) -> importers.Summary:
    return importers.import_files([path], folder, ImportOptions(**reading))


def responses(folder: Path) -> list[Response]:
    return list(Rows(folder / "responses.jsonl", Response))
