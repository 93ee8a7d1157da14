"""Print the shape of the package and check it against its aims and limits: `make shape`.

    python tools/shape.py             # everything; exit 1 if an aim is missed or a limit exceeded
    python tools/shape.py --static    # without the three runs
    python tools/shape.py --limits    # exit 1 only if a limit is exceeded
    python tools/shape.py --summary   # the lists of failed figures only, and the table
    python tools/shape.py --report    # exit 0 in any case

An aim is where a figure should be. A limit is where it is: no change may raise the figure above it. If a
change lowers a figure, lower its limit too. `make test` checks the limits of all figures without a run.

The aims:

    root              at most 18 entries at the root of the package, without py.typed
    derive lora       at most 25 files of ours are entered
    scripted study    at most 30 files, from the plan to the report
    torch prompt      at most 8 files, in `engines` and what it calls
    underscored       no import of an underscored module from another package
    module circles    none, over imports at import time and within functions
    package circles   none, over the same imports between top-level packages
    class names       none is defined twice

Figures with a limit and no aim:

    attribute probes  `hasattr` and `getattr` with a literal name
    uses of Any       its uses in annotations, by package
    private singles   private files with one importer or none
    long functions    functions over 40 lines

Circles that TYPE_CHECKING imports close are reported only.

A file is entered when one of its functions runs. Bodies of modules and classes do not count. A function that
runs during an import does not count either. `shape_runs.py` does each run in a process of its own.

The module `heredity.a._b` belongs to the package `heredity.a` and what is beneath it. An import from anywhere
else counts, also as `from heredity.a import _b`. Imports are read from the syntax tree, so a module that is
loaded by its name in a string is not seen.

The output is the same on every machine, with one exception. A run can enter other files if the processor
makes heredity choose another data type or kernel.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "heredity"
RUNS = {"lora": "derive lora", "study": "scripted study", "ask": "torch prompt"}
AIMS = {
    "root": 18,
    "derive lora": 25,
    "scripted study": 30,
    "torch prompt": 8,
    "underscored": 0,
    "module circles": 0,
    "package circles": 0,
    "class names": 0,
}
# Three aims are not reached. The files do one thing each, and most merges would mix two rooms of the tree. No
# import can be saved: a file counts only if one of its functions runs. A scripted study enters 144: 55 of
# study/, 27 of its report, of which 17 are templates, 28 of redteam/ and 34 of what lies beneath. Each kind
# of evidence, such as guards, retrieval or severity, is a file of its own. It is asked if the plan has any.
# A prompt to torch enters 20: templates, tool calls and schemas are 4, and the session and its prefixes are
# apart from the batch, because adapters over one base share them. A limit stops any growth.
LIMITS = {
    **AIMS,
    "derive lora": 37,
    "scripted study": 144,
    "torch prompt": 20,
    "attribute probes": 26,
    "uses of Any": 400,
    "private singles": 6,
    "long functions": 16,
}
LONG_FUNCTION, LONG_FILE = 40, 500  # lines
WIDTH = 80  # columns of the output

When = Literal["import", "function", "typing"]
Graph = dict[str, set[str]]


class Import(NamedTuple):
    """One module imports another."""

    importer: str
    target: str
    file: str
    line: int
    when: When

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Module:
    """A module of the package, parsed. `file` is relative to the package."""

    name: str
    file: str
    tree: ast.Module
    n_lines: int
    is_package: bool


@dataclass
class Report:
    """The figures, and lines to print by the figure that they belong to; "" for none."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)

    def section(self, title: str, rows: Iterable[str], figure: str = "", value: int | None = None) -> None:
        """Add a title and its rows; `none` if there are no rows. value: that of the figure, if any."""
        if value is not None:
            self.figures[figure] = value
        wrapped = [line for row in rows for line in _wrapped(row)]
        self.lines += [(figure, line) for line in ("", f"== {title}", *(wrapped or ["  none"]))]

    def state(self, figure: str) -> str:
        """Whether a figure is within its limit and has reached its aim."""
        if (now := self.figures.get(figure)) is None:
            return "not measured"
        if now > LIMITS.get(figure, now):
            return "EXCEEDED"
        return "MISSED" if now > AIMS.get(figure, now) else "ok"


def _wrapped(row: str) -> list[str]:
    return textwrap.wrap(
        row,
        WIDTH,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )


# --- reading ----------------------------------------------------------------------------------------


def read_modules(source: Path) -> list[Module]:
    """Every module beneath a package's folder, by name."""
    found = []
    for path in sorted(source.rglob("*.py")):
        if "__pycache__" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        parts = [source.name, *path.relative_to(source).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        file = path.relative_to(source).as_posix()
        found.append(Module(name, file, ast.parse(text), text.count("\n"), is_package))
    return sorted(found, key=lambda each: each.name)


def imports_of(module: Module, known: set[str]) -> Iterator[Import]:
    """Every import of a module of ours, once per line and target."""
    for node, when in _walk(module.tree, "import"):
        for target in dict.fromkeys(_targets(node, module, known)):
            if target != module.name:
                yield Import(module.name, target, module.file, node.lineno, when)


def _walk(node: ast.AST, when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    """Import statements, with when they run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.If) and _is_typing(child.test):
            for each in child.body:
                yield from _walk(ast.Module([each], []), "typing")
            for each in child.orelse:
                yield from _walk(ast.Module([each], []), when)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _walk(child, "typing" if when == "typing" else "function")
        else:
            yield from _walk(child, when)


def _is_typing(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def _targets(node: ast.Import | ast.ImportFrom, module: Module, known: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
        return
    base = node.module or ""
    if node.level:
        parts = module.name.split(".")
        parts = parts[: len(parts) - node.level + module.is_package]
        base = ".".join([*parts, *([base] if base else [])])
    for alias in node.names:
        name = f"{base}.{alias.name}"
        if name in known or base in known:
            yield name if name in known else base


# --- measures ---------------------------------------------------------------------------------------


def root_entries(source: Path) -> list[str]:
    """List the root of the package, without py.typed, caches and hidden files."""
    names = (path.name for path in source.iterdir())
    return sorted(name for name in names if name not in ("py.typed", "__pycache__") and name[0] != ".")


def is_private(part: str) -> bool:
    """Whether a name begins with one underscore."""
    return part.startswith("_") and not part.startswith("__")


def crosses(each: Import) -> bool:
    """Whether an underscored module is imported from outside the package that holds it."""
    parts = each.target.split(".")
    owners = [".".join(parts[:i]) for i, part in enumerate(parts) if is_private(part)]
    return any(not f"{each.importer}.".startswith(f"{owner}.") for owner in owners)


def package_of(module: str) -> str:
    """The top-level package, or root module, of a module; the root itself for the package's `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def graph_of(imports: Iterable[Import], by_package: bool = False) -> Graph:
    """Who imports whom."""
    graph: Graph = defaultdict(set)
    for each in imports:
        ends = (each.importer, each.target)
        importer, target = map(package_of, ends) if by_package else ends
        if importer != target:
            graph[importer].add(target)
    return dict(graph)


def circles(graph: Graph) -> list[list[str]]:
    """Groups of two or more that all reach each other (Tarjan 1972), largest first."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for each in sorted(graph.get(node, ())):
            if each not in index:
                visit(each)
                low[node] = min(low[node], low[each])
            elif each in stack:
                low[node] = min(low[node], index[each])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found, key=lambda each: (-len(each), each))


def shortest_circle(graph: Graph, members: Iterable[str]) -> list[str]:
    """Find the shortest path from a member back to itself; the first by name if there are several."""
    inside = set(members)
    best: list[str] = []
    for start in sorted(inside):
        paths, seen = [[start]], {start}
        while paths and (not best or len(paths[0]) < len(best)):
            path = paths.pop(0)
            following = sorted(graph.get(path[-1], set()) & inside)
            if start in following:
                best = path
                break
            paths += [[*path, each] for each in following if each not in seen]
            seen.update(following)
    return best


def class_names(modules: Iterable[Module]) -> dict[str, list[str]]:
    """Class names that are defined more than once -> where, the most frequent first."""
    found: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(f"{module.file}:{node.lineno}")
    return {k: v for k, v in sorted(found.items(), key=lambda each: (-len(each[1]), each[0])) if len(v) > 1}


def attribute_probes(modules: Iterable[Module]) -> list[tuple[str, str, str]]:
    """`hasattr` and `getattr` with a literal name: package, place, call."""
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
                name = node.args[1]
                if node.func.id in ("hasattr", "getattr") and isinstance(name, ast.Constant):
                    place = f"{module.file}:{node.lineno}"
                    found.append((package_of(module.name), place, ast.unparse(node)))
    return found


def count_any(modules: Iterable[Module]) -> Counter[str]:
    """Uses of `Any` by package; its import is not one."""
    found: Counter[str] = Counter()
    for module in modules:
        names = (getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(module.tree))
        found[package_of(module.name)] += sum(name == "Any" for name in names)
    return +found


def single_importers(modules: Iterable[Module], imports: Iterable[Import]) -> Iterator[tuple[Module, str]]:
    """Private modules with one importer, or none, and that importer."""
    importers: dict[str, set[str]] = defaultdict(set)
    for each in imports:
        importers[each.target].add(each.importer)
    for module in modules:
        if is_private(module.name.rpartition(".")[2]) and len(importers[module.name]) < 2:
            yield module, next(iter(importers[module.name]), "")


def long_functions(modules: Iterable[Module]) -> list[tuple[int, str]]:
    """Lines and place of functions over the limit, longest first."""
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n_lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if n_lines > LONG_FUNCTION:
                    found.append((n_lines, f"{module.file}:{node.lineno} {node.name}"))
    return sorted(found, key=lambda each: (-each[0], each[1]))


# --- runs -------------------------------------------------------------------------------------------


def entered(source: Path = SOURCE) -> dict[str, list[str]]:
    """Files entered by each run. Raises RuntimeError, with the end of its output, if a run fails."""
    with tempfile.TemporaryDirectory() as name:
        _run("model", Path(name), source)
        return {run: _run(run, Path(name), source) for run in RUNS}


def _run(run: str, folder: Path, source: Path) -> list[str]:
    command = [sys.executable, str(Path(__file__).with_name("shape_runs.py")), run, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(source.parent), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"the run '{run}' failed:\n" + "\n".join(ran.stderr.splitlines()[-15:]))
    files: list[str] = json.loads(ran.stdout)
    return files


# --- the report -------------------------------------------------------------------------------------


def report_static(source: Path, report: Report) -> None:
    """Everything that is read from the syntax trees."""
    modules = read_modules(source)
    known = {module.name for module in modules}
    imports = [each for module in modules for each in imports_of(module, known)]
    entries = root_entries(source)
    report.section(f"root: {len(entries)} entries", entries, "root", len(entries))
    _report_underscored(imports, report)
    _report_circles(imports, report)
    _report_classes(modules, report)
    _report_types(modules, report)
    _report_sizes(modules, imports, report)


def _report_underscored(imports: list[Import], report: Report) -> None:
    found = sorted({(each.target, each.place) for each in imports if crosses(each)})
    rows = (f"{target}  from {place}" for target, place in found)
    title = f"underscored modules imported from another package: {len(found)}"
    report.section(title, rows, "underscored", len(found))


def _report_circles(imports: list[Import], report: Report) -> None:
    at_run_time = [each for each in imports if each.when != "typing"]
    for figure, by_package in (("package circles", True), ("module circles", False)):
        graph = graph_of(at_run_time, by_package)
        found = circles(graph)
        title = f"{figure}: {len(found)}, of {sum(map(len, found))} {figure.split()[0]}s"
        report.section(title, _circle_rows(found, graph, at_run_time, by_package), figure, len(found))
        typed = circles(graph_of(imports, by_package))
        extra = [each for each in typed if each not in found]
        rows = (f"{len(each)}: {' '.join(_short(each))}" for each in extra)
        report.section(f"{figure} that TYPE_CHECKING imports close or widen: {len(extra)}", rows)


def _short(names: Iterable[str]) -> list[str]:
    return [name.partition(".")[2] or name for name in names]


def _circle_rows(
    found: list[list[str]], graph: Graph, imports: list[Import], by_package: bool
) -> Iterator[str]:
    """The members of each circle, its shortest path, and a place for each import in it."""
    for members in found:
        yield f"{len(members)}: {' '.join(members if by_package else _short(members))}"
        path = shortest_circle(graph, members)
        yield f"  shortest: {' -> '.join(_short([*path, path[0]]))}"
        for (importer, target), places in _places(members, imports, by_package).items():
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            yield f"    {' -> '.join(_short((importer, target)))}: {places[0]}{more}"


def _places(members: list[str], imports: list[Import], by_package: bool) -> dict[tuple[str, str], list[str]]:
    """Importer and target within a circle -> where."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in imports:
        ends = (each.importer, each.target)
        importer, target = map(package_of, ends) if by_package else ends
        if importer in members and target in members and importer != target:
            suffix = " (in a function)" if each.when == "function" else ""
            places[importer, target].append(each.place + suffix)
    return dict(sorted(places.items()))


def _report_classes(modules: list[Module], report: Report) -> None:
    names = class_names(modules)
    rows = (f"{len(places)} {name}: {' '.join(places)}" for name, places in names.items())
    report.section(f"class names defined more than once: {len(names)}", rows, "class names", len(names))


def _report_types(modules: list[Module], report: Report) -> None:
    probes = attribute_probes(modules)
    rows = (f"{package}: {place} {call}" for package, place, call in sorted(probes))
    title = f"hasattr and getattr with a literal: {len(probes)}"
    report.section(title, rows, "attribute probes", len(probes))
    counts = count_any(modules)
    rows = (f"{n:5} {package}" for package, n in sorted(counts.items(), key=lambda each: (-each[1], each[0])))
    report.section(f"Any: {counts.total()}", rows, "uses of Any", counts.total())


def _report_sizes(modules: list[Module], imports: list[Import], report: Report) -> None:
    single = list(single_importers(modules, imports))
    n_lines = sum(module.n_lines for module, _ in single)
    rows = (
        f"{module.file} ({module.n_lines} lines) by {importer or 'no import'}" for module, importer in single
    )
    title = f"private files with one importer or none: {len(single)}, {n_lines:,} lines"
    report.section(title, rows, "private singles", len(single))
    functions = long_functions(modules)
    title = f"functions over {LONG_FUNCTION} lines: {len(functions)}"
    report.section(title, (f"{n:5} {place}" for n, place in functions), "long functions", len(functions))
    files = sorted((-each.n_lines, each.file) for each in modules if each.n_lines > LONG_FILE)
    title = f"files over {LONG_FILE} lines: {len(files)}"
    report.section(title, (f"{-n:5} {name}" for n, name in files))
    total = sum(module.n_lines for module in modules)
    report.section("size", [f"{len(modules)} modules, {total:,} lines"])


def report_runs(files: dict[str, list[str]], source: Path, report: Report) -> None:
    """The files that each run entered, with their lines."""
    for run, figure in RUNS.items():
        lines = {file: _count_lines(source / file) for file in files[run]}
        title = f"{figure}: {len(lines)} files entered, {sum(lines.values()):,} lines"
        report.section(title, (f"{n:5} {file}" for file, n in lines.items()), figure, len(lines))


def _count_lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def summary(report: Report) -> Iterator[str]:
    """A table: each figure with its limit and its aim, and `not measured` if its run was left out."""
    yield ""
    yield f"{'':16} {'now':>5} {'limit':>5} {'aim':>5}"
    for name, limit in LIMITS.items():
        now, aim = report.figures.get(name, "-"), AIMS.get(name, "")
        yield f"{name:16} {now:>5} {limit:>5} {aim:>5}  {report.state(name)}"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Returns 1 if a limit is exceeded or, without `--limits`, an aim is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--static", action="store_true", help="leave out the three runs")
    parser.add_argument("--limits", action="store_true", help="exit 1 only if a limit is exceeded")
    parser.add_argument("--report", action="store_true", help="exit 0 in any case")
    parser.add_argument("--summary", action="store_true", help="print the table, and lists of failed figures")
    given = parser.parse_args(arguments)
    report = Report()
    if not given.static:
        report_runs(entered(), SOURCE, report)
    report_static(SOURCE, report)
    fatal = ("EXCEEDED",) if given.limits else ("EXCEEDED", "MISSED")
    failed = [name for name in LIMITS if report.state(name) in fatal]
    shown = [line for figure, line in report.lines if not given.summary or figure in failed]
    print("\n".join([*shown, *summary(report)]).lstrip("\n"))
    return 1 if failed and not given.report else 0


if __name__ == "__main__":
    sys.exit(main())
