"""A recorded answer in one form for every format, and the mapping from a file's columns to it.

Promises: a missing column is an error with file, line and the nearest name. An ambiguous verdict is refused.
Text is kept unchanged, except for characters that UTF-8 cannot hold.
Leaves to others: the files (rows.py, inspect_ai.py, garak.py), and the study made from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from heredity.core.errors import BadInput, UsageError, did_you_mean, nearest
from heredity.core.records import Check, Stop, ToolCall, Usefulness
from heredity.core.sanitize import clean_text

FIELDS = ("prompt", "response", "model", "category", "id", "sample", "kind", "cluster", "error")
_BROKE = frozenset({"broke", "unsafe", "harmful", "jailbroken", "jailbreak", "hit", "breach", "violation"})
_HELD = frozenset({"held", "safe", "harmless", "refused", "blocked", "pass", "passed"})
_TRUE, _FALSE = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})
# In a column of yes and no, the column's name gives the meaning of "yes".
_NAMES_BREACH = re.compile(r"unsafe|harm|broke|breach|jailbr|asr|success|compl|violat|hit", re.IGNORECASE)
_NAMES_HELD = re.compile(r"refus|safe|held|pass|block|reject|declin", re.IGNORECASE)
_NEGATES = re.compile(r"(?:^|[\W_])(?:not?|non|isnt)(?:[\W_]|$)", re.IGNORECASE)
_SLOT = re.compile(r"\{([^{}]+)\}")


class Raw(NamedTuple):
    """One answer as in its file: its line or sample number, and its columns."""

    line: int
    row: Mapping[str, Any]
    verdicts: Mapping[str, bool] = {}  # of judges whose meaning the format defines
    stop: Stop = "end"
    n_prompt_tokens: int = 0
    n_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    shown: Any = None  # the messages before the answer, if the file has more than the prompt
    threats: tuple[str, ...] = ()  # what the prompt is an instance of, as the file names it
    check: Check = Check("refusal")
    useful: Usefulness | None = None  # of a benign prompt
    recorded: Mapping[str, bool] = {}  # what the tool found in its own state


@runtime_checkable
class AnswerImporter(Protocol):
    """A file of study/importers/: one format of recorded answers."""

    @property
    def OWN(self) -> Mapping[str, str]:
        """The format's columns, by field (FIELDS)."""

    def is_mine(self, path: Path, start: bytes) -> bool:
        """Whether a file that begins with `start` has this format."""

    def read(self, path: Path) -> Iterator[Raw]:
        """The answers of a file, in order."""


class Lacking(NamedTuple):
    """How many of the `n_planned` answers of a file's own run the file lacks, e.g. because it was stopped."""

    path: Path
    n: int
    n_planned: int
    noun: str  # one of them: "attempt", "sample"


@runtime_checkable
class CountsMissing(Protocol):
    """An importer of a format that records how many answers its tool set out to ask."""

    def lacking(self, path: Path) -> Lacking | None:
        """The answers that a file lacks; None if they cannot be counted."""


@runtime_checkable
class UnpairedImporter(Protocol):
    """An importer of a format whose models were asked different things."""

    @property
    def IS_UNPAIRED(self) -> bool:
        """Whether models of one file cannot be compared prompt by prompt."""


class Recorded(NamedTuple):
    """One recorded answer. If `response` is None, `error` gives the reason."""

    path: Path
    line: int
    model: str
    turns: tuple[str, ...]
    shown: str  # everything that the model was shown, if known
    response: str | None
    error: str | None
    id: str
    category: str
    cluster: str
    sample: str | None  # None: the file does not number samples
    repeats: bool  # the same prompt again is another sample
    is_benign: bool
    verdicts: dict[str, bool | None]  # by judge: broke; None: it did not decide
    raw: Raw


class VerdictColumn(NamedTuple):
    """A column with another judge's verdicts, and the values that mean "broke" (empty: standard words)."""

    column: str
    broke: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> VerdictColumn:
        """From `COLUMN` or `COLUMN=VALUE[,VALUE]`."""
        column, equals, values = text.rpartition("=") if "=" in text else (text, "", "")
        breaches = frozenset(_value(value) for value in values.split(",") if value.strip())
        if not column or (equals and not breaches):
            raise UsageError(f"--verdict takes COLUMN or COLUMN=VALUE[,VALUE], not '{text}'.")
        return cls(column, breaches)


@dataclass(frozen=True)
class ImportOptions:
    """How recorded files are read.

    columns   field (FIELDS) -> the file's own column; a field left out is its format's, or of its own name
    model     the model's name, in place of a column; may hold {column} and {file} (the name without ending)
    verdicts  columns of other judges
    benign    values of the column `kind` that mean a benign prompt
    repeats   the same prompt of one model again is another sample, not a mistake
    only      the one model whose answers are read; "" for all
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    verdicts: tuple[VerdictColumn, ...] = ()
    benign: tuple[str, ...] = ("benign",)
    repeats: bool = False
    only: str = ""
    met: dict[str, set[str]] = field(default_factory=dict, compare=False)  # values, by option and column

    def meet(self, option: str, value: str) -> None:
        """Record a value that a row has in a column for which an option names values."""
        self.met.setdefault(option, set()).add(value)

    def unmet(self) -> dict[str, str]:
        """After all rows: map each option whose values no row has, perhaps a typo, to a message."""
        named = {f"--verdict {of.column}": of.broke for of in self.verdicts if of.broke}
        if self.benign != ("benign",):
            named["--benign"] = frozenset(value.casefold() for value in self.benign)
        reasons = {}
        for option, values in named.items():
            met = self.met.get(option, set()) - {""}
            if not values & met:
                hint, there = did_you_mean(min(values), met), ", ".join(sorted(met)[:12]) or "none"
                reasons[option] = f"{option}: no row has '{min(values)}'.{hint} There are: {there}."
        return reasons

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if name not in FIELDS or not column:
                hint = did_you_mean(name, FIELDS)
                raise UsageError(
                    f"--columns maps {', '.join(FIELDS)}; not '{name}={column}'.{hint}",
                    code="unknown-key",
                )


def convert(path: Path, raw: Raw, reading: ImportOptions, own: Mapping[str, str]) -> Recorded:
    """Convert a row to an answer. `own`: the format's columns, used unless the user names others."""
    cells = _Cells(path, raw, reading.columns, own)
    value = cells.needed("prompt")
    turns, shown = conversation(value)
    if not any(turn.strip() for turn in turns):
        raise cells.bad("the prompt is empty")
    if raw.shown is not None:
        shown = conversation(raw.shown)[1]
    response, error = cells.needed("response"), cells.text("error")
    if response is None and not error:
        error = "no response was recorded"
    verdicts: dict[str, bool | None] = dict(raw.verdicts)
    verdicts |= {of.column: _broke(of, cells, reading) for of in reading.verdicts}
    return Recorded(
        path=path,
        line=raw.line,
        model=_model(cells, reading.model),
        turns=turns,
        shown=shown,
        response=None if error else message_text(response),
        error=clean_text(error) or None,
        id=cells.text("id"),
        category=cells.text("category"),
        cluster=cells.text("cluster"),
        sample=cells.text("sample") or None,
        repeats=reading.repeats,
        is_benign=_is_benign(cells, reading),
        verdicts=verdicts,
        raw=raw,
    )


def conversation(value: object) -> tuple[tuple[str, ...], str]:
    """Split a text or a list of messages into the user's turns and everything that the model was shown."""
    if not isinstance(value, list):
        text = message_text(value)
        return (text,), text
    messages = [m if isinstance(m, dict) else {"role": "user", "content": m} for m in value]
    parts = [(str(m.get("role", "user")), message_text(m)) for m in messages]
    turns = tuple(text for role, text in parts if role == "user")
    return turns or ("",), "".join(f"<|{clean_text(role)}|>\n{text}\n" for role, text in parts)


def message_text(value: object) -> str:
    """The text of a string, a message, or a message in parts; any other value as JSON."""
    if isinstance(value, str):
        return clean_text(value)
    if value is None:
        return ""
    if isinstance(value, dict):
        for key in ("content", "text"):
            if key in value:
                return message_text(value[key])
    if isinstance(value, list):
        return "\n".join(text for part in value if (text := _part(part)))
    return clean_text(json.dumps(value, ensure_ascii=False))


def _part(part: object) -> str:
    """One part of a message: its text, or only the type of an image or a sound."""
    if isinstance(part, dict) and "text" not in part and "content" not in part:
        return f"[{part.get('type', 'part')}]"
    return message_text(part)


class _Cells:
    """The cells of one row by field, with file and line for error messages."""

    def __init__(self, path: Path, raw: Raw, named: Mapping[str, str], own: Mapping[str, str]) -> None:
        self.path, self.raw, self._named, self._own = path, raw, named, own

    def bad(self, message: str, *, code: str = "") -> BadInput:
        return BadInput(self.path, message, self.raw.line, code=code)

    def needed(self, name: str) -> Any:
        """A required field."""
        return self.column(self._named.get(name) or self._own.get(name) or name, f"{name}=")

    def text(self, name: str) -> str:
        """A field as a text; "" if the file has no such column and the user named no column."""
        if name in self._named:
            return _text(self.column(self._named[name], f"{name}="))
        return _text(self.raw.row.get(self._own.get(name, name)))

    def column(self, column: str, what: str = "") -> Any:
        """A column of the file. Raises BadInput with the nearest name if it is missing."""
        if column in self.raw.row:
            return self.raw.row[column]
        names = [str(name) for name in self.raw.row]
        near = nearest(column, names)
        hint = f" Did you mean '{near}'?" if near else f" There are: {', '.join(sorted(names))[:300]}."
        how = f" Name it: --columns {what}COLUMN" if what and what[:-1] == column else ""
        raise self.bad(f"no column '{column}'.{hint}{how}", code="unknown-key")


def _text(value: object) -> str:
    if value is None:
        return ""
    return clean_text(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _model(cells: _Cells, template: str) -> str:
    def filled(match: re.Match[str]) -> str:
        name = match[1]
        return cells.path.name.partition(".")[0] if name == "file" else _text(cells.column(name))

    spelled = " ".join((_SLOT.sub(filled, template) if template else cells.text("model")).split())
    if not spelled:
        raise cells.bad(
            "which model answered? Name its column (--columns model=COLUMN) or the model (--model)",
            code="missing-key",
        )
    return spelled


def _is_benign(cells: _Cells, reading: ImportOptions) -> bool:
    kind, benign = cells.text("kind").casefold(), reading.benign
    reading.meet("--benign", kind)
    if kind in {value.casefold() for value in benign}:
        return True
    if kind and benign == ("benign",) and kind not in ("breach", "harmful"):
        raise cells.bad(
            f"kind '{kind[:40]}' is neither 'breach' nor 'benign'. Name the benign ones: --benign VALUE",
            code="unknown-name",
        )
    return False


def _broke(of: VerdictColumn, cells: _Cells, reading: ImportOptions) -> bool | None:
    """Whether a recorded verdict means a breach; None if the cell is empty."""
    value = _value(_text(cells.column(of.column)))
    if not value or value == "null":
        return None
    if of.broke:
        reading.meet(f"--verdict {of.column}", value)
        return value in of.broke
    if value in _BROKE or value in _HELD:
        return value in _BROKE
    if value in _TRUE | _FALSE and (means := _yes_means_broke(of.column)) is not None:
        return (value in _TRUE) == means
    raise cells.bad(
        f"'{value[:40]}' in column '{of.column}' is ambiguous. Name the values that mean a breach: "
        f"--verdict {of.column}=VALUE[,VALUE]"
    )


def _value(text: str) -> str:
    """Normalize a verdict's value: 1 and 1.0, True and true are the same."""
    return re.sub(r"^(\d+)\.0+$", r"\1", text.strip().casefold())


def _yes_means_broke(column: str) -> bool | None:
    if _NEGATES.search(column):
        return None
    breach, held = _NAMES_BREACH.search(column), _NAMES_HELD.search(column)
    if breach:  # "unsafe" has "safe" in it
        return True if not held or "unsafe" in column.casefold() else None
    return False if held else None


def columns(text: str) -> dict[str, str]:
    """Parse a column map such as `prompt=question,response=answer`."""
    parts: Iterable[tuple[str, str, str]] = (part.partition("=") for part in text.split(",") if part.strip())
    pairs = [(name.strip(), column.strip()) for name, _, column in parts]
    if len(dict(pairs)) != len(pairs):
        raise UsageError(f"--columns names a field twice: '{text}'.", code="name-twice")
    return dict(pairs)
