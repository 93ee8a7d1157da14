"""The checker of the package's shape, on small packages of its own and on the real one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools import TOOLS, load

shape = load("shape")
runs = load("shape_runs")

Make = Callable[[dict[str, str]], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a package `ours`: {path: source}; every folder becomes a package."""

    def write(files: dict[str, str]) -> Path:
        source = tmp_path / "ours"
        source.mkdir()
        for name, text in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for folder in [source, *(each for each in source.rglob("*") if each.is_dir())]:
            (folder / "__init__.py").touch()
        return source

    return write


def imports(source: Path) -> list[tuple[str, str, str]]:
    """Importer, target and when."""
    modules = shape.read_modules(source)
    known = {module.name for module in modules}
    found = [each for module in modules for each in shape.imports_of(module, known)]
    return [(each.importer, each.target, each.when) for each in found]


def crossing(source: Path) -> list[tuple[str, str]]:
    modules = shape.read_modules(source)
    known = {module.name for module in modules}
    found = [each for module in modules for each in shape.imports_of(module, known)]
    return [(each.importer, each.target) for each in found if shape.crosses(each)]


# --- imports ----------------------------------------------------------------------------------------


def test_every_form_of_import_names_the_module_that_it_loads(make: Make) -> None:
    source = make(
        {
            "a/x.py": "import ours.b\nfrom ours import b\nfrom ours.b import y, Thing\nfrom . import z\n",
            "a/z.py": "from .x import Thing\nfrom ..b.y import Thing\nimport os\n",
            "b/y.py": "Thing = 1\n",
        }
    )
    assert imports(source) == [
        ("ours.a.x", "ours.b", "import"),
        ("ours.a.x", "ours.b", "import"),
        ("ours.a.x", "ours.b.y", "import"),
        ("ours.a.x", "ours.b", "import"),
        ("ours.a.x", "ours.a.z", "import"),
        ("ours.a.z", "ours.a.x", "import"),
        ("ours.a.z", "ours.b.y", "import"),
    ]


def test_imports_are_distinguished_by_when_they_run(make: Make) -> None:
    source = make(
        {
            "a.py": "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    import ours.b\nelse:\n    import ours.c\n"
            "try:\n    import ours.b\nexcept ImportError:\n    pass\n"
            "def f():\n    import ours.c\n",
            "b.py": "",
            "c.py": "",
        }
    )
    assert imports(source) == [
        ("ours.a", "ours.b", "typing"),
        ("ours.a", "ours.c", "import"),
        ("ours.a", "ours.b", "import"),
        ("ours.a", "ours.c", "function"),
    ]


def test_an_underscored_module_belongs_to_its_package_and_what_is_beneath(make: Make) -> None:
    source = make(
        {
            "a/_b.py": "",
            "a/c.py": "from ours.a import _b\n",
            "a/deep/d.py": "from ours.a._b import x\n",
            "a/deep/_e.py": "",
            "a/f.py": "from ours.a.deep import _e\n",
            "g.py": "def f():\n    from ours.a import _b\n",
            "ab/h.py": "import ours.a._b\n",
            "i.py": "from ours.a.c import _name\n",
        }
    )
    assert crossing(source) == [
        ("ours.a.f", "ours.a.deep._e"),
        ("ours.ab.h", "ours.a._b"),
        ("ours.g", "ours.a._b"),
    ]


# --- circles ----------------------------------------------------------------------------------------


def test_circles_are_groups_that_reach_each_other() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert shape.circles(graph) == [["a", "b", "c"], ["d", "e"]]
    assert shape.circles({"a": {"b"}, "b": {"c"}}) == []


def test_the_shortest_circle_is_shown() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"c"}}
    assert shape.shortest_circle(graph, "abcd") == ["c", "d"]


def figures(source: Path) -> dict[str, int]:
    report = shape.Report()
    shape.report_static(source, report)
    return report.figures


def test_a_circle_within_functions_counts_and_one_by_types_does_not(make: Make) -> None:
    source = make(
        {
            "a/x.py": "from ours.b import y\n",
            "b/y.py": "def f():\n    from ours.a import x\n",
            "c/x.py": "from ours.d import y\n",
            "d/y.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ours.c import x\n",
        }
    )
    found = figures(source)
    assert (found["module circles"], found["package circles"]) == (1, 1)


def test_packages_can_form_a_circle_where_no_modules_do(make: Make) -> None:
    source = make(
        {"a/x.py": "from ours.b import y\n", "a/z.py": "", "b/y.py": "", "b/w.py": "import ours.a.z\n"}
    )
    found = figures(source)
    assert (found["module circles"], found["package circles"]) == (0, 1)


# --- names and sizes --------------------------------------------------------------------------------


def test_class_names_are_unique_in_the_package(make: Make) -> None:
    source = make({"a.py": "class Said: ...\n", "b.py": "def f():\n    class Said: ...\nclass Other: ...\n"})
    assert shape.class_names(shape.read_modules(source)) == {"Said": ["a.py:1", "b.py:2"]}


def test_entries_at_the_root_leave_out_what_is_not_read(make: Make) -> None:
    source = make({"a.py": "", "b/c.py": "", "py.typed": "", ".hidden": "", "__pycache__/x.pyc": ""})
    assert shape.root_entries(source) == ["__init__.py", "a.py", "b"]


def test_any_and_probes_of_attributes_are_counted_by_package(make: Make) -> None:
    text = (
        "from typing import Any\ndef f(x: Any) -> Any:\n    return getattr(x, 'a', None) or getattr(x, n)\n"
    )
    modules = shape.read_modules(make({"a/x.py": text}))
    assert shape.count_any(modules) == {"a": 2}
    assert shape.attribute_probes(modules) == [("a", "a/x.py:3", "getattr(x, 'a', None)")]


def test_private_files_with_one_importer_are_listed(make: Make) -> None:
    source = make(
        {
            "a/_one.py": "",
            "a/_two.py": "",
            "a/_none.py": "",
            "a/x.py": "from ours.a import _one, _two\n",
            "a/y.py": "import ours.a._two\n",
        }
    )
    modules = shape.read_modules(source)
    known = {module.name for module in modules}
    found = [each for module in modules for each in shape.imports_of(module, known)]
    single = [(module.name, importer) for module, importer in shape.single_importers(modules, found)]
    assert single == [("ours.a._none", ""), ("ours.a._one", "ours.a.x")]


def test_long_functions_are_listed_the_longest_first(make: Make) -> None:
    body = "    x = 1\n"
    source = make({"a.py": f"def short():\n{body * 39}def long():\n{body * 40}def longer():\n{body * 50}"})
    found = shape.long_functions(shape.read_modules(source))
    assert found == [(51, "a.py:82 longer"), (41, "a.py:41 long")]


def test_the_summary_says_what_is_missed_or_exceeded_and_what_was_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {"root": 19, "underscored": 0, "class names": 0, "derive lora": 30, "uses of Any": 5}
    monkeypatch.setattr(shape, "LIMITS", limits)
    report = shape.Report(figures={"root": 19, "underscored": 0, "class names": 2, "uses of Any": 5})
    lines = [" ".join(row.split()) for row in shape.summary(report)]
    assert "root 19 19 18 MISSED" in lines and "underscored 0 0 0 ok" in lines
    assert "class names 2 0 0 EXCEEDED" in lines and "uses of Any 5 5 ok" in lines
    assert "derive lora - 30 25 not measured" in lines


def test_no_aim_is_above_its_limit_and_each_has_one() -> None:
    assert all(aim <= shape.LIMITS[name] for name, aim in shape.AIMS.items())


def test_no_line_is_wider_than_the_page(make: Make) -> None:
    names = [f"a/a_module_with_a_long_name_{n}.py" for n in range(9)]
    source = make(dict.fromkeys(names, "class Twice: ...\n"))
    report = shape.Report()
    shape.report_static(source, report)
    shown = [line for _, line in report.lines]
    assert all(len(line) <= shape.WIDTH for line in [*shown, *shape.summary(report)])
    assert all(any(name in line for line in shown) for name in names)


# --- files entered ----------------------------------------------------------------------------------


def entered(source: Path, statement: str, within: str | None = None) -> list[str]:
    """The files that a statement enters, in a process of its own."""
    script = (
        f"import json, sys, pathlib; sys.path[:0] = [{str(TOOLS)!r}, {str(source.parent)!r}]\n"
        "import shape_runs\n"
        f"source = pathlib.Path({str(source)!r})\n"
        f"recorder = shape_runs.Recorder(source, {f'source / {within!r}' if within else None})\n"
        f"recorder.start()\n{statement}\nrecorder.stop()\nprint(json.dumps(sorted(recorder.files)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    files: list[str] = json.loads(ran.stdout)
    return files


@pytest.mark.slow
def test_a_file_is_entered_when_a_function_of_it_runs_and_not_when_it_is_imported(make: Make) -> None:
    source = make(
        {
            "a.py": "from ours import b, c\nclass A:\n    x = c.f()\n    y = [n for n in range(2)]\n"
            "def g():\n    return b.f()\n",
            "b.py": "def f():\n    return 1\n",
            "c.py": "def f():\n    return 1\n",
        }
    )
    assert entered(source, "import ours.a") == []
    assert entered(source, "import ours.a; ours.a.g()") == ["a.py", "b.py"]


@pytest.mark.slow
def test_threads_are_recorded(make: Make) -> None:
    source = make({"a.py": "def f():\n    return 1\n"})
    statement = "import ours.a, threading; t = threading.Thread(target=ours.a.f); t.start(); t.join()"
    assert entered(source, statement) == ["a.py"]


@pytest.mark.slow
def test_within_a_folder_its_files_count_and_those_that_it_calls(make: Make) -> None:
    source = make(
        {
            "cli.py": "from ours import other\nfrom ours.engines import e\ndef f():\n    other.f(); e.f()\n",
            "engines/e.py": "from ours import core\ndef f():\n    core.f()\n",
            "core.py": "def f():\n    return 1\n",
            "other.py": "def f():\n    return 1\n",
        }
    )
    assert entered(source, "import ours.cli; ours.cli.f()", "engines") == ["core.py", "engines/e.py"]


# --- the command ------------------------------------------------------------------------------------


def test_the_command_prints_every_aim_and_exits_by_them(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make({"a.py": "class One: ...\n", "b.py": "class One: ...\n"})
    monkeypatch.setattr(shape, "SOURCE", source)
    assert shape.main(["--static"]) == 1
    shown = capsys.readouterr().out
    assert all(f"\n{name:16} " in shown for name in shape.AIMS)
    assert "2 One: a.py:1 b.py:1" in shown
    assert shape.main(["--static", "--report"]) == 0
    capsys.readouterr()
    assert shape.main(["--static", "--summary"]) == 1
    assert "2 One: a.py:1 b.py:1" in (shown := capsys.readouterr().out) and "== root" not in shown
    monkeypatch.setitem(shape.LIMITS, "class names", 1)
    assert shape.main(["--static", "--limits"]) == 0 and shape.main(["--static"]) == 1
    (source / "b.py").unlink()
    assert shape.main(["--static"]) == 0


# --- the real package -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_scripted_study_enters_files_of_ours(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(TOOLS / "shape_runs.py"), "study", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    files = json.loads(ran.stdout)
    assert len(files) > 10 and files == sorted(set(files))
    assert all((shape.SOURCE / name).is_file() for name in files)
    assert (tmp_path / "study" / "report.html").is_file()


@pytest.mark.proof
def test_all_three_runs_are_measured_and_come_out_the_same_again() -> None:
    pytest.importorskip("torch")
    first = shape.entered()
    assert list(first) == ["lora", "study", "ask"] and all(first.values())
    assert any(name.startswith("train/") for name in first["lora"])
    assert all(not name.startswith("cli/") for name in first["ask"])
    assert shape.entered() == first
    assert all(len(first[run]) <= shape.LIMITS[figure] for run, figure in shape.RUNS.items())


@pytest.mark.slow
def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "RUNS", {"nothing": "nothing"})
    with pytest.raises(RuntimeError, match="'nothing' failed"):
        shape._run("nothing", tmp_path, shape.SOURCE)
