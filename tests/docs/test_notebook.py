"""The notebook of examples/ runs from top to bottom, as a person who presses Run All sees it."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import ROOT

NOTEBOOK = ROOT / "examples" / "read-a-study.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; return the value of its last line if that is an expression."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), str(NOTEBOOK), "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)  # noqa: S307


def test_the_notebook_runs_and_is_stored_without_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "examples" / "support-desk.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    found = json.loads(NOTEBOOK.read_text("utf-8"))
    cells = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    assert found["nbformat"] == 4 and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names: dict[str, Any] = {"__name__": "__main__"}
    values = [run_cell("".join(cell["source"]), names) for cell in cells]
    shown = values[1]._repr_html_()
    assert "<table>" in shown and "scripted:leaky" in shown.partition("<table>")[0]  # the sentence
    assert values[3][3] > 0 and "scripted:careful" in values[4]
    assert values[-1].is_file() and values[5][0][0].startswith("planted_secret/")
