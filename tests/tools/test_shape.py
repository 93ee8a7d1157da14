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
    read = shape.read_imports(shape.read_modules(source))
    return [(each.importer, each.target, each.when) for each in read]


def crossing(source: Path) -> list[tuple[str, str]]:
    read = shape.read_imports(shape.read_modules(source))
    return [(each.importer, each.target) for each in read if shape.crosses(each)]


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


def figures(source: Path) -> dict[str, int]:
    return {name: figure.value for name, figure in shape.measure(source, source / "docs").items()}


def test_a_circle_within_functions_counts_and_one_by_types_counts_apart(make: Make) -> None:
    source = make(
        {
            "a/x.py": "from ours.b import y\n",
            "b/y.py": "def f():\n    from ours.a import x\n",
            "c/x.py": "from ours.d import y\n",
            "d/y.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ours.c import x\n",
        }
    )
    values = figures(source)
    assert (values["module circles"], values["typed circles"], values["package circles"]) == (1, 2, 2)
    rows = shape.measure(source, source / "docs")["typed circles"].rows
    assert rows[0] == "2: a.x -> b.y; b.y -> a.x"


def test_packages_can_form_a_circle_where_no_modules_do(make: Make) -> None:
    source = make(
        {"a/x.py": "from ours.b import y\n", "a/z.py": "", "b/y.py": "", "b/w.py": "import ours.a.z\n"}
    )
    values = figures(source)
    assert (values["module circles"], values["typed circles"], values["package circles"]) == (0, 0, 1)


# --- names and sizes --------------------------------------------------------------------------------


def test_class_names_are_unique_in_the_package(make: Make) -> None:
    source = make({"a.py": "class Said: ...\n", "b.py": "def f():\n    class Said: ...\nclass Other: ...\n"})
    assert list(shape.repeated_classes(shape.read_modules(source))) == ["Said: a.py:1 b.py:2"]


def test_files_lines_distinct_error_codes_and_words_are_counted(make: Make) -> None:
    source = make(
        {
            "a.py": "class A(E):\n    code = 'one'\nclass B(E):\n    code: str = 'two'\n    code: str\n",
            "b/c.py": "raise E('x', code='three')\nraise E('y', code='one')\nraise E(code=name, kind='z')\n",
            "docs/x.md": "one two\nthree\n",
            "docs/deep/y.md": "four\n",
        }
    )
    values = figures(source)
    n_packages = 4  # the root, b, docs and docs/deep
    assert (values["files"], values["lines"]) == (2 + n_packages, 8)
    assert (values["error codes"], values["words of docs"]) == (3, 4)


def test_entries_at_the_root_leave_out_what_is_not_read(make: Make) -> None:
    source = make({"a.py": "", "b/c.py": "", "py.typed": "", ".hidden": "", "__pycache__/x.pyc": ""})
    (source / "moved" / "__pycache__").mkdir(parents=True)
    assert shape.root_entries(source) == ["__init__.py", "a.py", "b"]


def test_any_and_probes_of_attributes_are_counted(make: Make) -> None:
    text = (
        "from typing import Any\ndef f(x: Any) -> Any:\n    return getattr(x, 'a', None) or getattr(x, n)\n"
    )
    modules = shape.read_modules(make({"a/x.py": text}))
    assert sum(map(shape.count_any, modules)) == 2
    assert list(shape.attribute_probes(modules)) == ["a/x.py:3 getattr(x, 'a', None)"]


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
    single = list(shape.single_importers(modules, shape.read_imports(modules)))
    assert single == ["a/_none.py by no import", "a/_one.py by ours.a.x"]


def test_long_functions_are_listed(make: Make) -> None:
    body = "    x = 1\n"
    source = make({"a.py": f"def short():\n{body * 39}def long():\n{body * 40}def longer():\n{body * 50}"})
    rows = list(shape.long_functions(shape.read_modules(source)))
    assert rows == ["41 a.py:41 long", "51 a.py:82 longer"]


@pytest.mark.parametrize(
    ("now", "state"),
    [
        (1001, "EXCEEDED by 1: make it lighter"),
        (1000, "above its aim"),
        (990, "above its aim"),
        (989, "LOWER the limit to 989"),
        (None, "not measured"),
    ],
)
def test_a_limit_fails_below_its_figure_and_more_than_a_percent_above_it(now: int | None, state: str) -> None:
    assert shape.Bound(1000, 5).state(now) == state


def test_a_figure_at_its_aim_is_fine_and_so_is_one_without_an_aim() -> None:
    assert shape.Bound(5, 5).state(5) == shape.Bound(5).state(5) == "ok"


def test_no_aim_is_above_its_limit() -> None:
    assert all(aim is None or aim <= limit for limit, aim in shape.BOUNDS.values())


def test_no_line_is_wider_than_the_page(make: Make) -> None:
    names = [f"a/a_module_with_a_long_name_{n}.py" for n in range(9)]
    measured = shape.measure(make(dict.fromkeys(names, "class Twice: ...\n")), Path())
    states = {name: shape.Bound(2_000_000).state(4_000_000) for name in shape.BOUNDS}
    shown = [line for each in measured.items() for line in shape.list_rows(*each)]
    assert all(len(line) <= shape.WIDTH for line in [*shown, *shape.table(states, measured)])
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


def test_the_command_prints_every_figure_and_exits_by_limits_and_aims(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make({"a.py": "class One: ...\n", "b.py": "class One: ...\n"})
    monkeypatch.setattr(shape, "SOURCE", source)
    monkeypatch.setattr(shape, "DOCS", source)
    bounds = {"derive lora": shape.Bound(9, 5), "class names": shape.Bound(0, 0), "files": shape.Bound(3)}
    monkeypatch.setattr(shape, "BOUNDS", bounds)
    assert shape.main(["--static"]) == 1
    shown = capsys.readouterr().out
    assert all(f"\n{name:16} " in shown for name in bounds)
    assert "One: a.py:1 b.py:1" in shown and "== root" in shown
    assert shape.main(["--static", "--summary", "--limits"]) == 1
    assert "One: a.py:1 b.py:1" in (shown := capsys.readouterr().out) and "== root" not in shown
    bounds["class names"] = shape.Bound(1, 0)
    assert shape.main(["--static", "--limits"]) == 0 and shape.main(["--static"]) == 1
    bounds["class names"] = shape.Bound(1)
    assert shape.main(["--static"]) == 0
    (source / "b.py").unlink()
    assert shape.main(["--static", "--limits"]) == 1


# --- the real package -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("run", "file"), [("study", "study/plan.py"), ("serve", "deploy/serve/app.py")])
def test_a_scripted_run_enters_files_of_ours(tmp_path: Path, run: str, file: str) -> None:
    files = shape._run(run, tmp_path, shape.SOURCE)
    assert len(files) > 10 and files == sorted(set(files)) and file in files
    assert all((shape.SOURCE / name).is_file() for name in files)
    assert (tmp_path / "study" / "report.html").is_file() == (run == "study")
    assert "cli/serve.py" not in files  # it ran before the question


@pytest.mark.proof
def test_all_runs_are_measured_and_come_out_the_same_again() -> None:
    pytest.importorskip("torch")
    first = shape.entered()
    assert set(first) == set(shape.RUNS.values()) and all(figure.rows for figure in first.values())
    assert any(name.startswith("train/") for name in first["derive lora"].rows)
    assert all(not name.startswith("cli/") for name in first["torch prompt"].rows)
    assert shape.entered() == first


@pytest.mark.slow
def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "RUNS", {"nothing": "nothing"})
    with pytest.raises(RuntimeError, match="'nothing' failed"):
        shape._run("nothing", tmp_path, shape.SOURCE)
