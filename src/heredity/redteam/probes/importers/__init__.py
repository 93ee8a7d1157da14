"""Public sets that a user has a copy of. Each public file is one kind of `heredity probes import KIND FILE`.

To add a kind, add one file with the members of ProbeImporter.

Promises: nothing of these sets ships with heredity; a row is asked unchanged.
Leaves to others: the licence of the set, which is for its owner to keep.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable
from urllib.parse import parse_qsl

import msgspec

from heredity.core import registry
from heredity.core.errors import BadInput, UnknownName, UsageError, did_you_mean
from heredity.core.readers import rows
from heredity.core.records import Check, Probe


def why_name_taken(name: str) -> str:
    """Why a user's own technique may not have this name; "" if it may."""
    if name in ("all", "judge_free", "judged"):  # SCOPES of study/estimates.py
        return f"'{name}' is the name of a row over several techniques; choose another"
    if name in registry.names("redteam.probes", ".toml"):
        return f"'{name}' is a technique of heredity's own; choose another name"
    return ""


class ImportedItem(NamedTuple):
    """One request of a file."""

    line: int
    turns: tuple[str, ...]
    id: str = ""
    cluster: str = ""
    is_benign: bool = False
    passage: str = ""
    clean_passage: str = ""  # the passage before the injection: the twin's
    marker: str = ""
    language: str = ""
    threats: tuple[str, ...] = ()
    pair: str = ""  # shared by a request and its benign counterpart


class Skip(NamedTuple):
    """A row that is not asked, and the reason."""

    line: int
    reason: str


class ImportSource(NamedTuple):
    """A file, and the options that were given with it."""

    path: Path
    options: Mapping[str, str]


class LeftOut(NamedTuple):
    """A row of a file that is not asked. `same_as`: the line that it repeats, 0 for none."""

    line: int
    reason: str
    same_as: int = 0


class Imported(NamedTuple):
    """The probes of a file, and the rows that are not asked."""

    technique: str
    source: str
    probes: tuple[Probe, ...]
    left_out: tuple[LeftOut, ...]


@runtime_checkable
class ProbeImporter(Protocol):
    """A file of redteam/probes/importers/: one kind of set."""

    @property
    def SOURCE(self) -> str:
        """The set, and the source of its format."""

    @property
    def OPTIONS(self) -> Sequence[str]:
        """The names of the options after the `?`."""

    @property
    def BY_FILE(self) -> bool:
        """Whether the rows are named after the file rather than the kind."""

    def rows(self, source: ImportSource) -> Iterator[ImportedItem | Skip]:
        """The rows of a file, in order."""


# --- rows of the public formats: CSV, TSV, JSON lines and JSON ----------------------------------------
# Nothing is guessed from a cell.

FIELDS = ("prompt", "id", "category", "cluster", "passage", "kind", "language")


Cells = dict[str, Any]


class Columns:
    """Finds the columns of a set in a file: by the names in its releases, or by the user's names."""

    def __init__(self, source: ImportSource, names: Mapping[str, tuple[str, ...]]) -> None:
        self.source, self._names = source, names
        self._found: dict[str, str] | None = None

    def get(self, line: int, row: Cells, field: str) -> str:
        """The text in a field's column, stripped; "" if the column does not exist."""
        if self._found is None:
            self._found = self._find(line, row)
        value = row.get(self._found.get(field, ""))
        if value is None:
            return ""
        if not isinstance(value, str | int | float):
            where = f"column '{self._found[field]}'"
            raise BadInput(
                self.source.path, f"{where} holds {type(value).__name__}, not text", line, code="wrong-type"
            )
        return str(value).strip()

    def _find(self, line: int, row: Cells) -> dict[str, str]:
        columns = {}
        for field, names in self._names.items():
            given = self.source.options.get(field)
            column = _named(given, row) if given else next((c for n in names if (c := _named(n, row))), None)
            if column is not None:
                columns[field] = column
            elif given or field == "prompt":
                name = given or names[0]
                hint = did_you_mean(name, row)
                shown = ", ".join(f"'{column}'" for column in list(row)[:12])
                raise BadInput(
                    self.source.path,
                    f"there is no column '{name}'.{hint} The columns are {shown}; say ?{field}=COLUMN",
                    line,
                    code="unknown-key",
                )
        return columns


def _named(name: str, row: Cells) -> str | None:
    """The column of this name: exactly, or else ignoring case."""
    if name in row:
        return name
    return next((column for column in row if column.casefold() == name.casefold()), None)


def unchanged(
    names: Mapping[str, tuple[str, ...]],
) -> Callable[[ImportSource], Iterator[ImportedItem | Skip]]:
    """The `rows` of a set that is a table with these columns, and whose rows are asked unchanged."""
    return lambda source: (row for *_, row in tabular(source, names))


def tabular(
    source: ImportSource, names: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[int, Cells, Columns, ImportedItem | Skip]]:
    """Each row by its columns, benign if `kind` is a benign value; with the set's further cells."""
    columns, met = Columns(source, names), set[str]()
    benign = {value.strip().casefold() for value in source.options.get("benign", "benign,safe").split(",")}
    for line, row in rows(source.path):
        of = {field: columns.get(line, row, field) for field in names}
        if not of["prompt"]:
            yield line, row, columns, Skip(line, "it has no prompt")
            continue
        met.add(of.get("kind", "").casefold())
        is_benign = of.get("kind", "").casefold() in benign if "kind" in names else False
        made = ImportedItem(line, (of["prompt"],), of.get("id", ""), of.get("cluster", ""), is_benign,
                   of.get("passage", ""), language=of.get("language", ""))  # fmt: skip
        yield line, row, columns, made
    if "benign" in source.options and not benign & met:
        value, there = min(benign), ", ".join(sorted(met - {""})[:12]) or "none"
        hint = did_you_mean(value, met)
        raise BadInput(source.path, f"no row's kind is '{value}'.{hint} There are: {there}")


def to_toml(imported: Imported) -> str:
    """The TOML text of an import. Texts are marked as verbatim: their braces are not slots."""
    threats = imported.probes[0].threats
    head = {
        "title": imported.technique,
        "description": f"Imported, {imported.source}.",
        "source": imported.source,
        "technique": imported.technique,
        "threats": list(threats),
        "check": {"kind": "refusal"},
        "why_no_twin": "imported: the set has none for it",
        "is_verbatim": True,
    }
    twins = {probe.id: probe for probe in imported.probes if probe.twin and probe.kind == "benign"}
    items = [_item(p, twins, threats) for p in imported.probes if p.id not in twins]
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
        twin = twins[probe.twin]
        item["twin"] = {"passage": twin.passage} if twin.passage else {"turns": list(twin.turns)}
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


PREFIX = "import:"
FOLDER = "redteam.probes.importers"
SAME = "the same as an earlier line"
WHY_NO_TWIN = "imported: the set has none for it"
MISUSE = ("nist-ai-100-2:2025/NISTAML.027",)
INDIRECT = (
    "owasp-llm:2025/LLM01",
    "owasp-llm:2026/LLM01",
    "mitre-atlas:2025/AML.T0051.001",
    "nist-ai-100-2:2025/NISTAML.015",
)


class ImportSpec(NamedTuple):
    """A parsed import spec. `beside`: further files of the same set."""

    kind: str
    path: Path
    options: dict[str, str]
    beside: tuple[Path, ...] = ()


def kinds() -> list[str]:
    """The kinds of set that can be imported."""
    return registry.names(FOLDER)


def parse_import(name: str) -> ImportSpec:
    """Read `import:KIND:FILE?option=value`. Raises UnknownName with the nearest kind, else UsageError."""
    kind, _, rest = name.removeprefix(PREFIX).partition(":")
    path, mark, query = rest.rpartition("?") if "=" in rest.rpartition("?")[2] else (rest, "", "")
    if not path:
        raise UsageError(
            f"'{name}' names no file. Write it as {PREFIX}KIND:FILE, e.g. {PREFIX}xstest:prompts.csv"
        )
    pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=False) if mark else []
    if twice := [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]:
        raise UsageError(f"'{name}' gives the option '{twice[0]}' twice.")
    if (module := kind.replace("-", "_").casefold()) not in kinds():
        raise UnknownName("import", kind, kinds(), "heredity probes import --help")
    return ImportSpec(module, Path(path), dict(pairs))


def load_import(name: str) -> Imported:
    """The probes that `import:KIND:FILE?...` names."""
    return read_import(parse_import(name))


def read_import(spec: ImportSpec) -> Imported:
    """The probes of a file. Raises BadInput with file and line, UsageError for an unknown option."""
    module = registry.load_as(ProbeImporter, FOLDER, spec.kind)
    options = dict(spec.options)
    technique = options.pop("technique", "") or slug(spec.path.stem if module.BY_FILE else spec.kind, "_")
    if why := why_name_taken(technique):
        raise UsageError(f"{spec.path}: {why}. Name the rows with ?technique=NAME.", code="name-twice")
    known = ("technique", *module.OPTIONS)
    for option in options:
        if option not in known:
            raise UnknownName("option", option, known, f"heredity probes import {spec.kind} --help")
    sources = (ImportSource(path, options) for path in (spec.path, *spec.beside))
    probes, left_out = _probes(technique, (row for source in sources for row in module.rows(source)))
    if not probes:
        reason = f" (line {left_out[0].line}: {left_out[0].reason})" if left_out else ""
        raise BadInput(spec.path, f"holds nothing that can be asked{reason}")
    return Imported(technique, f"{spec.kind}: {module.SOURCE}", probes, left_out)


def slug(text: str, joint: str = "-") -> str:
    """A text as an id: a-z, 0-9 and the joint, at most 60 characters; "" if nothing is left."""
    return re.sub(r"[^a-z0-9]+", joint, text.casefold())[:60].strip(joint)


def _probes(
    technique: str, rows: Iterable[ImportedItem | Skip]
) -> tuple[tuple[Probe, ...], tuple[LeftOut, ...]]:
    left_out: list[LeftOut] = []
    kept: list[ImportedItem] = []
    asked: dict[tuple[Any, ...], ImportedItem] = {}
    for row in rows:
        if isinstance(row, Skip):
            left_out.append(LeftOut(row.line, row.reason))
            continue
        row = _clean(row)
        first = asked.setdefault((row.turns, row.passage, row.is_benign), row)
        if first is row:
            kept.append(row)
        else:
            left_out.append(LeftOut(row.line, SAME, first.line))
    sides = Counter((row.pair, row.is_benign) for row in kept if row.pair)
    pairs = {pair for pair, _ in sides if sides[pair, True] == sides[pair, False] == 1}
    twins = {row.pair: row for row in kept if row.is_benign and row.pair in pairs}
    probes: list[Probe] = []
    used: Counter[str] = Counter()
    for row in kept:
        if row.is_benign and row.pair in pairs:
            continue  # comes with its counterpart
        name = slug(row.id) or f"row-{row.line}"
        used[name] += 1
        while used[name] > 1:  # a second "x" becomes "x-2"
            name = f"{name}-{used[name]}"
            used[name] += 1
        probes += _of_row(technique, name, row, twins.get(row.pair))
    return tuple(probes), tuple(left_out)


def _clean(row: ImportedItem) -> ImportedItem:
    """The row in valid UTF-8: an unpaired surrogate from a JSON escape becomes U+FFFD."""

    def whole(text: str) -> str:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").strip()

    return row._replace(
        turns=tuple(map(whole, row.turns)), passage=whole(row.passage), clean_passage=whole(row.clean_passage)
    )


def _of_row(
    technique: str, name: str, row: ImportedItem, counterpart: ImportedItem | None = None
) -> list[Probe]:
    """A row's probe, and its twin: the counterpart, or the row with its passage before the injection."""
    threats = row.threats or (INDIRECT if row.marker else MISUSE)
    check = Check("marker", text=row.marker) if row.marker else Check("refusal")
    cluster, name = slug(row.cluster) or name, f"{technique}/{name}"
    twin = f"{name}~benign" if row.clean_passage or counterpart else None
    breach = Probe(
        name, technique, "breach", row.turns, check, cluster, threats, row.passage, None,
        twin, "" if twin else WHY_NO_TWIN, row.language or "en",
    )  # fmt: skip
    replace = msgspec.structs.replace
    if row.is_benign:
        return [replace(breach, kind="benign", check=Check("refusal"), twin=None, why_no_twin="")]
    if twin is None:
        return [breach]
    turns, passage = (counterpart.turns, "") if counterpart else (row.turns, row.clean_passage)
    clean = replace(
        breach, id=twin, kind="benign", turns=turns, check=Check("refusal"), passage=passage, twin=name
    )
    return [breach, clean]
