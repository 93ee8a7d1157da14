"""A study's rows as Parquet, one trial per row, with a fixed schema and exact text.

Promises: memory for one row group, and the same columns and types for every study. The file's metadata has
the digests of the study and of the application.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heredity.core import __version__
from heredity.core.errors import Unavailable, how_to_install
from heredity.study import aggregate
from heredity.study.report._rows import TrialRow, TrialTable, chosen_names, columns, whole

GROUP_ROWS = 16_384
GROUP_CHARACTERS = 1 << 24  # of text: whichever comes first closes a row group
_WHOLE = {
    "index": "int64",
    "sample": "int64",
    "seed": "int64",
    "n_prompt_tokens": "int64",
    "n_tokens": "int64",
    "severity": "int64",
}
_MAY_BE_MISSING = {
    "twin", "outcome", "manner", "judge", "evidence", "stop", "error", "text", "severity", "guarded",
    "withheld",
}  # fmt: skip


def write(folder: Path, out: Path, with_text: bool = True, models: Sequence[str] = ()) -> Path:
    """Write every asked trial of the study in `folder`, in the plan's order, to `out`, and return `out`.

    models: names; only their trials are written.
    Without text, there are no columns `evidence`, `text` and `withheld`, and `error` holds no message.
    Raises Unavailable if pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Unavailable(
            f"Parquet needs pyarrow. {how_to_install('parquet')}", code="package-missing"
        ) from None
    study = aggregate.read_study(folder)
    about = {
        "heredity": __version__,
        "study": study.estimates.study,
        "application": study.estimates.application.digest,
    }
    schema = _schema(pyarrow, with_text).with_metadata(about)
    names = chosen_names(study.estimates.models, models)
    with (
        TrialTable(folder, study.plan, names, with_text) as table,
        whole(out) as file,
        pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        group = _Group(columns(with_text))
        for row in table:
            group.add(row)
            if group.is_full():
                writer.write_table(pyarrow.table(group.take(), schema=schema))
        if group.n_rows:
            writer.write_table(pyarrow.table(group.take(), schema=schema))
    return out


class _Group:
    """Rows that become one row group, by column."""

    def __init__(self, names: list[str]) -> None:
        self._names, self._columns = names, _empty(names)
        self.n_rows = self._n_characters = 0

    def add(self, row: TrialRow) -> None:
        for name, values in self._columns.items():
            values.append(getattr(row, name))
        self.n_rows += 1
        self._n_characters += len(row.text or "")

    def is_full(self) -> bool:
        return self.n_rows >= GROUP_ROWS or self._n_characters >= GROUP_CHARACTERS

    def take(self) -> dict[str, list[Any]]:
        """The rows so far; the group is empty afterwards."""
        taken, self._columns = self._columns, _empty(self._names)
        self.n_rows = self._n_characters = 0
        return taken


def _empty(names: list[str]) -> dict[str, list[Any]]:
    return {name: [] for name in names}


def _schema(pyarrow: Any, with_text: bool) -> Any:
    return pyarrow.schema(
        [
            pyarrow.field(name, getattr(pyarrow, _WHOLE.get(name, "string"))(), name in _MAY_BE_MISSING)
            for name in columns(with_text)
        ]
    )
