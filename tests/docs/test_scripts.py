"""The scripts of bench/ and examples/ start; they and those of tools/ use only names that the package has.

Promises: every import of heredity in a script resolves, those inside functions too, and so does every name
that a script takes from an imported module of heredity.
Leaves to others: what a script measures; that takes minutes, and peers that are not installed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

import heredity as h
from heredity.lab.plan import read_plan
from heredity.lab.runner import Lineage, application, chosen_probes
from tests.support.documents import ROOT, Block, blocks, pages

SCRIPTS = [
    path
    for folder in ("bench", "examples", "tools")
    for path in sorted((ROOT / folder).glob("*.py"))
    if not path.name.startswith("_")
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.parent.name != "tools"], ids=name)
def test_a_script_shows_its_help(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code in (0, None)
    assert capsys.readouterr().out.startswith("usage: ")


def missing_names(code: str) -> Iterator[str]:
    """The names of heredity that a script uses and the package does not have: imports first."""
    tree, modules, others = ast.parse(code), dict[str, ModuleType](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name.split(".")[0] == "heredity":
                    modules[each.asname or "heredity"] = importlib.import_module(each.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "heredity":
            for each in node.names:
                try:
                    found = getattr(importlib.import_module(str(node.module)), each.name, None)
                    found = found or importlib.import_module(f"{node.module}.{each.name}")
                except ImportError:
                    yield f"line {node.lineno}: from {node.module} import {each.name}"
                    continue
                if isinstance(found, ModuleType):
                    modules[each.asname or each.name] = found
                else:
                    others.add(each.asname or each.name)
    used = [(node.value.id, node) for node in ast.walk(tree) if _is_of_a_name(node)]
    for owner, node in used:
        if owner in modules and owner not in others and not hasattr(modules[owner], node.attr):
            yield f"line {node.lineno}: {owner}.{node.attr}"


def _is_of_a_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_uses_only_names_that_exist(script: Path) -> None:
    pytest.importorskip("torch")
    assert list(missing_names(script.read_text("utf-8"))) == []


CODE = [
    (page, block)
    for page in pages()
    if page.name != "api.md"  # written from the code: its signatures are no code
    for block in blocks(page.read_text("utf-8"))
    if block.language == "python"
]
HELD = {"store": h.Store, "study": h.Study, "result": h.Result}  # what the documents call these


@pytest.mark.parametrize(("page", "block"), CODE, ids=lambda each: getattr(each, "name", ""))
def test_the_code_of_a_page_uses_only_names_that_exist(page: Path, block: Block) -> None:
    code = "\n".join(block.content)
    assert list(missing_names(code)) == []
    used = [(node.value.id, node.attr) for node in ast.walk(ast.parse(code)) if _is_of_a_name(node)]
    assert [f"{owner}.{name}" for owner, name in used if owner in HELD and not _has(HELD[owner], name)] == []


def _has(kind: type, name: str) -> bool:
    return hasattr(kind, name) or name in inspect.getsource(kind)  # an attribute that __init__ sets


def test_a_name_that_is_gone_is_found() -> None:
    code = """
import heredity as h
def work():
    from heredity.stats import intervals
    from heredity.stats.intervals import wilson, gone
    from heredity.nowhere import anything
    intervals.wilson(1, 2), intervals.lost(1), h.Study, h.Absent
"""
    assert sorted(missing_names(code)) == [
        "line 5: from heredity.stats.intervals import gone",
        "line 6: from heredity.nowhere import anything",
        "line 7: h.Absent",
        "line 7: intervals.lost",
    ]


class _Recording:
    """A store that grows nothing and keeps the recipes that it was given."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def pull(self, name: str) -> str:
        return name

    def grow_once(self, recipe: h.Recipe, parents: Sequence[object]) -> str:
        assert recipe.settings() is not None and parents
        self.kinds.append(recipe.kind)
        return recipe.kind


def test_the_recipes_of_the_examples_take_their_settings() -> None:
    home = runpy.run_path(str(ROOT / "examples" / "home_grown.py"))
    store = _Recording()
    with h.Display() as display:
        answering, others = home["family"](store, "base", 0.1, display)
    assert len(answering) == 5 and len(others) == 4
    assert set(store.kinds) == {"lora", "quantize", "finetune", "prune", "distill"}


def test_the_recipes_of_the_plan_of_inheritance_take_their_settings(tmp_path: Path) -> None:
    plan = read_plan(ROOT / "examples" / "inheritance.toml")
    lineage = Lineage(plan, h.Store(tmp_path), tmp_path)
    possible = lineage.preview()
    assert not lineage.left_out
    kinds = {"lora", "alora", "ablate", "quantize", "finetune", "instruct", "distill", "merge"}
    assert {task.child.recipe for task in possible} - {"engine"} == kinds
    assert all(len(c.seeds) >= 2 for c in plan.child if {"steps", "top_k"} & set(c.settings))
    for battery in plan.battery:
        assert application(battery).decoding.max_tokens <= 256 and chosen_probes(battery)
    assert plan.margin == 0.10 and application(plan.battery[0]).is_default_system


def test_the_plan_of_subliminal_learning_shares_its_models_with_the_other(tmp_path: Path) -> None:
    plans = [read_plan(ROOT / "examples" / f"{name}.toml") for name in ("inheritance", "subliminal")]
    lineage = Lineage(plans[1], h.Store(tmp_path), tmp_path)
    assert len(lineage.preview()) == 5 and not lineage.left_out
    ablated = [next(c for c in plan.child if c.recipe == "ablate") for plan in plans]
    assert ablated[0].data == ablated[1].data and plans[0].models == plans[1].models
    assert [plan.data["refused"] for plan in plans] == ["requests_to_refuse"] * 2
