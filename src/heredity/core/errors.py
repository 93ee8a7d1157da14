"""Every error that heredity raises on purpose, so that a caller can tell a mistake from a failure.

Messages say what happened, where, and what to do next. No traceback is shown for any of them. A message may
be reworded at any time; programs and tests read `code`, which stays the same. Each class has a code, and a
raise may give another. docs/errors.md lists all codes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def first_line(error: BaseException) -> str:
    """The kind and first line of another library's error, short enough to be part of ours."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}".rstrip(": ")


def how_to_install(extras: str) -> str:
    """How to install extras ("torch,serve"): from the clone, as the name on a package index is not ours."""
    return f"In your clone of heredity: pip install -e '.[{extras}]'"


class CodedError(Exception):
    """The base of HeredityError and BadArgument: an error with a code.

    code: what happened, in kebab case. It stays the same when the message is reworded.
    key, table: the setting, and the name of the table, of a TOML file that the error is about; "" for none.
    With them the reader of the file finds the line.
    """

    code: str

    def __init__(self, *args: object, code: str = "", key: str = "", table: str = "") -> None:
        super().__init__(*args)
        if code:
            self.code = code
        self.key, self.table = key, table

    def __reduce__(self) -> tuple[object, ...]:
        """Whole to another process: the constructors of some kinds take more than `args`."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[CodedError], args: tuple[object, ...], attributes: dict[str, object]) -> CodedError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class HeredityError(CodedError):
    """An error that heredity explains in one line of text instead of a traceback."""

    code = "failure"


class BadArgument(CodedError, ValueError):
    """An argument out of its range: a ValueError with a code. If a file gave it, it becomes BadInput."""

    code = "bad-setting"


class UsageError(HeredityError):
    """The user asked for something that does not exist or does not fit."""

    code = "bad-usage"


class UnknownName(UsageError):
    """No such name; says the nearest known one, and how to list them all.

    list_with: the command that lists them, or the names themselves.
    """

    code = "unknown-name"

    def __init__(self, kind: str, name: str, known: Iterable[str], list_with: str = "") -> None:
        self.kind, self.name = kind, name
        hint = did_you_mean(name, known)
        more = "List them" if list_with.startswith("heredity ") else "Known"
        more = f" {more}: {list_with}" if list_with else ""
        super().__init__(f"No {kind} named '{name}'.{hint}{more}")


class BadInput(UsageError):
    """A file that a person wrote is malformed. `line` counts from 1; 0 if it is not known."""

    code = "bad-input"

    def __init__(self, path: Path | str, message: str, line: int = 0, *, code: str = "") -> None:
        self.path, self.line = str(path), line
        super().__init__(f"{path}:{line}: {message}" if line else f"{path}: {message}", code=code)


class Refused(HeredityError):
    """heredity refuses to do this; the message gives the reason."""

    code = "refused"


class WrongHash(Refused):
    """The bytes are not the ones that were pinned or recorded."""

    code = "hash-mismatch"


class NotComparable(Refused):
    """These rows may not be compared or continued: another application, plan or schema."""

    code = "not-comparable"


class Damaged(HeredityError):
    """A file on disk is truncated, torn, or of another kind than it claims."""

    code = "damaged"


class Unavailable(HeredityError):
    """A source, an engine or an optional package is missing; the message explains how to get it."""

    code = "unavailable"


class Busy(HeredityError):
    """Another process holds this folder."""

    code = "busy"


class OutOfMemory(HeredityError):
    """The work needs more memory than is available; the message names the amount and what to lower."""

    code = "out-of-memory"


class EngineFailure(HeredityError):
    """A model could not answer. In a study this becomes an error row, never a verdict."""

    code = "engine-failure"


class BudgetSpent(EngineFailure):
    """The run's budget of tokens or money is too small for the next request."""

    code = "budget-spent"


class ContextOverflow(EngineFailure):
    """The prompt and its answer do not fit into the model's context."""

    code = "context-overflow"


class ToolFailure(EngineFailure):
    """A tool that a model called could not be run, so that there is no result to show the model."""

    code = "tool-failure"


def origin_of(error: BaseException) -> CodedError | None:
    """The error itself if it has a code, or else the one that msgspec raised it from; None for neither."""
    return next((each for each in (error, error.__cause__) if isinstance(each, CodedError)), None)


def code_of(error: BaseException) -> str:
    """The code for an error that is raised again as another.

    An error of heredity has one, also as the cause of msgspec's. Errors that msgspec raises by itself are
    known by the beginning of their message, because they have no field for it. Others are `bad-setting`.
    """
    if (own := origin_of(error)) is not None:
        return own.code
    codes = (code for start, code in OF_MSGSPEC.items() if str(error).startswith(start))
    return next(codes, BadArgument.code)


OF_MSGSPEC = {
    "Object contains unknown field": "unknown-key",
    "Object missing required field": "missing-key",
    "Expected": "wrong-type",
    "Invalid enum value": "unknown-name",
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion to append to a message, with a space before it; "" if no name is near."""
    near = nearest(name, known)
    return f" Did you mean '{near}'?" if near else ""


def near_path(path: Path) -> str:
    """A suggestion for a path that does not exist, from the names next to it; "" if no name is near."""
    try:
        return "" if path.exists() else did_you_mean(path.name, [each.name for each in path.parent.iterdir()])
    except OSError:
        return ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None if no name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return close[0] if close else None
