"""The questions of bench/retrieval.py: each names a section that docs/ has."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROWS = [json.loads(line) for line in (ROOT / "bench" / "retrieval.jsonl").read_text("utf-8").splitlines()]


def test_every_question_has_its_section() -> None:
    assert len(ROWS) >= 40
    assert len({row["question"] for row in ROWS}) == len(ROWS)
    for row in ROWS:
        page = (ROOT / "docs" / row["path"]).read_text("utf-8")
        assert re.search(rf"^#+ {re.escape(row['heading'])}$", page, re.MULTILINE), row
