"""The user's own models.toml: names of models in addition to those that heredity knows.

    HEREDITY_MODELS, or ~/.config/heredity/models.toml (XDG_CONFIG_HOME)

Promises: no file of the working folder is read, for a name may bring an address and the variable of a key. A
table that does not fit is an error that names file and line.
Leaves to others: the types of the entries (lineage/catalog.py, engines/remote/services.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from heredity.core.errors import BadInput, code_of, origin_of
from heredity.core.readers import in_words, toml_line, toml_of

VARIABLE = "HEREDITY_MODELS"
Entry = TypeVar("Entry", bound=msgspec.Struct)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def path() -> Path | None:
    """The file, if there is one. Raises BadInput if HEREDITY_MODELS names a file that does not exist."""
    if named := os.environ.get(VARIABLE):
        found = Path(named).expanduser()
        if not found.is_file():
            raise BadInput(found, f"{VARIABLE} names this file, and it does not exist.", code="file-missing")
        return found
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    found = Path(config).expanduser() / "heredity" / "models.toml"
    return found if found.is_file() else None


def entries(kind: type[Entry], is_remote: bool, taken: Container[str]) -> Iterator[tuple[str, Entry]]:
    """Names and entries of the file: those behind an API, which have the key `api`, or the others.

    taken: the names that heredity knows itself. Raises BadInput for one of them, and for a wrong table.
    """
    if (file := path()) is None:
        return
    for name, table in toml_of(file).items():
        if not isinstance(table, dict) or not _NAME.fullmatch(name):
            why = f"'{name[:80]}' is not a name with a table: write [\"my-model\"]."
            raise BadInput(file, why, toml_line(file, name), code="bad-models")
        if ("api" in table) != is_remote:
            continue
        if name in taken:
            why = f"heredity knows the model '{name}' itself. Choose another name."
            raise BadInput(file, why, toml_line(file, head=name), code="name-taken")
        yield name, _convert(file, name, table, kind)


def _convert(file: Path, name: str, table: dict[str, object], kind: type[Entry]) -> Entry:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        own = origin_of(error)
        found = re.search(r"unknown field `([^`]+)`|\$\.(\w+)", str(error))
        key = own.key if own else next(filter(None, found.groups()), "") if found else ""
        why = in_words(str(error))
        if found is not None and found[1] and "$" not in why:
            known = [each.encode_name for each in msgspec.structs.fields(kind)]
            why = f"there is no key `{key}`; an entry has {', '.join(known)}"
        raise BadInput(
            file,
            f"{name}: {why}",
            toml_line(file, key, head=name),
            code=code_of(error, "bad-models"),
        ) from None
