"""Rows of the files people have: JSON lines, JSON, CSV, TSV, Parquet, a Hugging Face data set; and TOML.

Promises: every row comes with its line (in a Parquet file or a data set, its number), as a stream if the
format allows it. A malformed file is an error of one line that names file and line. Nothing is executed or
guessed.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tomllib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from heredity.core.errors import (
    BadInput,
    Unavailable,
    UsageError,
    code_of,
    how_to_install,
    near_path,
    origin_of,
)

Row = dict[str, Any]
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
KNOWN = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Every row of a file, by the ending of its name, with its line. Raises BadInput."""
    ending = path.suffix.lower()
    if ending in _DELIMITERS:
        return _table(path, _DELIMITERS[ending])
    if ending in (".jsonl", ".ndjson"):
        return json_lines(path)
    if ending == ".json":
        return _json_list(path)
    if ending == ".parquet" or path.is_dir():
        return _arrow(path)
    known = ", ".join(KNOWN)
    if not path.exists():
        raise BadInput(path, "cannot be read: No such file or directory", code="unreadable-file")
    raise BadInput(path, f"is of no known kind: '{ending or path.name}'. Known: {known}")


def json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """The objects of a JSON-lines file, each with its line."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(path, f"not JSON: {error}", number, code="not-json") from None
        if not isinstance(row, dict):
            raise BadInput(path, "not a JSON object; each line must be one", number, code="wrong-type")
        yield number, row


def text_of(path: Path) -> str:
    """The whole file. Raises BadInput if it cannot be read or is not UTF-8."""
    return "".join(line for _, line in _lines(path))


def json_of(path: Path) -> Any:
    """The file's JSON. Raises BadInput with the line if it is malformed."""
    try:
        return json.loads(text_of(path))
    except json.JSONDecodeError as error:
        raise BadInput(path, f"not JSON: {error.msg}", error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(path, f"not JSON: {error}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their ends, a byte order mark left out."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise BadInput(path, f"is not UTF-8 (byte {error.start} of the line)", number) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, Row]]:
    """Lines before the header that begin with "# " are passed over, as PyRIT's files have them."""
    csv.field_size_limit(2**31 - 1)
    n_comments = 0

    def body() -> Iterator[str]:
        nonlocal n_comments
        is_before = True
        for _, line in _lines(path):
            is_before = is_before and line.startswith("# ")
            n_comments += is_before
            if not is_before:
                yield line

    reader = csv.reader(body(), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise BadInput(path, f"two columns are named '{twice}'", n_comments + 1, code="name-twice")
        for cells in reader:
            line = n_comments + reader.line_num
            if cells and len(cells) != len(names):
                raise BadInput(path, f"{len(cells)} cells under {len(names)} column names", line)
            if cells:
                yield line, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise BadInput(path, f"malformed CSV: {error}", n_comments + reader.line_num) from None


def _json_list(path: Path) -> Iterator[tuple[int, Row]]:
    data = json_of(path)
    if isinstance(data, dict):  # one column a key, as pandas and some releases write it
        lists = {key: value for key, value in data.items() if isinstance(value, list)}
        length = {len(value) for value in lists.values()}
        if len(length) != 1:
            raise BadInput(
                path, "is no list of objects, nor an object of equally long lists", code="wrong-type"
            )
        data = [dict(zip(lists, each, strict=True)) for each in zip(*lists.values(), strict=True)]
    if not isinstance(data, list):
        raise BadInput(path, "is no list of objects")
    for number, row in enumerate(data, 1):
        if not isinstance(row, dict):
            raise BadInput(path, f"entry {number} is no object")
        yield number, row


def arrow_file(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of one Parquet file, or of one Arrow file that `datasets` saved, each with its number."""
    try:
        import pyarrow as arrow
        from pyarrow import ipc, parquet
    except ImportError:
        raise Unavailable(
            f"{path} needs pyarrow. {how_to_install('parquet')}, or save it as JSON lines."
        ) from None
    number = 0
    try:
        is_stream = path.suffix == ".arrow"
        for batch in ipc.open_stream(path) if is_stream else parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (arrow.ArrowException, OSError) as error:
        raise BadInput(path, f"cannot be read: {str(error).splitlines()[0][:200]}") from None


def _arrow(path: Path) -> Iterator[tuple[int, Row]]:
    """A Parquet file, or the Arrow files of a folder that `datasets` saved (no code of it is run)."""
    files = [path] if path.is_file() else sorted(path.glob("*.arrow"))
    if not files:
        raise BadInput(path, "is a folder without .arrow files; a data set on disk has them")
    number = 0
    for file in files:
        for _, row in arrow_file(file):
            number += 1
            yield number, row


def unreadable(path: Path, error: OSError) -> BadInput:
    """The error of a file that cannot be opened, with the nearest name in its folder."""
    return BadInput(path, f"cannot be read: {error.strerror}.{near_path(path)}", code="unreadable-file")


def toml_of(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises BadInput with the line if it is malformed or does not exist."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError as error:
        raise BadInput(path, f"is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise BadInput(path, "malformed TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of too many digits
        where = re.search(r"line (\d+)", str(error))
        raise BadInput(path, f"malformed TOML: {error}", int(where[1]) if where else 0) from None


def toml_line(path: Path | str, key: str = "", *, table: str = "", head: str = "", index: int = 0) -> int:
    """The line of a TOML file that an error is about; 0 if it is not found or the file cannot be read.

    key     the setting: as a value, or as the header of a table of its own. "decoding.seed" is the key `seed`
            of [decoding], also if it is written `decoding.seed` at the top.
    table   the table whose `name` this is; of several the last, which is the one too many.
    head    look only in the table of this header; of [[several]], in the one at `index`. The line of the
            header if that table does not set `key`.
    """
    try:
        lines = Path(path).read_text("utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return 0
    if table:
        named = re.compile(rf"[^#]*\bname\s*=\s*[\"']{re.escape(table)}[\"']")
        return max((n for n, line in enumerate(lines, 1) if named.match(line)), default=0)
    if "." in key and not head:
        head, _, key = key.rpartition(".")
        inside = ""
        for number, line in enumerate(lines, 1):
            if header := re.match(r"\s*\[+\s*([^\]\s]+)", line):
                inside = header[1]
            match = re.match(r"\s*[\"']?([\w.-]+)[\"']?\s*=", line)
            if match and f"{inside}.{match[1]}".lstrip(".") == f"{head}.{key}".lstrip("."):
                return number
        return 0
    start, stop = _table_span(lines, head, index)
    if key:
        sets = re.compile(rf"\s*(?:\[+\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.\]:]")
        at = next((n for n in range(max(start, 1), stop + 1) if sets.match(lines[n - 1])), 0)
        return at or start
    return start


_TYPES = {
    "int": "a whole number (int)", "float": "a number (float)", "str": "a text (str)", "array": "a list",
    "bool": "true or false (bool)", "object": "a table", "null": "nothing",
}  # fmt: skip


def in_words(message: str) -> str:
    """A message of msgspec in plain words: "`turns` in probe[0] must be a list, not a text (str)".

    Other messages are returned as they are.
    """
    wrong = re.fullmatch(r"Expected `([^`]+)`, got `([^`]+)` - at `\$\.([^`]+)`", message)
    if wrong is not None:
        wanted, given = (
            " or ".join(_TYPES.get(each, each) for each in types.split(" | ")) for types in wrong.groups()[:2]
        )
        head, _, key = wrong[3].rpartition(".")
        return f"`{key}`{f' in {head}' if head else ''} must be {wanted}, not {given}"
    missing = re.fullmatch(r"Object missing required field `([^`]+)`(?: - at `\$\.?([^`]*)`)?", message)
    if missing is not None:
        return f"`{missing[1]}` is missing" + (f" in {missing[2]}" if missing[2] else "")
    return message


def toml_line_of(path: Path | str, error: BaseException) -> int:
    """`toml_line` of an error's own key or table, or of the place that msgspec names (`$.tools[1].name`)."""
    own = origin_of(error)
    if own is not None and (own.table or own.key):
        return toml_line(path, own.key, table=own.table)
    message = str(error)
    place = re.search(r"at `\$\.(\w+)\[(\d+)\]", message)
    named = re.search(r"unknown field `([^`]+)`", message) or re.search(r"\.(\w+)`$", message)
    named = named or re.match(r"Expected .*\.(\w+)(?:\[\d+\])+`$", message)
    key = named[1] if named else ""
    if place is not None:
        return toml_line(path, key, head=place[1], index=int(place[2]))
    return toml_line(path, key) if key else 0


def _table_span(lines: list[str], head: str, index: int) -> tuple[int, int]:
    """First and last line of a table with its sub-tables; (0, all) for no head, or for one that does not
    exist."""
    if not head:
        return 0, len(lines)
    opens = re.compile(rf"\s*\[+\s*[\"']?{re.escape(head)}[\"']?\s*\]+")
    starts = [n for n, line in enumerate(lines, 1) if opens.match(line)]
    if index >= len(starts):
        return 0, len(lines)
    start = starts[index]
    inner = re.compile(rf"\s*\[+\s*[\"']?{re.escape(head)}[\"']?\s*\.")
    another = re.compile(r"\s*\[+\s*[\"'\w]")
    after = (n for n in range(start + 1, len(lines) + 1) if _opens(lines[n - 1], another, inner))
    return start, next(after, len(lines) + 1) - 1


def _opens(line: str, another: re.Pattern[str], inner: re.Pattern[str]) -> bool:
    is_header = another.match(line) is not None and "=" not in line.split("#")[0]
    return is_header and not inner.match(line)


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """Inside, a UsageError becomes a BadInput of this file, with its line if that is known."""
    try:
        yield
    except UsageError as error:
        if path is None or type(error) is not UsageError:  # a subclass says more, BadInput the file too
            raise
        raise BadInput(
            path,
            str(error),
            toml_line(path, error.key) or toml_line(path, table=error.table),
            code=error.code if error.code != UsageError.code else BadInput.code,
        ) from None


# --- the user's own models.toml -----------------------------------------------------------------------
# The user's own models.toml: names of models in addition to those that heredity knows.
#
# HEREDITY_MODELS, or ~/.config/heredity/models.toml (XDG_CONFIG_HOME)
#
# Promises: no file of the working folder is read, for a name may bring an address and the variable of a
# key. A table that does not fit is an error that names file and line.

VARIABLE = "HEREDITY_MODELS"
Entry = TypeVar("Entry", bound=msgspec.Struct)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def models_file() -> Path | None:
    """The file, if there is one. Raises BadInput if HEREDITY_MODELS names a file that does not exist."""
    if named := os.environ.get(VARIABLE):
        file = Path(named).expanduser()
        if not file.is_file():
            raise BadInput(
                file, f"{VARIABLE} names this file, and it does not exist.", code="unreadable-file"
            )
        return file
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    file = Path(config).expanduser() / "heredity" / "models.toml"
    return file if file.is_file() else None


def user_entries(kind: type[Entry], is_remote: bool, taken: Container[str]) -> Iterator[tuple[str, Entry]]:
    """Names and entries of the file: those behind an API, which have the key `api`, or the others.

    taken: the names that heredity knows itself. Raises BadInput for one of them, and for a wrong table.
    """
    if (file := models_file()) is None:
        return
    for name, table in toml_of(file).items():
        if not isinstance(table, dict) or not _NAME.fullmatch(name):
            why = f"'{name[:80]}' is not a name with a table: write [\"my-model\"]."
            raise BadInput(file, why, toml_line(file, name))
        if ("api" in table) != is_remote:
            continue
        if name in taken:
            why = f"heredity knows the model '{name}' itself. Choose another name."
            raise BadInput(file, why, toml_line(file, head=name), code="name-twice")
        yield name, _convert(file, name, table, kind)


def _convert(file: Path, name: str, table: dict[str, object], kind: type[Entry]) -> Entry:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        own = origin_of(error)
        match = re.search(r"unknown field `([^`]+)`|\$\.(\w+)", str(error))
        key = own.key if own else next(filter(None, match.groups()), "") if match else ""
        why = in_words(str(error))
        if match is not None and match[1] and "$" not in why:
            known = [each.encode_name for each in msgspec.structs.fields(kind)]
            why = f"there is no key `{key}`; an entry has {', '.join(known)}"
        raise BadInput(
            file,
            f"{name}: {why}",
            toml_line(file, key, head=name),
            code=code_of(error),
        ) from None
